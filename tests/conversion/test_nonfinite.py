"""NaN, infinity and what is too large for F16: refused by name in every way from weights to a file, or kept when asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from gguf_tools import convert, operate, quantize
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.sources.checkpoint import open_checkpoint
from tests.conftest import Ran
from tests.surgery.surgery_files import raw_tensors
from tests.tiny_models import change_tensors, checkpoint, dense, moe

Tinyq = Callable[..., Ran]
NAME, GGUF_NAME = "model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@pytest.fixture(params=list(BAD))
def value(request: pytest.FixtureRequest) -> float:
    return BAD[request.param]


@pytest.fixture
def folder(tmp_path: Path, value: float) -> Path:
    """A float32 checkpoint with one bad weight."""

    def spoil(found: dict[str, torch.Tensor]) -> None:
        found[NAME][1, 2] = value

    return change_tensors(checkpoint(tmp_path / "source", dense()), spoil)


def the_same(found: float, value: float) -> bool:
    return bool(np.array_equal(np.float32(found), np.float32(value), equal_nan=True))


def test_a_checkpoint_is_refused_or_kept(folder: Path, tmp_path: Path, value: float) -> None:
    out = tmp_path / "out.gguf"
    for kind in ("auto", "f32", "f16", "bf16", "q8_0"):
        with pytest.raises(InputError, match=r"holds -?(nan|inf) at row 1, column 2 .*--allow-nonfinite"):
            convert(folder, out, type=kind)
    for kind in ("auto", "f32", "f16", "bf16"):
        made = convert(folder, out, type=kind, allow_nonfinite=True, force=True)
        assert the_same(open_gguf(out).tensors[GGUF_NAME].array()[1, 2], value)
        assert made.as_dict()["nonfinite"] == {GGUF_NAME: {"weights": 1, "overflowed": 0}}
        assert f"1 weights are NaN or infinite in {GGUF_NAME}" in str(made)


def test_a_gguf_is_refused_or_kept(folder: Path, tmp_path: Path, value: float) -> None:
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    convert(folder, source, type="f32", allow_nonfinite=True)
    with pytest.raises(InputError, match="holds"):
        quantize(source, out, "f16")
    made = quantize(source, out, "f16", allow_nonfinite=True)
    assert made.as_dict()["nonfinite"] == {GGUF_NAME: {"weights": 1, "overflowed": 0}}
    assert the_same(open_gguf(out).tensors[GGUF_NAME].array()[1, 2], value)


@pytest.mark.parametrize("recipe", ["interpolate(0:1, 0.5)", "merge(0:1)", "scale(0@0.5)"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_blend_is_refused_or_kept(folder: Path, tmp_path: Path, recipe: str) -> None:
    source = tmp_path / "in.gguf"
    convert(folder, source, type="f32", allow_nonfinite=True)
    for given, name in ((source, "out.gguf"), (folder, "out")):
        with pytest.raises(InputError, match=r"tensor .* holds .*--allow-nonfinite"):
            operate(given, tmp_path / name, recipe)
        assert not (tmp_path / name).exists()
        operate(given, tmp_path / name, recipe, allow_nonfinite=True)
    assert not np.isfinite(open_gguf(tmp_path / "out.gguf").tensors[GGUF_NAME].array()[1, 2])
    assert not np.isfinite(open_checkpoint(tmp_path / "out").tensors[NAME].array()[1, 2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_copied_tensor_of_a_folder_is_looked_at(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    def spoil(found: dict[str, torch.Tensor]) -> None:
        found[NAME] = found[NAME].to(dtype)
        found[NAME][1, 2] = value

    source = change_tensors(checkpoint(tmp_path / "source", dense()), spoil)
    with pytest.raises(InputError, match=r"mlp\.down_proj\.weight holds -?(nan|inf) at row 1, column 2"):
        operate(source, tmp_path / "out", "swap(0:1)")
    assert not (tmp_path / "out").exists()
    operate(source, tmp_path / "out", "swap(0:1)", allow_nonfinite=True)
    moved = open_checkpoint(tmp_path / "out").tensors[NAME.replace(".0.", ".1.")].array()
    assert the_same(moved[1, 2], value)


def spoilt(path: Path, name: str, row: int, bits: int) -> Path:
    """The file with the F16 `bits` at the start of a row of the tensor: as a weight of F16, or as the scale of a block."""
    header = read_header(path)
    entry = next(entry for entry in header.tensors if entry.name == name)
    at = header.data_offset + entry.offset + row * entry.nbytes // prod(entry.shape[:-1])
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(bits.to_bytes(2, "little"))
    return path


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("bits", "shown"), [(0x7C00, "inf"), (0xFC00, "-inf"), (0x7E00, "nan")])
def test_what_a_gguf_keeps_is_looked_at(tmp_path: Path, kind: str, bits: int, shown: str) -> None:
    """Surgery and quantize refuse a scale that is not finite, or keep the block as it is."""
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    convert(checkpoint(tmp_path / "hf", dense()), source, type=kind)
    spoilt(source, GGUF_NAME, 2, bits)
    sign = "-?" if kind != "f16" else ""  # the scale's sign is not the first weight's
    for recipe in ("swap(0:1)", "duplicate(0)"):
        with pytest.raises(
            InputError, match=rf"in.gguf: tensor {GGUF_NAME} holds ({sign}{shown}|nan) at row 2, column 0 "
        ):
            operate(source, out, recipe)
    with pytest.raises(InputError, match=f"tensor {GGUF_NAME} holds .* at row 2"):
        quantize(source, out, kind, allow_requantize=True)
    assert not out.exists()
    before = raw_tensors(source)
    operate(source, out, "swap(0:1)", allow_nonfinite=True)
    assert raw_tensors(out)[GGUF_NAME.replace(".0.", ".1.")] == before[GGUF_NAME]
    made = quantize(source, out, kind, allow_requantize=True, allow_nonfinite=True, force=True)
    assert raw_tensors(out)[GGUF_NAME] == before[GGUF_NAME]
    assert list(made.as_dict()["nonfinite"]) == [GGUF_NAME]
    operate(source, recipe="swap(0:1)", in_place=True)  # which reads no weights


def test_the_place_of_an_expert_is_the_sources(tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    convert(checkpoint(tmp_path / "hf", moe()), source, type="f32")
    name = "blk.1.ffn_up_exps.weight"
    header = read_header(source)
    entry = next(entry for entry in header.tensors if entry.name == name)
    _, rows, columns = entry.shape
    row = 2 * rows + 3
    with source.open("r+b") as stream:
        stream.seek(header.data_offset + entry.offset + (row * columns + 1) * 4)
        stream.write(np.float32(np.nan).tobytes())
    with pytest.raises(InputError, match=f"tensor {name} holds nan at row {row}, column 1 "):
        operate(source, tmp_path / "out.gguf", "drop-experts(0..2:0)")
    operate(source, tmp_path / "out.gguf", "drop-experts(0..2:2)")


def test_doubles_and_float8_are_looked_at(tmp_path: Path) -> None:
    """What ggml cannot decode in a GGUF, and what no array type reads in a folder."""
    source = tmp_path / "in.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_uint32("llama.block_count", 1)
    doubles = np.ones((3, 4))
    doubles[1, 3] = np.inf
    writer.add_tensor("blk.0.attn_norm.weight", doubles)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for run in (
        lambda out, **more: operate(source, out, "duplicate(0)", **more),
        lambda out, **more: quantize(source, out, "q8_0", **more),
    ):
        with pytest.raises(InputError, match=r"tensor blk\.0\.attn_norm\.weight holds inf at row 1, column 3 "):
            run(tmp_path / "refused.gguf")
        run(tmp_path / "out.gguf", allow_nonfinite=True, force=True)

    def spoil(found: dict[str, torch.Tensor]) -> None:
        found[NAME] = found[NAME].to(torch.float8_e4m3fn)
        found[NAME].view(torch.uint8)[1, 2] = 0x7F

    folder = change_tensors(checkpoint(tmp_path / "hf", dense()), spoil)
    with pytest.raises(InputError, match=r"mlp\.down_proj\.weight holds nan at row 1, column 2"):
        operate(folder, tmp_path / "out", "swap(0:1)")


def test_overflow_of_f16_is_counted(tmp_path: Path, tinyq: Tinyq) -> None:
    def enlarge(found: dict[str, torch.Tensor]) -> None:
        found[NAME][3, :5] = 1e5
        found[NAME][3, 5] = float("inf")

    def only_large(found: dict[str, torch.Tensor]) -> None:
        found[NAME][3, 5] = 65519.0  # rounds to the largest

    source, out = change_tensors(checkpoint(tmp_path / "source", dense()), enlarge), tmp_path / "out.gguf"
    ran = tinyq("convert", source, out, "--type", "f16", "--allow-nonfinite", "--json", tmp_path / "r.json")
    assert ran.code == 0, ran.err
    assert (
        f"6 weights are NaN or infinite in {GGUF_NAME}, 5 of them because they are too large for their type"
        in " ".join(ran.out.split())
    )
    assert json.loads((tmp_path / "r.json").read_text())["nonfinite"] == {GGUF_NAME: {"weights": 6, "overflowed": 5}}
    change_tensors(source, only_large)
    ran = tinyq("convert", source, out, "--type", "f16", "--force")
    assert ran.code == 2
    assert f"tensor {GGUF_NAME} has a weight of magnitude 100000, too large for f16 (5 of the " in ran.err
