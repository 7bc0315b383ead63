"""Reading safetensors files: right ones as the library does, broken and hostile ones with one line that says so."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.safetensors import read_safetensors

HEADER_LENGTH = 8
GENERATOR = torch.Generator().manual_seed(1)
TENSORS = {
    "wide": torch.randn(3, 50, generator=GENERATOR, dtype=torch.float64),
    "plain": torch.randn(4, 5, generator=GENERATOR),
    "half": torch.randn(2, 3, 4, generator=GENERATOR).to(torch.float16),
    "brain": torch.randn(7, generator=GENERATOR).to(torch.bfloat16),
    "number": torch.tensor(1.5),
}


def file_of(header: object, data: bytes = bytes(64)) -> bytes:
    """A file with this header; bytes are taken as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return path

    return write


def refused(path: Path) -> str:
    """The one line that a broken file gives, with the file's name in it."""
    with pytest.raises(CheckpointError) as raised:
        read_safetensors(path)
    message = str(raised.value)
    assert path.name in message
    return message


def test_every_float_type_is_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, {"format": "pt", "made by": "ünïcode"})
    found, metadata = read_safetensors(path)
    assert metadata == {"format": "pt", "made by": "ünïcode"}
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(found[name].array(), tensor.to(torch.float32).numpy())
    assert [found[name].dtype for name in TENSORS] == ["F64", "F32", "F16", "BF16", "F32"]


@settings(max_examples=50)
@given(st.data(), st.sampled_from(("wide", "plain", "half", "brain")))
def test_pieces_are_parts_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.safetensors"
    if not path.exists():
        save_file(TENSORS, path)
    tensor = read_safetensors(path)[0][name]
    start = data.draw(st.integers(0, tensor.size))
    stop = data.draw(st.integers(start, tensor.size))
    np.testing.assert_array_equal(tensor.flat(start, stop), tensor.array().reshape(-1)[start:stop])


def test_a_tensor_of_integers_is_listed_and_refused_when_read(written: Callable[[bytes], Path]) -> None:
    found, _ = read_safetensors(written(save({"packed": torch.ones(4, dtype=torch.uint8)})))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor packed is stored as U8; expected F64"):
        found["packed"].array()


@given(st.integers(0, 10_000))
def test_a_truncated_file_is_noticed_at_any_length(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    whole = save(TENSORS)
    path = tmp_path_factory.getbasetemp() / "truncated.safetensors"
    path.write_bytes(whole[: length % len(whole)])
    assert any(word in refused(path) for word in ("truncated", "too few"))


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_header_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever a few changed bytes make of the header: no other exception, and nothing read from outside of the data."""
    damaged = bytearray(save(TENSORS))
    header_end = HEADER_LENGTH + int.from_bytes(damaged[:HEADER_LENGTH], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        for tensor in read_safetensors(path)[0].values():
            assert tensor.array().shape == tensor.shape


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few"),
    "a length and no more": (struct.pack("<Q", 2), "the header claims 2 bytes, but the file has 8"),
    "a header longer than the file": (struct.pack("<Q", 1 << 63) + b"{}", "claims 9223372036854775808 bytes"),
    "a header longer than any": (struct.pack("<Q", 100_000_001) + b"{}", "claims 100000001 bytes"),
    "no JSON": (file_of(b"\x93NUMPY"), "not JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "cut JSON": (file_of(b'{"a": {"dtype"'), "not JSON"),
    "deep lists": (file_of(b"[" * 100_000), "not JSON"),
    "deep objects": (file_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "not JSON"),
    "a number of many digits": (file_of(b'{"a": 1' + b"0" * 5000 + b"}"), "not JSON"),
    "a list": (file_of([1]), "the header is a JSON list; expected an object"),
    "null": (file_of(None), "expected an object"),
    "metadata that are a list": (file_of({"__metadata__": [1], "a": entry()}), "__metadata__ is a list"),
    "metadata that are text": (file_of({"__metadata__": "x", "a": entry()}), "__metadata__ is a str"),
    "an entry that is null": (file_of({"a": None}), "tensor a has a broken header entry"),
    "an entry that is text": (file_of({"a": "F32"}), "tensor a has a broken header entry"),
    "no type": (file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}), "tensor a has a broken"),
    "a type that is a list": (file_of({"a": entry(dtype=["F32"])}), "tensor a has a broken"),
    "a type that is null": (file_of({"a": entry(dtype=None)}), "tensor a has a broken"),
    "a type that nobody knows": (
        file_of({"a": entry(dtype="F12")}),
        "tensor a has dtype F12; expected one of F64, F32",
    ),
    "a negative shape": (file_of({"a": entry(shape=[-2, -2])}), "tensor a has a broken"),
    "a shape of truth values": (file_of({"a": entry(shape=[True, 4])}), "tensor a has a broken"),
    "a shape of fractions": (file_of({"a": entry(shape=[2.0, 2])}), "tensor a has a broken"),
    "a shape that is text": (file_of({"a": entry(shape="22")}), "tensor a has a broken"),
    "a shape of too many axes": (file_of({"a": entry(shape=[1] * 10_000 + [4])}), "tensor a has a broken"),
    "a shape beyond all memory": (file_of({"a": entry(shape=[1 << 62, 1 << 62])}), "spans 16 bytes"),
    "a shape that does not fit": (
        file_of({"a": entry(shape=[2, 3])}),
        "tensor a of shape (2, 3) in F32 spans 16 bytes",
    ),
    "one offset": (file_of({"a": entry(data_offsets=[0])}), "tensor a has a broken"),
    "three offsets": (file_of({"a": entry(data_offsets=[0, 16, 32])}), "tensor a has a broken"),
    "a negative offset": (file_of({"a": entry(data_offsets=[-16, 0])}), "tensor a has a broken"),
    "offsets the other way round": (file_of({"a": entry(data_offsets=[16, 0])}), "spans -16 bytes"),
    "offsets beyond the file": (file_of({"a": entry(data_offsets=[900, 916])}), "tensor a ends at byte"),
    "tensors that overlap": (
        file_of({"a": entry(), "b": entry(data_offsets=[8, 24])}),
        "tensor b overlaps the tensor before it",
    ),
    "the same data twice": (file_of({"a": entry(), "b": entry()}), "overlaps the tensor before it"),
}


@pytest.mark.parametrize(("data", "expected"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_file_is_refused(written: Callable[[bytes], Path], data: bytes, expected: str) -> None:
    assert expected in refused(written(data))


def test_a_huge_claim_allocates_nothing(written: Callable[[bytes], Path]) -> None:
    path = written(file_of({"a": entry(shape=[1 << 20, 1 << 20], data_offsets=[0, 4 << 40])}))
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(("a", "b", "__metadata__")),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(("dtype", "shape", "data_offsets")), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_any_header_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(file_of(header))
    try:
        found, metadata = read_safetensors(path)
    except CheckpointError:
        return
    assert all(
        tensor.offset + 4 * tensor.size <= path.stat().st_size for tensor in found.values() if tensor.dtype == "F32"
    )
    assert all(isinstance(value, str) for value in metadata.values())


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(CheckpointError, match="not a regular file"):
            DataFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: cannot be read \(No such file"):
        DataFile(tmp_path / "gone.safetensors")


def test_a_disk_that_fails_is_said_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(100))
    file = DataFile(path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be read at byte 40 \(Input/output error\)"):
        file.read(40, 8)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(written: Callable[[bytes], Path]) -> None:
    path = written(save(TENSORS))
    last = max(read_safetensors(path)[0].values(), key=lambda tensor: tensor.offset)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"ends at byte \d+; expected \d+ bytes"):
        last.array()
