"""Mamba-2 by its definition in numpy, and layers with a state space beside the attention, multipliers, or no feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gguf_tools.model.spec import LayerSpec, Mamba2, Norm
from gguf_tools.reference.state_space import mamba2
from gguf_tools.tensors.base import InMemory
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, EXPERTS, HIDDEN, MLP, PROMPTS, layer, random_model, with_layer

EXACT = 1e-24
STATE_SPACE = Mamba2(heads=4, head_dim=6, groups=2, state=5, kernel=3, norm=Norm(1e-5), conv_bias=True)
Array = np.ndarray[Any, Any]
BOTH = frozenset({"in", "o"})


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def by_definition(spec: Mamba2, w: Mapping[str, Array], x: Array) -> Array:
    """One sequence (length, hidden) through the mixer, head by head, token by token."""
    parts = {name: x @ w[f"ssm.{name}"].T + w.get(f"ssm.{name}_bias", 0.0) for name in ("z", "x", "b", "c", "step")}
    mixed = np.concatenate([parts["x"], parts["b"], parts["c"]], axis=1)
    past = np.concatenate([np.zeros((spec.kernel - 1, mixed.shape[1])), mixed])
    conv = np.stack([(past[t : t + spec.kernel] * w["ssm.conv"].T).sum(0) for t in range(len(x))])
    conv = silu(conv + w.get("ssm.conv_bias", 0.0))
    out = np.zeros((len(x), spec.heads, spec.head_dim))
    inner, wide = spec.heads * spec.head_dim, spec.groups * spec.state
    for head in range(spec.heads):
        group, state = head * spec.groups // spec.heads, np.zeros((spec.head_dim, spec.state))
        rate = w["ssm.decay"][head] if spec.decay == "rate" else -np.exp(w["ssm.decay"][head])
        for t in range(len(x)):
            step = np.log1p(np.exp(parts["step"][t, head] + w["ssm.dt_bias"][head]))
            step = np.clip(step, *(spec.step_limit or (0.0, np.inf)))
            value = conv[t, head * spec.head_dim :][: spec.head_dim]
            b, c = (conv[t, inner + at + group * spec.state :][: spec.state] for at in (0, wide))
            state = np.exp(rate * step) * state + step * np.outer(value, b)
            out[t, head] = state @ c + w["ssm.skip"][head] * value
    y, gate = out.reshape(len(x), -1), silu(parts["z"])
    y = y if spec.norm_first else y * gate
    if spec.norm:
        grouped = y.reshape(len(x), spec.groups, -1)
        y = (grouped / np.sqrt((grouped**2).mean(-1, keepdims=True) + spec.norm.eps)).reshape(len(x), -1)
        y = y * (w["ssm.norm"] + spec.norm.offset)
    y = y * gate if spec.norm_first else y
    return np.asarray(y @ w["ssm.o"].T + w.get("ssm.o_bias", 0.0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": 1, "conv_bias": False, "decay": "rate"},
        {"norm": None},
        {"norm": Norm(1e-2, 1.0), "norm_first": True},
        {"bias": BOTH, "groups": 4},
        {"step_limit": (0.3, 0.9)},
    ],
)
def test_mamba2_by_its_definition(changes: dict[str, Any]) -> None:
    spec, rng = replace(STATE_SPACE, **changes), np.random.default_rng(3)
    weights = {role: rng.standard_normal(shape) / shape[-1] ** 0.5 for role, shape in spec.roles(HIDDEN).items()}
    x = rng.standard_normal((2, 9, HIDDEN))
    tensors = {role: torch.from_numpy(values) for role, values in weights.items()}
    found = mamba2(spec, tensors, torch.from_numpy(x)).numpy()
    for row in range(2):
        np.testing.assert_allclose(found[row], by_definition(spec, weights, x[row]), rtol=1e-11, atol=1e-12)


def test_a_layer_without_a_feed_forward_is_one_whose_feed_forward_gives_nothing() -> None:
    model = random_model([layer(STATE_SPACE), layer(STATE_SPACE, EXPERTS)])
    zeros = InMemory(np.zeros((HIDDEN, MLP.width), np.float32))
    bare = replace(model.spec.layers[0], feed_forward=None, ffn_norm=None)
    without = with_layer(model, 0, {}, bare)
    assert without.spec.pattern == "mM"
    assert nmse(reference(without, PROMPTS), reference(with_layer(model, 0, {"ffn.down": zeros}), PROMPTS)) <= EXACT


def test_a_state_space_beside_the_attention_adds_to_it() -> None:
    """What the two give is added, so that a layer with both does what each alone would, on the same input."""
    both: LayerSpec = replace(layer(), beside=STATE_SPACE, feed_forward=None, ffn_norm=None)
    model = random_model([both])
    zeros = {role: InMemory(np.zeros_like(model.layers[0].tensors[role].array())) for role in ("attn.o", "ssm.o")}
    alone = [with_layer(model, 0, {role: tensor}) for role, tensor in zeros.items()]
    nothing = with_layer(model, 0, zeros)
    space = with_layer(model, 0, {}, replace(both, mixer=STATE_SPACE, beside=None))
    attention = with_layer(model, 0, {}, replace(both, mixer=ATTENTION, beside=None))
    assert model.spec.pattern == "h"
    # Before the last norm: hidden states, in which the parts add up.
    streams = [_stream(m) for m in (model, *alone, nothing)]
    np.testing.assert_allclose(streams[0], streams[1] + streams[2] - streams[3], rtol=1e-10, atol=1e-12)
    assert nmse(reference(alone[0], PROMPTS), reference(space, PROMPTS)) <= EXACT
    assert nmse(reference(alone[1], PROMPTS), reference(attention, PROMPTS)) <= EXACT


def _stream(model: Any) -> Array:
    """The residual stream after the first layer, in float64."""
    from gguf_tools.reference import Reference

    found: list[Array] = []

    def keep(_: int, point: str, values: torch.Tensor) -> None:
        if point == "layer_out":
            found.append(values.numpy())

    with torch.inference_mode():
        Reference(model, torch.float64).forward(torch.tensor([PROMPTS[0]]), keep)
    return found[0]


def test_multipliers_multiply_the_matrices_that_they_name() -> None:
    factors = (("attn.k", 0.25), ("ssm.b", 2.0), ("ffn.gate", 0.5))
    model = random_model([replace(layer(replace(ATTENTION, qk_norm=None)), beside=STATE_SPACE)])
    stated = with_layer(model, 0, {}, replace(model.spec.layers[0], multipliers=factors))
    old = model.layers[0].tensors
    folded = {role: InMemory(old[role].array() * np.float32(factor)) for role, factor in factors}
    assert nmse(reference(stated, PROMPTS), reference(with_layer(model, 0, folded), PROMPTS)) <= EXACT
    assert nmse(reference(stated, PROMPTS), reference(model, PROMPTS)) > 1e-4
