"""The reference against the published forward passes of the families trained from scratch, and what quantization leaves of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.families.registry import load_model, own_families
from tests.families.scratch.published import FORWARD, read
from tests.made_checkpoints import Made
from tests.oracle import PROMPTS, convert, lifted_reference, llama, reference

CASES = [(family.name, variant) for family in own_families() if family.name in FORWARD for variant in family.variants]


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
    # Rows of 40 and 48 are whole blocks of no quantized type, those of 64 of q8_0.
    width, block = (
        64 if family in ("minimind", "nanogpt", "rasbt-gpt", "rasbt-gemma3") else 40,
        {"f16": 1, "q8_0": 32, "q4_k_m": 256}[type_name],
    )
    assert bool(report.fall_backs) == (width % block != 0)
