"""Files of golden logits that are broken in the parts that numpy and zipfile read."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import InputError
from gguf_tools.evaluation import golden_logits
from gguf_tools.evaluation.golden_logits import read_golden


def saved(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def written(path: Path, logits: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    tokens = io.BytesIO()
    np.save(tokens, np.arange(2))
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("tokens_0.npy", tokens.getvalue())
        archive.writestr("logits_0.npy", logits)
    return path


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'shape': (2, 3",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n  1\n 2",
        "(" * 110,
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': [('a', '<f4'), ('a', 7)], 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, \"x\"), }",
        "\x00\xff",
    ],
)
def test_headers_that_are_not_pythons_syntax(tmp_path: Path, header: str) -> None:
    data = saved(np.zeros((2, 3), np.float32))
    broken = data[:10] + header.encode("latin-1").ljust(117) + b"\n" + data[128:]
    with pytest.raises(InputError, match="golden logits cannot be read") as found:
        read_golden(written(tmp_path / "g.npz", broken))
    assert "\n" not in str(found.value)


def test_an_archive_that_expands_without_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "g.npz", saved(np.zeros((2, 30_000), np.float32)), zipfile.ZIP_DEFLATED)
    assert len(read_golden(path)) == 1
    monkeypatch.setattr(golden_logits, "LEAST", 1000)
    with pytest.raises(InputError, match=r"they expand to 240,\d+ bytes, more than 32 times the file"):
        read_golden(path)


def test_a_compressed_member_that_is_broken(tmp_path: Path) -> None:
    path = written(tmp_path / "g.npz", saved(np.arange(600, dtype=np.float32).reshape(2, 300)), zipfile.ZIP_DEFLATED)
    assert len(read_golden(path)) == 1
    data = bytearray(path.read_bytes())
    at = data.index(b"logits_0.npy") + 60
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match="golden logits cannot be read"):
        read_golden(path)
