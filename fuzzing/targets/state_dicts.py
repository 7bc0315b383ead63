"""Torch state dicts: whole files, old ones that are bare pickles, and the pickle inside of a file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch

from fuzzing.target import Prepared, Target
from gguf_tools.formats.state_dict import read_state_dict

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
)
