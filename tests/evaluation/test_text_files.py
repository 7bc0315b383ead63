"""Files of one entry a line: what is read, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from gguf_tools.evaluation.text_files import json_object, read_lines, read_text

EXAMPLE = '{"a": "x"}'


def written(folder: Path, data: bytes) -> Path:
    path = folder / "list.jsonl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_keep_their_numbers(tmp_path: Path, end: bytes) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf one " + end * 2 + b"\t" + end + "dr\u2028ei".encode())
    assert read_lines(path) == [(f"{path}:1", "one"), (f"{path}:4", "dr\u2028ei")]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(written(tmp_path, b"")) == []


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, b"good\n\nb\xffd\n")
    with pytest.raises(InputError, match=r"list\.jsonl:3: is not UTF-8 \(byte 2 of the line\)"):
        read_lines(path)
    with pytest.raises(InputError, match=r"list\.jsonl: is not UTF-8 \(at byte 8\); save it as UTF-8 text"):
        read_text(path)
    for broken, reason in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        for read in (read_lines, read_text):
            with pytest.raises(InputError) as found:
                read(broken)
            assert str(found.value).startswith(f"{broken}: cannot be read ({reason}")
            assert str(found.value).count(str(broken)) == 1


def test_text_has_no_byte_order_mark(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, b"\xef\xbb\xbfa\n b\n")) == "a\n b\n"


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text() | st.none() | st.integers() | st.lists(st.text())))
def test_an_object_comes_back(row: dict[str, object]) -> None:
    assert json_object(json.dumps(row), "f:1", ("a", "b"), EXAMPLE) == row


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "f:1: is not JSON (Expecting property name"),
        ("{} {}", "f:1: is not JSON (Extra data)"),
        ("[" * 100_000, "f:1: is not JSON (RecursionError)"),
        ("1" * 5000, "f:1: is not JSON (ValueError)"),
        ('["a"]', f"f:1: is a list; expected an object such as {EXAMPLE}"),
        ("7", "f:1: is a int; "),
        ('{"a": 1, "d": 2, "c": 3}', "f:1: key 'c' is not known; expected a, b"),
        (r'{"a": ["\ud800"]}', "f:1: has an escaped lone surrogate"),
    ],
)
def test_what_is_no_object_is_named(line: str, expected: str) -> None:
    with pytest.raises(InputError) as found:
        json_object(line, "f:1", ("a", "b"), EXAMPLE)
    assert str(found.value).startswith(expected)
