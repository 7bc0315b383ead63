"""For every op: surgery then conversion, both in one pass, and conversion then surgery give the same model.

Checkpoints are transformers' own classes with random weights, llama.cpp runs the files, and the torch reference runs the
operated Model, which nothing of the conversion has touched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from gguf_tools.errors import InputError
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import lift
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.conversion import operation_of
from surgery.model import operate
from surgery.ops import all_ops
from surgery.recipe import parse_text
from tests.oracle import Logits, convert, nmse, reference
from tests.surgery.surgery_files import operated, raw_tensors, with_donors
from tests.tiny_models import checkpoint, dense, hybrid, logits, moe

LIMIT = 1e-9
PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79), (7, 200, 11))
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {"dense": dense, "moe": moe, "hybrid": hybrid}
CASES = [
    ("dense", "swap(0:2)"),
    ("dense", "interpolate(0:2, 0.3)"),
    ("dense", "bridge(0:1)"),
    ("dense", "delete(1)"),
    ("dense", "duplicate(1)"),
    ("dense", "triple(0)"),
    ("dense", "repeat(0..1x2)"),
    ("dense", "reverse(0..2)"),
    ("dense", "cycle(0..2)"),
    ("dense", "move(0:2)"),
    ("dense", "path(0..1, 0, 2)"),
    ("dense", "scale(1@0.7)"),
    ("dense", "merge(0:1, method=slerp)"),
    ("dense", "duplicate(1) + attenuate(all)"),
    ("dense", "graft(B:1..2@2)"),
    ("moe", "interpolate(0:2, 0.3, method=slerp)"),
    ("moe", "graft(B:0@3) + merge(0:B:2) + interpolate(B:1:2@0.3=1,slerp)"),
    ("moe", "scale(0..1@1.5)"),
    ("moe", "drop-experts(0..2:1)"),
    ("moe", "swap-experts(1:0:3)"),
    ("moe", "swap(0:2, only=ffn)"),
    ("hybrid", "swap(0:1)"),
    ("hybrid", "interpolate(0:2, 0.3)"),
    ("hybrid", "interpolate(0:2, 0.3, replace=0, method=slerp)"),
    ("hybrid", "merge(0:2)"),
    ("hybrid", "scale(0..2@0.5)"),
    ("hybrid", "interpolate(0:1, 0.4, only=ffn)"),
    ("hybrid", "triple(1) + attenuate(0..3)"),
    ("hybrid", "graft(B:0..1@1) + interpolate(4:B:2@0.6)"),
    ("hybrid", "bridge(1:0) + swap-experts(0:1:2) + scale(2@0.9, only=attention) + drop-experts(0..3:0)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """A checkpoint in float32 and its conversion, by name and seed."""

    @cache
    def make(name: str, seed: int = 0) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(name)
        source = checkpoint(folder / "hf", CONFIGS[name](), seed=seed)
        return source, convert(source, folder / "whole.gguf")

    return make


def llama(path: Path) -> Logits:
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        return list(runtime.logits(PROMPTS))


def test_every_op_is_among_the_cases() -> None:
    assert {op.name for _, recipe in CASES for op in parse_text(recipe).ops} == set(all_ops())


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_three_ways_agree(made: Callable[..., tuple[Path, Path]], name: str, recipe: str, tmp_path: Path) -> None:
    source, whole = made(name)
    # B is another checkpoint of the same config, and its conversion.
    donors = [{"B": path} if "B:" in recipe else {} for path in made(name, 1)]
    models = {name: load_model(path) for name, path in donors[0].items()}
    want = reference(operate(load_model(source), parse_text(recipe), models), PROMPTS)

    folder = tmp_path / "operated"
    write_checkpoint(plan_checkpoint(source, with_donors(recipe, donors[0])), folder)
    first = convert(folder, tmp_path / "first.gguf")
    operation = operation_of(with_donors(recipe, donors[0]), source, None, digests=True)
    second = convert(source, tmp_path / "second.gguf", operation=operation)
    third = operated(whole, tmp_path / "third.gguf", recipe, donors[1])

    # The same bytes need not run twice.
    assert raw_tensors(first) == raw_tensors(second)
    assert nmse(llama(second), want) <= LIMIT
    assert nmse(llama(third), want) <= LIMIT
    assert reference(lift(open_gguf(third)), PROMPTS)[0].shape == want[0].shape


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_the_operated_folder(
    made: Callable[..., tuple[Path, Path]], name: str, tmp_path: Path
) -> None:
    source, _ = made(name)
    recipe = parse_text("interpolate(0:2, 0.3) + bridge(1:0) + scale(1@0.5) + swap(0:3)")
    folder = tmp_path / "operated"
    write_checkpoint(plan_checkpoint(source, recipe), folder)
    want = reference(operate(load_model(source), recipe), PROMPTS)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert nmse([part.numpy() for part in logits(network, PROMPTS)], want) <= LIMIT


def test_two_kinds_are_not_blended(made: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    source, whole = made("hybrid")
    recipe = parse_text("interpolate(0:1, 0.5)")
    with pytest.raises(InputError, match=r"0 has linear attention .* 1 has full attention"):
        operate(load_model(source), recipe)
    with pytest.raises(InputError, match=r"0 has linear attention .* 1 has full attention"):
        plan_checkpoint(source, recipe)
    with pytest.raises(InputError, match=r"0 has linear attention .* 1 has full attention"):
        operated(whole, tmp_path / "out.gguf", str(recipe))
    assert not (tmp_path / "out.gguf").exists()
