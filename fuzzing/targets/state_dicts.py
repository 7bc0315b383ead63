"""Torch state dicts: whole files, old ones that are bare pickles, and the pickle inside of a file."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.families.registry import family_named, load_model
from gguf_tools.formats.state_dict import read_state_dict
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.targets.planner import plan

STAND_INS = {
    "@tensor": torch.ones(3),
    "@one": torch.ones(()),
    "@set": {1, 2},
    "@bytes": b"x",
    "@dtype": torch.bfloat16,
    "@size": torch.Size([1, 2]),
    "@long": 1 << 1900,
    "@complex": 1j,
}
"""Texts in a config that stand for what JSON does not have."""
WORDS = [
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"cposix\nsystem\n",
    ),
    *(
        b"cnumpy\nndarray\n",
        b"cpathlib\nPosixPath\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nSize\n",
        b"cbuiltins\nint\n",
    ),
    *(
        b"ctorch._utils\n_rebuild_sparse_tensor\n",
        b"ctorch._utils\n_rebuild_qtensor\n",
        b"ctorch\nbfloat16\n",
        b"ctorch\ndevice\n",
    ),
    *(
        b")",
        b"}",
        b"]",
        b"(",
        b"t",
        b"R",
        b"Q",
        b"b",
        b"s",
        b"u",
        b"a",
        b"e",
        b"q\x00",
        b"h\x00",
        b"r\xff\xff\xff\x7f",
        b"\x85",
        b"\x86",
        b"\x87",
    ),
    *(
        b"K\x04",
        b"M\xff\xff",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"X\x05\x00\x00\x00model",
        b"\x88",
        b"N",
        b"0",
    ),
    *(b"\x8a\xff", b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"."),
]


def _values() -> list[object]:
    """What programs save: weights alone, a training checkpoint, other types."""
    weights = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.tensor(3)}
    return [
        weights,
        {"model": weights, "cfg": {"hidden": 3, "name": "x"}, "step": 7, "lr": 0.5},
        {"state_dict": {"t": torch.ones(2, 3).t(), "k": torch.ones(1, dtype=torch.complex64)}},
    ]


def _saved(value: object, *, zipped: bool) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def _load(path: Path) -> bool:
    found = read_state_dict(path)
    for tensor in found.tensors.values():
        tensor.numbers(0, min(tensor.size, 8))
    return bool(found.tensors)


def _file(folder: Path) -> Prepared:
    path = folder / "model.pt"

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return _load(path)

    return Prepared([_saved(value, zipped=zipped) for value in _values() for zipped in (True, False)], read)


def _pickle(folder: Path) -> Prepared:
    """The input is the pickle of a file that has two records."""
    path = folder / "model.pt"
    seeds = []
    for value in _values():
        with zipfile.ZipFile(io.BytesIO(_saved(value, zipped=True))) as archive:
            seeds += [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]

    def read(data: bytes) -> bool:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/byteorder", b"little")
            for number, size in enumerate((24, 8, 8)):
                archive.writestr(f"archive/data/{number}", bytes(size))
            archive.writestr("archive/version", b"3\n")
        return _load(path)

    return Prepared(seeds, read)


def _pickled(value: Any) -> Any:
    """A JSON value with the stand-ins in place of their names; `@self` is a list that contains itself."""
    if isinstance(value, dict):
        return {
            STAND_INS.get(key, key) if key in ("@long", "@bytes", "@dtype") else key: _pickled(x)
            for key, x in value.items()
        }
    if isinstance(value, list):
        items = [_pickled(item) for item in value]
        return [*items, items] if value[:1] == ["@self"] else items
    return STAND_INS.get(value, value) if isinstance(value, str) else value


def _config(folder: Path) -> Prepared:
    """The config in a training checkpoint, as far as the model."""
    family = family_named("moe-model")
    assert family.tiny
    family.tiny(folder, "pt", 1)
    path = folder / "final.pt"
    whole = torch.load(path, weights_only=True)
    seeds = [json.dumps(whole["cfg"]).encode()]

    def read(data: bytes) -> bool:
        try:
            whole["cfg"] = _pickled(json.loads(data))
            torch.save(whole, path)
        except (ValueError, RecursionError, TypeError, pickle.PicklingError):
            return False
        return bool(plan(load_model(folder)))

    return Prepared(seeds, read)


def _llama2c(folder: Path) -> Prepared:
    """A file of llama2.c's; an input is its header, or the whole file."""
    path = folder / "model.bin"
    sizes = (16, 8, 1, 2, 2, 5, 4)
    heads = [struct.pack("<7i", *sizes), struct.pack("<Ii7ib", 0x616B3432, 1, *sizes, 1).ljust(256, b"\0")]
    weights = 2 * 16 + 5 * 16 + 4 * 16 * 16 + 3 * 8 * 16 + 16

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return bool(open_checkpoint(path).tensors)

    return Prepared([heads[0] + bytes(4 * (weights + 4 * 8)), heads[1] + bytes(4 * weights)], read)


TARGETS = (
    Target(
        name="state-dict",
        title="torch state dict, whole file",
        prepare=_file,
        words=WORDS,
        longest=8192,
        executions=100_000,
        short=100,
    ),
    Target(
        name="state-dict-pickle",
        title="torch state dict, its pickle",
        prepare=_pickle,
        words=WORDS,
        longest=2000,
        executions=300_000,
    ),
    Target(
        name="state-dict-config",
        title="config in a torch state dict, as far as the plan",
        prepare=_config,
        mutate=json_mutator(
            ["d_model", "n_layers", "n_q_heads", "rope_theta", "@long", "@bytes", "@dtype", "smear_gate"],
            [*STAND_INS, ["@self", 1]],
        ),
        executions=30_000,
        short=30,
        deep=True,
    ),
    Target(
        name="llama2c",
        title="llama2.c's .bin",
        prepare=_llama2c,
        words=[struct.pack("<i", n) for n in (1, 2, 3, -5, 16, 1 << 30, -(1 << 31))],
        longest=9000,
        executions=200_000,
    ),
)
