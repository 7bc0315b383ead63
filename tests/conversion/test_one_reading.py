"""Several types written from one reading of the source: the same bytes as one conversion for each, and no row read twice."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_tools.bundled import bundled_model
from gguf_tools.conversion.plan import open_source, prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute, execute_all
from gguf_tools.errors import InputError, LlamaError
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.imatrix import write_imatrix
from gguf_tools.tensors.base import Tensor
from gguf_tools.tokenizers.vocabulary import Tokenizer
from quant.encode import FloatArray, RawArray
from quant.imatrix import ImportanceMatrix, Statistics
from quant.types import TensorType
from tests import tiny_models
from tests.tiny_models import change_tensors, checkpoint

TYPES = ("f32", "bf16", "q8_0", "q6_k", "q4_k_m", "q2_k")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    wide = {"hidden_size": 256, "intermediate_size": 256}
    return {
        "dense": bundled_model("dense"),
        "moe": checkpoint(folder / "moe", tiny_models.moe(**wide, moe_intermediate_size=256)),
    }


def matrix_for(path: Path, folder: Path) -> Path:
    """An importance matrix of random numbers for a GGUF's matrices, one row for each expert."""
    random = np.random.default_rng(0)
    found = {}
    for entry in read_header(path).tensors:
        if len(entry.shape) > 1 and entry.name != "token_embd.weight":
            matrices = entry.shape[0] if len(entry.shape) == 3 else 1
            sums = random.uniform(0.1, 9.0, (matrices, entry.shape[-1])).astype(np.float32)
            found[entry.name] = Statistics(sums, np.full(matrices, 7, np.int64))
    made = folder / "matrix.gguf"
    write_imatrix(ImportanceMatrix(entries=found), made)
    return made


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("weighed", [False, True])
def test_each_file_has_the_bytes_of_a_conversion_of_its_own(
    sources: dict[str, Path], tmp_path: Path, kind: str, weighed: bool
) -> None:
    source = sources[kind]
    alone = {name: tmp_path / f"{name}-alone.gguf" for name in TYPES}
    execute(prepare(Request(source=source, type="f32")), alone["f32"])
    matrix = matrix_for(alone["f32"], tmp_path) if weighed else None
    request = Request(source=source, type=TYPES[0], imatrix=matrix)
    opened = open_source(request)
    wanted = [(prepare(replace(request, type=name), opened), tmp_path / f"{name}.gguf") for name in TYPES]
    written = execute_all(wanted, threads=2)
    for name, one in zip(TYPES, written, strict=True):
        single = execute(prepare(replace(request, type=name)), alone[name], force=True)
        assert one.path.read_bytes() == alone[name].read_bytes(), name
        assert (one.losses, one.by_tensor, one.bytes) == (single.losses, single.by_tensor, single.bytes)


@dataclass(frozen=True)
class Counting(Tensor):
    """A tensor that counts how often each of its weights is read."""

    inner: Tensor
    reads: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.shape

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.inner.dtype

    @property
    def sources(self) -> tuple[str, ...]:
        return self.inner.sources

    @property
    def stored(self) -> TensorType:
        return self.inner.stored

    def flat(self, start: int, stop: int) -> FloatArray:
        self.reads[start:stop] += 1
        return self.inner.flat(start, stop)

    def raw(self, start: int, stop: int) -> RawArray:
        self.reads[start:stop] += 1
        return self.inner.raw(start, stop)


def test_every_weight_is_read_once_for_all_types(sources: dict[str, Path], tmp_path: Path) -> None:
    request = Request(source=sources["moe"], type=TYPES[0])
    opened = open_source(request)
    plans = [prepare(replace(request, type=name), opened) for name in TYPES]
    counted = tuple(Counting(tensor, np.zeros(tensor.size, np.int64)) for tensor in opened.tensors)
    wanted = [
        (replace(plan, tensors=counted), tmp_path / f"{name}.gguf") for plan, name in zip(plans, TYPES, strict=True)
    ]
    execute_all(wanted, threads=2)
    assert all((tensor.reads == 1).all() for tensor in counted)


def test_one_type_that_cannot_be_written_leaves_no_file(sources: dict[str, Path], tmp_path: Path) -> None:
    """A weight too large for F16 fails that file alone, in the middle: none of the others appears."""
    folder = tmp_path / "large"
    shutil.copytree(sources["moe"], folder)
    change_tensors(folder, lambda found: {name: t * 1e6 if "q_proj" in name else t for name, t in found.items()})
    request = Request(source=folder, type="f32")
    opened = open_source(request)
    out = tmp_path / "out"
    out.mkdir()
    wanted = [(prepare(replace(request, type=name), opened), out / f"{name}.gguf") for name in ("f32", "f16")]
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight"):
        execute_all(wanted)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("when", ["prove_header", "prove"])
def test_a_file_that_llama_cpp_refuses_is_named_as_the_user_named_it(
    sources: dict[str, Path], tmp_path: Path, when: str
) -> None:
    """The temporary file that was tried is gone when the error is read."""
    out = tmp_path / "out.gguf"

    def refuses(path: Path, _: Tokenizer) -> None:
        assert path != out
        raise LlamaError(f"{path}: llama.cpp failed (load): the model cannot be loaded")

    planned = prepare(Request(source=next(iter(sources.values())), type="f32"))
    proof: dict[str, Any] = {when: refuses}
    with pytest.raises(LlamaError) as raised:
        execute(planned, out, **proof)
    assert str(raised.value) == (
        f"{out}: the converted file does not run, so nothing was written: llama.cpp failed (load): the model cannot be loaded"
    )
    assert not list(tmp_path.iterdir())
