"""Feed-forwards with other activations as SwiGLU: the function is the same up to the bounds that the module states."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

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


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_factors_are_the_powers_of_two_that_are_stated(activation: Any) -> None:
    """Gate and up exceed the activation by 2^4 together, which is room for F16; 2^10 and 2^14 sharpen."""
    glu = {"silu": (SQUARED_RELU, RELU_GATE), "gelu_tanh": (SQUARED_RELU_AS_GEGLU, RELU_GATE_AS_GELU)}[activation]
    for rewrite, ffn, sources, powers in (
        (glu[0], MLP(20, "relu2", ALL - {"gate"}), ("up", "up"), (10, -6)),
        (glu[1], GatedMLP(20, ALL, "relu"), ("gate", "up"), (14, -10)),
    ):
        before = random_model([layer(feed_forward=ffn)])
        after = rewrite.apply(before)
        old, new = (one.layers[0].tensors for one in (before, after))
        made = after.spec.layers[0].feed_forward
        assert made == GatedMLP(20, ALL, activation)
        for name, source, power in zip(("gate", "up"), sources, powers, strict=True):
            for ending in ("", "_bias"):
                values = old[f"ffn.{source}{ending}"].array() * np.float32(2.0**power)
                assert np.array_equal(new[f"ffn.{name}{ending}"].array(), values)
        assert np.array_equal(new["ffn.down"].array(), old["ffn.down"].array() / 16)
        assert new["ffn.down_bias"] is old["ffn.down_bias"]


@pytest.mark.parametrize(("activation", "gate", "up", "down"), [("relu", 14, -10, -4), ("silu", 0, 0, 0)])
def test_an_up_projection_that_is_added_is_a_bias(activation: Any, gate: int, up: int, down: int) -> None:
    before = random_model([layer(feed_forward=MLP(20, activation, frozenset({"up"})))])
    after = UNGATED.apply(before)
    old, new = (one.layers[0].tensors for one in (before, after))
    assert after.spec.layers[0].feed_forward == GatedMLP(20, frozenset({"gate", "up"}))
    assert np.array_equal(new["ffn.gate"].array(), old["ffn.up"].array() * np.float32(2.0**gate))
    assert np.array_equal(new["ffn.gate_bias"].array(), old["ffn.up_bias"].array() * np.float32(2.0**gate))
    assert np.array_equal(new["ffn.up"].array(), np.zeros((20, 24)))
    assert np.array_equal(new["ffn.up_bias"].array(), np.full(20, 2.0**up))
    assert np.array_equal(new["ffn.down"].array(), old["ffn.down"].array() * np.float32(2.0**down))
    assert (new["ffn.down"] is old["ffn.down"]) == (down == 0)


def test_relu_as_gelu_is_sharp_by_the_power_that_is_stated() -> None:
    ffn = MLP(20, "relu", frozenset({"up", "down"}))
    before = random_model([layer(), layer(feed_forward=ffn), layer(feed_forward=MLP(20, "silu"))])
    after = RELU_AS_GELU.apply(before)
    assert [one.feed_forward for one in after.spec.layers] == [
        GatedMLP(20),
        replace(ffn, activation="gelu_tanh"),
        MLP(20, "silu"),
    ]
    old, new = (one.layers[1].tensors for one in (before, after))
    assert np.array_equal(new["ffn.up"].array(), old["ffn.up"].array() * np.float32(2.0**14))
    assert np.array_equal(new["ffn.up_bias"].array(), old["ffn.up_bias"].array() * np.float32(2.0**14))
    assert np.array_equal(new["ffn.down"].array(), old["ffn.down"].array() / np.float32(2.0**14))
    assert new["ffn.down_bias"] is old["ffn.down_bias"]
    for n in (0, 2):
        assert after.layers[n].tensors == before.layers[n].tensors
