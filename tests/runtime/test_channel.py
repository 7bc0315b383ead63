"""Frames between `Runtime` and its worker: what arrives is what was sent, and what is no frame is said so."""

from __future__ import annotations

import io
import json
import os
import struct
from io import RawIOBase
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from gguf_tools.errors import LlamaError
from gguf_tools.runtime import channel
from gguf_tools.runtime.channel import (
    ChannelClosedError,
    NoFrameError,
    await_begin,
    begin,
    read_frame,
    write_frame,
)
from gguf_tools.runtime.process import Runtime, RuntimeOptions


def stream(data: bytes = b"") -> RawIOBase:
    return cast(RawIOBase, io.BytesIO(data))


def framed(header: bytes, after: bytes = b"") -> RawIOBase:
    return stream(struct.pack("<I", len(header)) + header + after)


@pytest.mark.parametrize("noise", [b"", b"\0", b"hello\n" * 1000, channel._MARK[:-1], channel._MARK[:5] * 3])
def test_noise_before_the_first_frame_is_skipped(noise: bytes) -> None:
    pipe = io.BytesIO()
    pipe.write(noise)
    begin(cast(RawIOBase, pipe))
    write_frame(cast(RawIOBase, pipe), {"kind": "x"}, np.arange(6, dtype=np.int32).reshape(2, 3))
    pipe.seek(0)
    await_begin(cast(RawIOBase, pipe))
    frame = read_frame(cast(RawIOBase, pipe))
    assert frame.header["kind"] == "x"
    assert frame.array is not None
    assert frame.array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_noise_without_end_is_an_error() -> None:
    with pytest.raises(NoFrameError, match="bytes before the first answer"):
        await_begin(stream(b"x" * (1 << 19)))
    with pytest.raises(ChannelClosedError):
        await_begin(stream(b"x"))


@pytest.mark.parametrize(
    "header",
    [
        b"\xff",
        b"5",
        b"[" * 100_000,
        b'{"dtype": "O", "shape": []}',
        b'{"dtype": "<f4"}',
        b'{"dtype": "<f4", "shape": 5}',
        b'{"dtype": "<f4", "shape": [-1]}',
        b'{"dtype": "<f4", "shape": [4611686018427387904, 4]}',
        b'{"dtype": "<f4", "shape": ["x"]}',
        b'{"dtype": "<f4", "shape": [Infinity]}',
    ],
    ids=lambda header: repr(header[:40]),
)
def test_what_is_no_frame(header: bytes) -> None:
    with pytest.raises(NoFrameError):
        read_frame(framed(header))


def test_a_header_that_cannot_be_is_not_waited_for() -> None:
    with pytest.raises(NoFrameError, match="a header of 1,819,043,176 bytes"):
        read_frame(stream(b"hello from a library"))
    with pytest.raises(ChannelClosedError):
        read_frame(framed(json.dumps({"dtype": "<f4", "shape": [9]}).encode(), b"short"))


SITE = "print('hello from this environment', flush=True)\n"
BABBLING = """
import sys
if "gguf_tools.runtime.worker" in sys.orig_argv:
    import os
    while True:
        os.write(1, b"x" * 4096)
"""


def test_an_environment_that_prints_when_python_starts(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with Runtime(chat, RuntimeOptions(threads=1, vocab_only=True, timeout=60.0)) as runtime:
        assert runtime.detokenize(runtime.tokenize("hi")) == "hi"
    (tmp_path / "sitecustomize.py").write_text(BABBLING)
    with (
        pytest.raises(LlamaError, match="its process sent what is no answer"),
        Runtime(chat, RuntimeOptions(threads=1, vocab_only=True, timeout=60.0)),
    ):
        pass
