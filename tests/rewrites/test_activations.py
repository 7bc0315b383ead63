"""Feed-forwards with other activations as SwiGLU: the function is the same up to the bounds that the module states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gguf_tools.model.spec import MLP, GatedMLP, Model
from gguf_tools.reference.feed_forward import ACTIVATIONS
from gguf_tools.rewrites.activations import (
    LINEAR_POWER,
    RELU_AS_GELU,
    RELU_GATE,
    RELU_GATE_AS_GELU,
    SQUARE_POWER,
    SQUARED_RELU,
    SQUARED_RELU_AS_GEGLU,
    UNGATED,
)
from gguf_tools.rewrites.base import Rewrite
from tests.oracle import nmse, reference
from tests.random_model import PROMPTS, layer, random_model

ALL = frozenset({"gate", "up", "down"})
CASES: dict[str, tuple[Rewrite, MLP | GatedMLP, float]] = {
    "relu2": (SQUARED_RELU, MLP(40, "relu2"), 1e-12),
    "relu2, biases": (SQUARED_RELU, MLP(40, "relu2", ALL - {"gate"}), 1e-12),
    "relu": (UNGATED, MLP(40, "relu"), 1e-11),
    "relu, biases": (UNGATED, MLP(40, "relu", ALL - {"gate"}), 1e-11),
    "silu": (UNGATED, MLP(40, "silu", frozenset({"up"})), 1e-28),
    "silu, down": (UNGATED, MLP(40, "silu", frozenset({"down"})), 1e-28),
    "relu as gelu": (RELU_AS_GELU, MLP(40, "relu", ALL - {"gate"}), 1e-11),
    "relu2 as geglu": (SQUARED_RELU_AS_GEGLU, MLP(40, "relu2", ALL - {"gate"}), 1e-12),
    "relu gate as gelu": (RELU_GATE_AS_GELU, GatedMLP(40, ALL, "relu"), 1e-11),
    "relu gate": (RELU_GATE, GatedMLP(40, activation="relu"), 1e-11),
    "relu gate, biases": (RELU_GATE, GatedMLP(40, ALL, "relu"), 1e-11),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1 << 20))
def test_logits_stay(name: str, seed: int) -> None:
    rewrite, ffn, bound = CASES[name]
    before = random_model([layer(feed_forward=ffn)] * 2, seed=seed)
    assert rewrite.applies(before.spec)
    assert rewrite.suits(before.spec)
    after = rewrite.apply(before)
    assert not rewrite.applies(after.spec)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) < bound


@pytest.mark.parametrize(
    ("rewrite", "ffn", "times"), [(SQUARED_RELU, MLP(40, "relu2"), 3), (UNGATED, MLP(40, "relu"), 3)]
)
def test_the_gate_costs_one_matrix(rewrite: Rewrite, ffn: MLP, times: int) -> None:
    before = random_model([layer(feed_forward=ffn)])
    after = rewrite.apply(before)
    weights = _of_ffn(after) / _of_ffn(before)
    assert weights == pytest.approx(times / 2, rel=0.03)


def _of_ffn(model: Model) -> int:
    return sum(tensor.size for role, tensor in model.layer_tensors[0].items() if role.startswith("ffn."))


@pytest.mark.parametrize(("power", "worst"), [(SQUARE_POWER, 4.7e-7), (LINEAR_POWER, 1.7e-5)])
def test_stated_errors(power: int, worst: float) -> None:
    z = torch.linspace(-0.05, 0.05, 2_000_001, dtype=torch.float64)
    sharp = functional.silu(z * 2.0**power) / 2.0**power
    found = (sharp * z - functional.relu(z) ** 2) if power == SQUARE_POWER else sharp - functional.relu(z)
    assert worst * 0.5 < float(found.abs().max()) <= worst


@pytest.mark.parametrize(("power", "worst"), [(SQUARE_POWER, 1.6e-7), (LINEAR_POWER, 1.1e-5)])
def test_stated_errors_of_gelu(power: int, worst: float) -> None:
    z = torch.linspace(-0.05, 0.05, 2_000_001, dtype=torch.float64)
    sharp = functional.gelu(z * 2.0**power, approximate="tanh") / 2.0**power
    found = (sharp * z - functional.relu(z) ** 2) if power == SQUARE_POWER else sharp - functional.relu(z)
    assert worst * 0.5 < float(found.abs().max()) <= worst


def test_activations() -> None:
    z = np.linspace(-6, 6, 241)
    phi = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])
    wanted = {
        "silu": z / (1 + np.exp(-z)),
        "gelu": z * phi,
        "gelu_tanh": 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        "relu": np.maximum(z, 0),
        "relu2": np.maximum(z, 0) ** 2,
    }
    assert wanted.keys() == ACTIVATIONS.keys()
    for name, values in wanted.items():
        assert np.allclose(ACTIVATIONS[name](torch.from_numpy(z)).numpy(), values, rtol=1e-12, atol=1e-14)  # type: ignore[index]
