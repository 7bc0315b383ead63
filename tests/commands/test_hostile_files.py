"""Files that strangers made: every command ends with a result or one line, in bounded time and memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.journal import journal_path
from tests.conftest import Ran
from tests.tiny_gguf import dense_tensors, write_dense

Tinyq = Callable[..., Ran]
SECONDS = 60
"""Each case takes less than a second; what has no bound takes for ever."""
MEMORY = 2 << 30
"""Of address space that a command may add; torch and llama.cpp reserve much without using it."""


class TooLong(BaseException):
    """A command did not end; not an Exception, so that nothing catches it."""


@pytest.fixture
def bounded(tinyq: Tinyq) -> Tinyq:
    """A command in this process (which has loaded torch already), with limits."""

    def stop(*_: object) -> None:
        raise TooLong

    def call(*args: object) -> Ran:
        mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        before, at_most = resource.getrlimit(resource.RLIMIT_AS)
        handler = signal.signal(signal.SIGALRM, stop)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, at_most))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            return tinyq(*args)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (before, at_most))
            signal.signal(signal.SIGALRM, handler)

    return call


def one_line(ran: Ran, code: int = 2) -> str:
    """The line that a command ended with."""
    assert (ran.code, ran.err.count("\n")) == (code, 1), ran.err[-2000:]
    assert ran.err.startswith("tinyq: ")
    assert "Traceback" not in ran.err
    assert ran.err[:-1].isprintable()
    assert len(ran.err) < 2100
    return ran.err


# What is no file in place of one


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


IN_CHECKPOINT = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
                 "special_tokens_map.json", "added_tokens.json", "tinyq-recipe.toml", "model.safetensors")  # fmt: skip


@pytest.mark.parametrize("name", IN_CHECKPOINT)
def test_a_pipe_in_a_checkpoint(bounded: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path, name: str) -> None:
    folder = copied(qwen3_folder)
    pipe(folder / name)
    said = one_line(bounded("convert", folder, folder.parent / "out.gguf", "--type", "f32"))
    assert f"{folder / name}: " in said
    assert "not a regular file" in said
    assert not (folder.parent / "out.gguf").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_device_in_a_checkpoint(
    bounded: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path, name: str
) -> None:
    folder = copied(qwen3_folder)
    endless(folder / name)
    # A device can only be there by a link, and links out of the folder are refused whatever they lead to.
    assert f"{folder / name}: is a symbolic link to " in one_line(bounded("inspect", folder))


def test_a_model_card_that_is_no_file_is_none(
    bounded: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path
) -> None:
    folder = copied(qwen3_folder)
    pipe(folder / "README.md")
    assert bounded("inspect", folder).code == 0


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pipe_in_place_of_a_state_dict(bounded: Tinyq, tmp_path: Path, name: str) -> None:
    pipe(tmp_path / name)
    assert "not a regular file" in one_line(bounded("inspect", tmp_path / name))


TEXTS = [
    ("convert", "{folder}", "{out}", "--recipe", "{bad}", "--dry-run"),
    ("convert", "{folder}", "{out}", "--imatrix", "{bad}", "--type", "q4_k_m", "--dry-run"),
    ("convert", "{folder}", "{out}", "--target-bpw", "30", "--calibration", "{bad}"),
    ("eval", "{model}", "--prompts", "{bad}"),
    ("eval", "{model}", "--text", "{bad}"),
    ("eval", "{model}", "--oracle", "{bad}.npz"),
    ("eval", "{model}", "--suite", "card", "--questions", "{bad}"),
    ("imatrix", "{model}", "{bad}", "-o", "{out}"),
    ("trace", "{model}", "--text", "{bad}"),
]
MODELS = [
    ("eval", "{bad}"),
    ("quantize", "{bad}", "{out}", "q8_0"),
    ("surgery", "{bad}", "{out}", "--swap", "0:1"),
    ("verify", "{bad}", "--source", "{folder}"),
    ("diff", "{bad}", "{folder}"),
    ("trace", "{bad}"),
    ("golden", "{bad}", "{out}"),
    ("check", "{bad}", "--gguf", "{model}"),
    ("diff", "{model}", "{bad}"),
    ("inspect", "{bad}"),
]


# All texts go through one reader, whose own test has the devices.
@pytest.mark.parametrize(
    ("put", "args"),
    [*((pipe, args) for args in (*TEXTS, *MODELS)), *((endless, args) for args in (TEXTS[0], *MODELS))],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value.__name__,
)
def test_a_pipe_or_a_device_as_an_argument(
    bounded: Tinyq, qwen3_folder: Path, dense: Path, tmp_path: Path, put: Callable[[Path], None], args: tuple[str, ...]
) -> None:
    bad = tmp_path / ("bad.npz" if "{bad}.npz" in args else "bad")
    put(bad)
    names = {"folder": qwen3_folder, "model": dense, "out": tmp_path / "out.gguf", "bad": tmp_path / "bad"}
    said = one_line(bounded(*(arg.format(**names) for arg in args)))
    assert str(bad) in said
    assert list(tmp_path.iterdir()) == [bad]


# Counts that are not true


def gguf(path: Path, fields: Iterable[bytes], tensors: Iterable[bytes], data: bytes = b"") -> Path:
    fields, tensors = list(fields), list(tensors)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields) + b"".join(tensors)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(name: str | bytes, offset: int) -> bytes:
    """A tensor of 8 numbers in F32."""
    return text(name) + struct.pack("<IQIQ", 1, 8, 0, offset)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def block_count(count: int) -> bytes:
    return text("llama.block_count") + struct.pack("<II", 4, count)


@pytest.mark.parametrize("command", ["surgery", "inspect", "quantize"])
def test_more_blocks_than_tensors(bounded: Tinyq, tmp_path: Path, command: str) -> None:
    path = gguf(
        tmp_path / "a.gguf", [ARCHITECTURE, block_count((1 << 31) - 1)], [entry("blk.0.attn_q.weight", 0)], bytes(32)
    )
    args = {
        "surgery": ("surgery", path, "--swap", "0:1", "--dry-run"),
        "inspect": ("inspect", path),
        "quantize": ("quantize", path, tmp_path / "b.gguf", "q8_0", "--dry-run"),
    }
    ran = bounded(*args[command])
    if command == "surgery":
        assert "llama.block_count is 2147483647, but the file has only 1 tensors" in one_line(ran)
    else:
        assert ran.code in (0, 2)
        assert "Traceback" not in ran.err


def test_a_million_tensors(bounded: Tinyq, tmp_path: Path) -> None:
    count = 1_000_000
    entries = [entry(str(n), 32 * n) for n in range(count)]
    path = gguf(tmp_path / "a.gguf", [ARCHITECTURE], entries)
    os.truncate(path, path.stat().st_size + 32 * count)
    assert "1000000 tensors" in one_line(bounded("inspect", path))


@pytest.mark.parametrize(("count", "key"), [(1_000_000, "data_offsets"), (300_000, r"data\u005foffsets")])
def test_a_million_tensors_of_a_checkpoint(bounded: Tinyq, tmp_path: Path, count: int, key: str) -> None:
    """Also where the key by which they are counted first is spelled in another way."""
    entries = ",".join(f'"{n}":{{"{key}":[0,0],"dtype":"U8","shape":[0]}}' for n in range(count))
    header = f"{{{entries}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "config.json").write_text("{}")
    assert "holds more than 262,144 tensors" in one_line(bounded("inspect", tmp_path))


@pytest.mark.parametrize("rows", [10**12, -1, True, 1 << 70])
def test_a_vocabulary_that_no_tensor_has(
    bounded: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path, rows: int
) -> None:
    folder = copied(qwen3_folder)
    save_file({"odd.weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    config = {"model_type": "odd", "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config))
    ran = bounded("inspect", folder)
    assert ran.code == 0
    assert "problem" in ran.out


def test_an_embedding_without_columns(bounded: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path) -> None:
    """Rows that take no bytes."""
    folder = copied(qwen3_folder)
    save_file({"embed.weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    header = json.dumps({"embed.weight": {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "config.json").write_text('{"model_type": "odd"}')
    ran = bounded("inspect", folder)
    assert ran.code == 0
    assert "a vocabulary of 1000000000000 tokens" in ran.out


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim"]
)
def test_a_config_that_states_billions(
    bounded: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path, key: str
) -> None:
    folder = copied(qwen3_folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: (1 << 31) - 1}))
    ran = bounded("convert", folder, folder.parent / "out.gguf", "--dry-run")
    assert ran.code in (0, 2)
    assert "Traceback" not in ran.err


# YAML


FRONT = {
    "a date": "date: 2024-02-30",
    "a tag": "x: !!int abc",
    "a timestamp": "x: !!timestamp abc",
    "a truth value": "x: !!bool maybe",
    "code": "x: !!python/object/apply:os.system ['touch /tmp/never']",
    "merge keys": "m0: &m0 {a: 1}\n"
    + "\n".join(f"m{i}: &m{i}\n  <<: [{','.join([f'*m{i - 1}'] * 10)}]" for i in range(1, 30)),
    "aliases": "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)),
    "an alias to itself": "a: &a [*a]",
}


@pytest.mark.parametrize("front", FRONT.values(), ids=FRONT)
def test_front_matter_is_read_and_never_built(
    copied: Callable[[Path], Path], qwen3_folder: Path, tinyq: Tinyq, front: str
) -> None:
    folder = copied(qwen3_folder)
    (folder / "README.md").write_text(f"---\nlicense: mit\n{front}\ntags: [a, 1, b]\n---\n")
    out = folder.parent / "out.gguf"
    assert tinyq("convert", folder, out, "--type", "f32", "-q").code == 0
    header = read_header(out)
    assert (header.get("general.license"), header.get("general.tags")) == ("mit", ("a", "b"))


@pytest.mark.parametrize("front", ["[" * 100_000, "a: " * 100_000, "x: 'y" * 100_000, "a: \x01", "x" * (1 << 20)])
def test_front_matter_that_is_none(
    bounded: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path, front: str
) -> None:
    folder = copied(qwen3_folder)
    (folder / "README.md").write_text(f"---\nlicense: mit\n{front}\n---\n")
    assert bounded("inspect", folder).code == 0


# Names and values


@pytest.mark.parametrize(
    "args",
    [
        ("surgery", "{model}", "--swap", "0:1", "--dry-run"),
        ("quantize", "{model}", "{out}", "q8_0"),
        ("inspect", "{model}"),
    ],
)
def test_a_tensor_name_that_is_not_utf8(tinyq: Tinyq, tmp_path: Path, args: tuple[str, ...]) -> None:
    path = gguf(
        tmp_path / "a.gguf",
        [ARCHITECTURE, block_count(2)],
        [entry(b"blk.0.a\xff.weight", 0), entry(b"blk.1.a.weight", 32)],
        bytes(64),
    )
    ran = tinyq(*(arg.format(model=path, out=tmp_path / "out.gguf") for arg in args))
    assert r"a tensor's name is not UTF-8 ('blk.0.a\xff.weight')" in one_line(ran)


@pytest.mark.parametrize("name", ["model.layers." + "9" * 5000 + ".x", "a" * 140_000, "b\x1b]0;owned\x07"])
def test_long_and_wild_names_of_a_checkpoint(
    tinyq: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path, name: str
) -> None:
    folder = copied(qwen3_folder)
    save_file({name: np.zeros(4, np.float32)}, folder / "model.safetensors")
    one_line(tinyq("convert", folder, folder.parent / "out.gguf"))


def test_values_of_a_config_that_a_terminal_would_obey(
    tinyq: Tinyq, copied: Callable[[Path], Path], qwen3_folder: Path
) -> None:
    folder = copied(qwen3_folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "\x1b[2J" + "x" * 140_000}))
    one_line(tinyq("convert", folder, folder.parent / "out.gguf"))


WILD = "ll\x1b[31mama\x9b2J\u202e\nproblem  faked\r"


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    """A file whose metadata and tensors have names that a terminal would obey."""

    def field(key: str, value: str) -> bytes:
        return text(key) + struct.pack("<I", 8) + text(value)

    fields = [
        field("general.architecture", WILD),
        field("general.name", WILD + "x" * 140_000),
        field("tinyq.version", WILD),
    ]
    return gguf(tmp_path / "wild.gguf", fields, [entry(f"blk.0.{WILD}.weight", 0)], bytes(32))


@pytest.mark.parametrize("where", ["report", "json"])
def test_nothing_that_a_terminal_would_obey_is_printed(tinyq: Tinyq, wild: Path, where: str) -> None:
    ran = tinyq("inspect", wild, *(["--json", "-"] if where == "json" else []))
    assert ran.code == 0
    assert all(line.isprintable() for line in ran.out.split("\n"))
    assert "problem  faked" not in ran.out.splitlines()
    if where == "json":
        assert json.loads(ran.out)["architecture"] == WILD
    else:
        assert max(map(len, ran.out.splitlines())) <= 2000


def test_verify_and_surgery_print_escaped_names(tinyq: Tinyq, wild: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(wild, tmp_path / "other.gguf"))
    with other.open("r+b") as stream:
        stream.seek(-32, os.SEEK_END)
        stream.write(b"\1" * 4)
    for args in (("verify", wild, "--source", other), ("surgery", wild, "--swap", "0:1", "--dry-run")):
        ran = tinyq(*args)
        assert all(line.isprintable() for line in (ran.out + ran.err).split("\n"))


# Journals


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000,
        '{"size": Infinity, "note": "", "undoes": false, "patches": []}',
        '{"size": NaN, "note": "", "undoes": false, "patches": []}',
        '{"size": 1, "note": "", "undoes": false, "patches": [[1e999, "", ""]]}',
        '{"size": 1, "note": "", "undoes": false, "patches": [["1", 5, ""]]}',
        '{"size": 1, "note": "", "undoes": false, "patches": 7}',
        '{"size": ' + "9" * 5000 + "}",
        "[]",
        "\x00",
    ],
)
def test_a_journal_that_is_none(tinyq: Tinyq, tmp_path: Path, content: str) -> None:
    path = write_dense(tmp_path / "a.gguf", dense_tensors())
    before = path.read_bytes()
    (tmp_path / ".a.gguf.tinyq-journal").write_text(content)
    for way in ("--undo", "--in-place"):
        args = ("surgery", path, way) if way == "--undo" else ("surgery", path, "--swap", "0:1", way)
        assert "is not a journal or undo record written by tinyq" in one_line(tinyq(*args))
    assert path.read_bytes() == before


def test_half_of_two_models_is_not_run(bounded: Tinyq, tmp_path: Path) -> None:
    """Shards of two runs, and an interrupted change in place: llama.cpp runs both, so that the commands look first."""
    for chat in (False, True):
        whole = write_dense(tmp_path / "whole.gguf", chat=chat)
        (tmp_path / str(chat)).mkdir()
        assert bounded("split", whole, tmp_path / str(chat) / "m.gguf", "--max-tensors", 12).code == 0
    mixed, second = sorted((tmp_path / "True").glob("*.gguf"))[:2]
    shutil.copy(tmp_path / "False" / second.name, second)
    journal_path(whole).write_text("{}")
    for file, message in ((mixed, "belongs to another model"), (whole, "an in-place change was interrupted")):
        for line in (("ask", file, "hi"), ("chat", file), ("lm-eval", file, "--tasks", "x"), ("eval", file)):
            assert message in one_line(bounded(*line))
