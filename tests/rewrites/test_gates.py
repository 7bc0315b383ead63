"""The rewrites of gates and shared experts: the reference computes the same before and after, to the last bits.

Their factors are powers of two, so nothing is rounded.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gguf_tools.model.spec import Attention, LayerSpec, MoE, SharedExpert
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.gates import (
    EMPTY_SHARED_EXPERT,
    EMPTY_UNGATED_EXPERT,
    ZERO_ATTENTION_GATE,
    ZERO_SHARED_GATE,
)
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, EXPERTS, MLP, PROMPTS, layer, named, random_model, with_layer

EXACT = 1e-24
GATED = replace(ATTENTION, gated=True)
BIASED = replace(ATTENTION, bias=frozenset("qkvo"))
SHARED_GATED = replace(EXPERTS, shared=SharedExpert(20, True))
SHARED_PLAIN = replace(EXPERTS, shared=SharedExpert(20, False))

LAYERS: dict[str, tuple[Rewrite, list[LayerSpec]]] = {
    "gate for one of two attentions": (ZERO_ATTENTION_GATE, [layer(ATTENTION), layer(GATED)]),
    "gate with a bias": (ZERO_ATTENTION_GATE, [layer(BIASED), layer(DELTA)]),
    "gate for all, without q/k norm": (ZERO_ATTENTION_GATE, [layer(replace(ATTENTION, qk_norm=None))] * 2),
    "shared gate": (ZERO_SHARED_GATE, [layer(feed_forward=SHARED_PLAIN), layer(DELTA, SHARED_GATED), layer()]),
    "shared gate for all": (ZERO_SHARED_GATE, [layer(DELTA, SHARED_PLAIN)] * 2),
    "no shared expert beside one": (EMPTY_SHARED_EXPERT, [layer(DELTA, EXPERTS), layer(feed_forward=SHARED_GATED)]),
    "no shared expert anywhere": (EMPTY_SHARED_EXPERT, [layer(feed_forward=EXPERTS), layer(), layer(DELTA, EXPERTS)]),
}


@pytest.mark.parametrize(("rewrite", "layers"), LAYERS.values(), ids=list(LAYERS))
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_changes(rewrite: Rewrite, layers: list[LayerSpec], tied: bool) -> None:
    model = random_model(layers, tied=tied)
    assert rewrite.applies(model.spec)
    after = rewrite.apply(model)
    assert not rewrite.applies(after.spec)
    assert after.spec != model.spec
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= EXACT


def test_layers_without_the_feature_keep_their_tensors() -> None:
    model = random_model([layer(ATTENTION), layer(GATED), layer(DELTA)])
    after = ZERO_ATTENTION_GATE.apply(model)
    before = named(model)
    changed = {role for role, tensor in named(after).items() if before.get(role) is not tensor}
    assert changed == {"layers.0.attn.gate", "layers.0.attn.o"}


def test_gates_that_are_made_are_zero_and_take_no_memory() -> None:
    after = ZERO_ATTENTION_GATE.apply(random_model([layer(BIASED)]))
    for role in ("attn.gate", "attn.gate_bias"):
        tensor = after.layers[0].tensors[role]
        assert tensor.sources == ()
        assert not np.any(tensor.array())


def test_an_empty_shared_expert_is_as_wide_as_the_others() -> None:
    after = EMPTY_SHARED_EXPERT.apply(random_model([layer(feed_forward=EXPERTS), layer(feed_forward=SHARED_GATED)]))
    widths = [
        la.feed_forward.shared.width
        for la in after.spec.layers
        if isinstance(la.feed_forward, MoE) and la.feed_forward.shared
    ]
    assert widths == [20, 20]


@pytest.mark.parametrize(
    ("rewrite", "spec"),
    [
        (ZERO_ATTENTION_GATE, [layer(GATED), layer(DELTA)]),
        (ZERO_SHARED_GATE, [layer(feed_forward=SHARED_GATED), layer(feed_forward=EXPERTS)]),
        (EMPTY_SHARED_EXPERT, [layer(feed_forward=SHARED_PLAIN), layer(feed_forward=MLP)]),
    ],
)
def test_it_does_not_apply_where_nothing_is_to_do(rewrite: Rewrite, spec: list[LayerSpec]) -> None:
    assert not rewrite.applies(random_model(spec).spec)


def test_an_attention_gate_changes_what_is_computed_unless_the_output_is_doubled() -> None:
    """The proof above would notice a missing factor."""
    model = random_model([layer(ATTENTION)])
    after = ZERO_ATTENTION_GATE.apply(model)
    wrong = with_layer(after, 0, {"attn.o": model.layers[0].tensors["attn.o"]})
    assert nmse(reference(wrong, PROMPTS), reference(model, PROMPTS)) > 1e-4
    assert isinstance(after.spec.layers[0].mixer, Attention)


def test_an_added_shared_expert_is_one_block_wide_or_as_the_widest() -> None:
    alone = EMPTY_SHARED_EXPERT.apply(random_model([layer(), layer(feed_forward=EXPERTS)]))
    shared = [replace(EXPERTS, shared=SharedExpert(width, gated=True)) for width in (28, 12)]
    beside = EMPTY_SHARED_EXPERT.apply(random_model([layer(feed_forward=ffn) for ffn in (*shared, EXPERTS)]))
    for model, width in ((alone, 32), (beside, 28)):
        ffn = model.spec.layers[-1].feed_forward
        assert isinstance(ffn, MoE)
        assert ffn.shared == SharedExpert(width, gated=True)
        added = [tensor for role, tensor in model.layers[-1].tensors.items() if role.startswith("shared.")]
        assert len(added) == 4
        assert not any(np.any(tensor.array()) for tensor in added)


def test_an_added_shared_expert_has_a_gate_where_the_graph_has_one() -> None:
    model = random_model([layer(feed_forward=EXPERTS)])
    made = [rewrite.apply(model) for rewrite in (EMPTY_SHARED_EXPERT, EMPTY_UNGATED_EXPERT)]
    gates = [one.feed_forward.shared for each in made for one in each.spec.layers if isinstance(one.feed_forward, MoE)]
    assert gates == [SharedExpert(32, gated=True), SharedExpert(32, gated=False)]
    assert nmse(reference(made[1], PROMPTS), reference(model, PROMPTS)) == 0.0
