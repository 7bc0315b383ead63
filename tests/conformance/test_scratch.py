"""The custom families: our reference against the published forward pass, and llama.cpp against our reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gguf_tools.conversion.plan import open_source, prepare
from gguf_tools.conversion.request import Request
from gguf_tools.families.registry import all_families, load_model
from gguf_tools.formats.gguf.header import read_header
from tests.families.scratch.published import FORWARD, read
from tests.made_checkpoints import Made
from tests.oracle import PROMPTS, convert, greedy_agrees, lifted_reference, llama, reference

EXACT = 1e-9
ROUNDED = 1e-12
"""What is left of rounding folded weights to float32."""
CASES = [(family.name, variant) for family in all_families() if family.name in FORWARD for variant in family.variants]
APPROXIMATE = ("moe-model", "nonzero bias")
TARGETS = {"qwen-moe-simplified": "step35", "qwen3-from-scratch": "qwen3", "moe-model": "step35"}


def worst(got: Sequence[NDArray[Any]], want: Sequence[NDArray[Any]]) -> float:
    """The largest squared difference of a single position's logits, in parts of their square."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(got, want, strict=True)]
    return max(float((np.square(a - b).sum(-1) / np.square(b).sum(-1)).max()) for a, b in pairs)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_reference_is_the_published_forward(made: Made, family: str, variant: str) -> None:
    folder = made(family, variant)
    weights, config = read(folder)
    wanted = [FORWARD[family](weights, config, torch.tensor(prompt)).numpy() for prompt in PROMPTS[1:]]
    model = load_model(folder)
    assert model.family == family
    assert worst(reference(model, PROMPTS[1:]), wanted) < 1e-24


@pytest.mark.parametrize(("family", "variant"), [case for case in CASES if case != APPROXIMATE])
def test_llama_cpp_is_the_reference(made: Made, tmp_path: Path, family: str, variant: str) -> None:
    folder = made(family, variant)
    out = convert(folder, tmp_path / "out.gguf")
    assert read_header(out).architecture == TARGETS[family]
    model = load_model(folder)
    wanted = reference(model)
    logits, continuations = llama(out)
    assert worst(logits, wanted) <= EXACT
    assert worst(lifted_reference(out), wanted) <= ROUNDED
    assert greedy_agrees(model, continuations)


@pytest.mark.parametrize(
    ("type_name", "activations", "weights"), [("f16", 1e-5, 1e-5), ("q8_0", 0.01, 0.01), ("q4_k_m", 0.05, 0.2)]
)
@pytest.mark.parametrize(
    ("family", "variant"), [(name, CASES[[f for f, _ in CASES].index(name)][1]) for name in FORWARD]
)
def test_quantized(
    made: Made, tmp_path: Path, family: str, variant: str, type_name: str, activations: float, weights: float
) -> None:
    folder = made(family, variant)
    out = convert(folder, tmp_path / "out.gguf", type_name)
    prompts = PROMPTS[1:]
    logits, _ = llama(out)
    assert worst(logits[1:], lifted_reference(out, prompts)) < activations * 10
    whole, wanted = np.concatenate(logits[1:]), np.concatenate(reference(load_model(folder), prompts))
    assert np.square(whole - wanted).sum() / np.square(wanted).sum() < weights
    report = prepare(Request(source=folder, type=type_name, threads=1)).report
    # Rows of 40 and 48 are whole blocks of no quantized type.
    assert bool(report.fall_backs) == (type_name != "f16")


def test_cost_is_planned(made: Made) -> None:
    plan = open_source(Request(source=made("moe-model", "stacked"))).plan
    names = [rewrite.name for rewrite in plan.rewrites]
    assert "q/k heads widened for a shared norm" in names
    # 3 layers of 6 heads take 16 rows of 48 more each, less the gains and scales that were folded; and the embedding again.
    assert 3 * 6 * 16 * 48 + 288 * 48 - 300 < plan.extra_parameters < 3 * 6 * 16 * 48 + 288 * 48
    # The keys of 2 heads in 3 layers are 16 numbers wider, the values are not.
    assert plan.extra_cache == 3 * 2 * 16


def test_equal_heads_are_not_widened(made: Made) -> None:
    plan = open_source(Request(source=made("moe-model", "equal heads"))).plan
    assert plan.extra_cache == 0
    assert "one q/k norm for all heads" in [rewrite.name for rewrite in plan.rewrites]


def test_scaled_embeddings_cost_nothing(made: Made) -> None:
    plan = open_source(Request(source=made("qwen3-from-scratch", "plain"))).plan
    assert (plan.target.name, plan.extra_parameters) == ("qwen3", 0)
    assert [rewrite.name for rewrite in plan.rewrites] == ["embedding scale folded into the embeddings"]
