"""Surgery and quantization of families with convolutions and state spaces: the model, the checkpoint and the file agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from gguf_tools.families.registry import family_named, load_model
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.source import gguf_tensors
from gguf_tools.quantization.plan import QuantizeRequest, prepare
from gguf_tools.quantization.write import execute
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from quant.recipes import recipe as type_recipe
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.model import operate
from surgery.recipe import parse_text
from tests.oracle import Logits, convert, nmse, reference
from tests.quant.quant_oracle import llama
from tests.surgery.surgery_files import operated, raw_tensors

LIMIT = 1e-10
PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79), (7, 200, 11))
SOURCES = {"mamba2": "plain", "falcon-h1": "plain", "lfm2-moe": "plain", "granite-hybrid": "plain", "bamba": "plain"}
CASES = [
    ("mamba2", "swap(0:2) + duplicate(1)"),
    ("mamba2", "interpolate(0:2, 0.3) + scale(1@0.5)"),
    ("falcon-h1", "interpolate(0:1, 0.3) + swap(1:2)"),
    ("falcon-h1", "swap(0:1, only=ffn) + scale(2@0.8) + duplicate(1) + attenuate(all)"),
    ("granite-hybrid", "swap(0:1) + duplicate(2)"),
    ("granite-hybrid", "interpolate(0:2, 0.3) + scale(1@0.7) + drop-experts(0..3:1)"),
    ("bamba", "swap(0:1) + duplicate(2)"),
    ("lfm2-moe", "swap(2:3) + scale(1@0.7) + duplicate(2)"),
    ("lfm2-moe", "duplicate(1) + attenuate(all)"),
    ("lfm2-moe", "interpolate(2:3, 0.3) + drop-experts(1..4:0)"),
]
Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small checkpoint of the family and its conversion."""

    @cache
    def make(family: str) -> tuple[Path, Path]:
        folder, write = tmp_path_factory.mktemp("made"), family_named(family).tiny
        assert write
        write(folder / "source", SOURCES[family], 1)
        return folder / "source", convert(folder / "source", folder / "whole.gguf")

    return make


def run(path: Path) -> Logits:
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        return list(runtime.logits(PROMPTS))


@pytest.mark.parametrize(("family", "recipe"), CASES)
def test_three_ways_agree(made: Made, family: str, recipe: str, tmp_path: Path) -> None:
    source, whole = made(family)
    want = reference(operate(load_model(source), parse_text(recipe)), PROMPTS)
    write_checkpoint(plan_checkpoint(source, parse_text(recipe)), tmp_path / "operated")
    assert nmse(reference(load_model(tmp_path / "operated"), PROMPTS), want) <= 1e-12
    third = operated(whole, tmp_path / "third.gguf", recipe)
    assert nmse(run(third), want) <= LIMIT
    first = convert(tmp_path / "operated", tmp_path / "first.gguf")
    if any(op in recipe for op in ("interpolate", "scale", "attenuate")):
        assert nmse(run(first), want) <= LIMIT
    else:
        assert raw_tensors(first) == raw_tensors(third)


@pytest.mark.parametrize("family", SOURCES)
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_quantized_as_llama_cpp_does(made: Made, family: str, kind: str, tmp_path: Path) -> None:
    _, whole = made(family)
    llama().quantize(whole, tmp_path / "theirs.gguf", type_recipe(kind).file_type)
    execute(prepare(QuantizeRequest(source=whole, type=kind)), tmp_path / "ours.gguf", force=True, threads=1)
    ours, theirs = read_header(tmp_path / "ours.gguf"), read_header(tmp_path / "theirs.gguf")
    assert ours.tensors == theirs.tensors
    assert {entry.type.name.lower() for entry in ours.tensors} - {"f32"}
    for a, b in zip(gguf_tensors(ours), gguf_tensors(theirs), strict=True):
        assert a.read(0, a.entry.nbytes).tobytes() == b.read(0, b.entry.nbytes).tobytes(), a.entry.name
