"""Torch files that strangers made: what torch.load would call has bounds, and every weight is one of the file's."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.pickle_calls import check_calls
from gguf_tools.formats.state_dict import read_state_dict

HUGE = 1 << 40


def named(name: str) -> bytes:
    """A class or function by its full name."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"\x8a" + bytes([8]) + struct.pack("<q", value)


def call(name: str, *args: bytes) -> bytes:
    return named(name) + b"(" + b"".join(args) + b"tR"


def storage(count: int = 8) -> bytes:
    """A reference to the record data/0 of float32 numbers."""
    return b"(" + text("storage") + named("torch.FloatStorage") + text("0") + text("cpu") + number(count) + b"tQ"


def rebuilt(count: int, stride: int = 1) -> bytes:
    """A vector of the file's storage."""
    args = (storage(), number(0), b"(" + number(count) + b"t", b"(" + number(stride) + b"t", b"\x89")
    return call("torch._utils._rebuild_tensor_v2", *args, call("collections.OrderedDict"))


def typed(name: str, *args: bytes) -> bytes:
    """The call of another function through torch's."""
    inner = b"(" + b"".join(args) + b"t"
    return call("torch._tensor._rebuild_from_type_v2", named(name), named("torch.Tensor"), inner, b"}")


def archive(path: Path, value: bytes) -> Path:
    """A file with the state dict {"w": the tensor of the record}, and a value beside."""
    whole = b"\x80\x02}(" + text("w") + rebuilt(8) + text("x") + value + b"u."
    with zipfile.ZipFile(path, "w") as out:
        for name, data in {"data.pkl": whole, "byteorder": b"little", "data/0": bytes(32), "version": b"3\n"}.items():
            out.writestr(f"archive/{name}", data)
    return path


ENDLESS = rebuilt(HUGE, 0)
HOSTILE = {
    "memory that nobody filled": (call("torch.FloatTensor", number(8)), "calls torch.FloatTensor, which makes a tensor of"),
    "through another call": (typed("torch.Tensor", number(8)), "calls torch.Tensor, which makes a tensor of"),
    "a copy": (
        call("torch._utils._rebuild_device_tensor_from_cpu_tensor", ENDLESS, named("torch.float64"), text("cpu"), b"\x89"),
        "calls torch._utils._rebuild_device_tensor_from_cpu_tensor, which makes a tensor of other numbers than the file's",
    ),
    "nested": (
        call("torch._utils._rebuild_nested_tensor", rebuilt(8), rebuilt(8), rebuilt(8), rebuilt(8)),
        "_rebuild_nested_tensor, which makes",
    ),
    "a set without end": (call("builtins.set", ENDLESS), "calls builtins.set with a _rebuild_tensor_v2; expected values of"),
    "of Python 2": (call("__builtin__.set", ENDLESS), "calls builtins.set with a _rebuild_tensor_v2"),
    "counted without end": (call("collections.Counter", ENDLESS), "calls collections.Counter with a"),
    "zeros": (call("builtins.bytearray", number(HUGE)), "calls builtins.bytearray with a int; expected values of"),
    "an encoding": (call("_codecs.encode", text("é" * 99), text("idna")), "calls _codecs.encode with an encoding that"),
    "a made object": (b"cbuiltins\nset\n)\x81" + b")R", "calls a Made"),
    "sparse without end": (
        call("torch._utils._rebuild_sparse_tensor", number(0), b"(" + ENDLESS + ENDLESS + b"(" + number(8) + b"t\x89t"),
        "calls torch._utils._rebuild_sparse_tensor with a tensor of more elements than its storage",
    ),
    "again and again": (
        b"](" + text("a" * 4000) + b"q\x01" + (named("_codecs.encode") + b"h\x01" + text("latin1") + b"\x86R") * 300 + b"e",
        "its pickle goes through its values again and again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_call_without_bounds_is_refused_before_it_is_made(tmp_path: Path, what: str) -> None:
    value, says = HOSTILE[what]
    path = archive(tmp_path / "w.pt", value)
    with pytest.raises(CheckpointError) as raised:
        read_state_dict(path)
    assert str(raised.value).startswith(f"{path}: its pickle ")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def _saved(value: object, *, zipped: bool) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("zipped", [True, False])
def test_what_programs_save_passes(tmp_path: Path, zipped: bool) -> None:
    """Also where torch refuses it afterwards."""
    weights = OrderedDict(a=torch.nn.Parameter(torch.ones(3, 4)), b=torch.ones(2, dtype=torch.uint16), c=torch.eye(3))
    tensor = torch.ones(2)
    tensor.note = "kept"  # type: ignore[attr-defined]
    values: dict[str, object] = {
        "model": weights,
        "module": torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)).state_dict(),
        "typed": tensor,
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_channel(torch.eye(3), torch.ones(3), torch.zeros(3), 0, torch.qint8),
        "meta": torch.ones(3, device="meta"),
        "others": [{1, 2}, Counter("abca"), bytearray(b"xy"), torch.Size([2, 3]), 1j, np.arange(5), np.float64(2), b"x" * 300],
        "type": (torch.float16, torch.device("cpu"), slice(1, 2)),
        "long": ["a" * 100, "b" * 100] * 50,
    }  # fmt: skip
    path = tmp_path / "w.pt"
    path.write_bytes(_saved(values, zipped=zipped))
    check_calls(path, zipped)
    for protocol in (2, 3, 4, 5) if zipped else (2,):
        torch.save(values, path, pickle_protocol=protocol)
        check_calls(path, True)


def test_an_older_file_that_lacks_a_storage(tmp_path: Path) -> None:
    """torch would leave the memory of the weights as it is."""
    path = tmp_path / "w.bin"
    whole = _saved({"w": torch.arange(4.0)}, zipped=False)
    keys = pickle.dumps([], protocol=2)
    at = whole.rindex(b"\x80\x02]")
    path.write_bytes(whole[:at] + keys + whole[at + whole[at:].index(b".") + 1 :])
    with pytest.raises(
        CheckpointError, match=r"does not hold storage .*, to which its pickle refers; the file is corrupt"
    ):
        read_state_dict(path)


def test_a_conjugate_lies_in_memory_that_is_not_given_back(tmp_path: Path) -> None:
    """What torch computed is read twice: its pages are not the file's, and would be zeros the second time."""
    values = torch.complex(torch.ones(300, 400), torch.full((300, 400), 2.0))
    torch.save({"w": values.conj(), "v": values}, tmp_path / "w.pt")
    tensors = read_state_dict(tmp_path / "w.pt").tensors
    for _ in range(2):
        assert np.array_equal(tensors["w"].array(), np.broadcast_to(np.array([1.0, -2.0]), (300, 400, 2)))
        assert np.array_equal(tensors["v"].array(), np.broadcast_to(np.array([1.0, 2.0]), (300, 400, 2)))


@pytest.mark.parametrize("kind", ["bits8", "bits16", "float4_e2m1fn_x2"])
def test_elements_that_are_no_numbers(tmp_path: Path, kind: str) -> None:
    tensor = torch.ones(4, 4, dtype=torch.uint8).view(getattr(torch, kind))
    torch.save({"w": tensor}, tmp_path / "w.pt")
    with pytest.raises(
        CheckpointError, match=f"tensor w is stored as {kind}, whose elements are no numbers to torch; save"
    ):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "float8_e8m0fnu", "float8_e4m3fnuz", "int8", "bool"])
def test_unusual_types_of_numbers_are_read(tmp_path: Path, kind: str) -> None:
    tensor = torch.ones(4, dtype=torch.float32).to(getattr(torch, kind))
    torch.save({"w": tensor}, tmp_path / "w.pt")
    assert read_state_dict(tmp_path / "w.pt").tensors["w"].numbers(0, 4).tolist() == [1.0] * 4
