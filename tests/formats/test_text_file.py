"""The bounded reader of text files: what is no file, has no end, or is too large ends as one line at once."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats import text_file
from gguf_tools.formats.text_file import (
    MOST_VALUES,
    Kind,
    check_regular,
    is_finite,
    load_json,
    load_toml,
    parse_json,
    read_bytes,
    read_text,
)


def test_text_comes_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffgrüße\r\n".encode())
    assert read_text(tmp_path / "a", Kind.TEXT) == "grüße\r\n"


def short(value: object) -> str:
    return str(value)[:8]


@pytest.mark.parametrize("value", [True, None, "1", [], float("nan"), float("-inf"), 10**400, -(10**400)], ids=short)
def test_what_is_no_finite_number(value: object) -> None:
    assert not is_finite(value)


@pytest.mark.parametrize("value", [0, -1, 2**64, 1e308, -5e-324, int(sys.float_info.max)], ids=short)
def test_what_is_a_finite_number(value: object) -> None:
    assert is_finite(value)
    assert float(value) == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[a" + ".a" * 50_000 + "]\n", 1),
        ("x = 1\n[[ 'a' " + '. "b" ' * 40 + "]]\n", 2),
        ("\n\na" + " . a" * 50_000 + " = 1\n", 3),
        ("x = {y = 1, a" + ".a" * 100 + " = 1}\n", 1),
    ],
    ids=["table", "quoted", "key", "inline"],
)
def test_a_long_key_of_toml_is_refused_at_once(text: str, line: int) -> None:
    with pytest.raises(ValueError, match=f"^a key of more than 32 parts, at line {line}$"):
        load_toml(text)


def test_toml_with_dots_in_values_is_read() -> None:
    dots = ".".join("x" * 100)
    assert load_toml(f'[a.b]\nc.d = "{dots}"\ne = ["{dots}"]\n') == {"a": {"b": {"c": {"d": dots}, "e": [dots]}}}
    with pytest.raises(ValueError, match="Invalid value"):
        load_toml("a = ")


def test_a_link_is_followed_to_a_file(tmp_path: Path) -> None:
    """As the hub's cache makes them."""
    (tmp_path / "blob").write_text("x")
    (tmp_path / "a").symlink_to("blob")
    assert read_bytes(tmp_path / "a", Kind.CONFIG) == b"x"


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """However large files of its kind may be."""
    (tmp_path / "a").write_bytes(b"x" * 1000)
    for kind in Kind:
        tracemalloc.start()
        assert len(read_bytes(tmp_path / "a", kind)) == 1000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "link to a device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    reason = "Is a directory" if what == "folder" else "it is not a regular file"
    with pytest.raises(CheckpointError) as found:
        read_bytes(path, Kind.CONFIG)
    assert str(found.value) == f"{path}: cannot be read ({reason}); put a file there"
    with pytest.raises(InputError, match="cannot be read"):
        check_regular(path)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b", "n" * 5000):
        with pytest.raises(InputError, match=r"cannot be read \(.+\); check the path"):
            read_text(tmp_path / name, Kind.RECIPE, InputError)
        with pytest.raises(InputError, match="cannot be read"):
            check_regular(tmp_path / name)


def test_a_file_may_be_as_large_as_its_kind_and_no_larger(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b" ")
    os.truncate(path, Kind.RECIPE.most)
    assert len(read_bytes(path, Kind.RECIPE)) == Kind.RECIPE.most
    os.truncate(path, Kind.RECIPE.most + 1)
    with pytest.raises(
        CheckpointError, match=r"a: has 1,048,577 bytes or more; expected 1,048,576 at most for a recipe"
    ):
        read_bytes(path, Kind.RECIPE)
    os.truncate(path, 1 << 40)  # takes no room on the disk, and must take none in memory
    with pytest.raises(CheckpointError, match=r"has 1,099,511,627,776 bytes or more"):
        read_text(path, Kind.TOKENIZER)


def test_a_file_that_hides_its_size_is_bounded_too() -> None:
    """Files in /proc state a size of 0 and have contents."""
    path = Path("/proc/self/maps")
    if not path.exists():
        pytest.skip("no /proc here")
    assert path.stat().st_size == 0
    assert read_bytes(path, Kind.TEXT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "line 1, column 2"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("1" * 5000, "integer string"),
        (b'"\xff"', "can't decode byte"),
    ],
)
def test_json_that_is_none(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(CheckpointError) as found:
        parse_json(text, tmp_path / "a.json")
    assert str(found.value).startswith(f"{tmp_path / 'a.json'}: not valid JSON (")
    assert expected in str(found.value)
    assert len(str(found.value)) < 500


def test_json_of_too_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MOST_VALUES", 1000)
    for text in (
        "[" + "[]," * 500 + "0]",
        "[" + "1," * 1000 + "1]",
        "[" * 1001 + "]" * 1001,
        '{"a":' * 1001 + "1" + "}" * 1001,
    ):
        for given in (text, text.encode()):
            with pytest.raises(CheckpointError, match=r"not valid JSON \(about 1,001 values; expected 1,000 at most\)"):
                parse_json(given, tmp_path / "a.json")
    assert load_json("[" + "[]," * 499 + "0,0]") == [[]] * 499 + [0, 0]


CHILD = """
import resource, sys
from pathlib import Path
from gguf_tools.formats.text_file import Kind, parse_json, read_text
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
found = parse_json(read_text(Path(sys.argv[1]), Kind.TOKENIZER), Path(sys.argv[1]))
print(len(found))
"""


def test_the_worst_json_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    """As large as a tokenizer may be, as many objects as are allowed, and a character for which Python takes four bytes each."""
    path, count = tmp_path / "a.json", MOST_VALUES // 2 - 1
    text = '["\U0001f600",' + '{"a":1},' * count
    path.write_text(text + " " * (Kind.TOKENIZER.most - len(text.encode()) - 2) + "0]", "utf-8")
    assert path.stat().st_size == Kind.TOKENIZER.most
    done = subprocess.run([sys.executable, "-c", CHILD, path], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(count + 2), done.stderr[-500:]
