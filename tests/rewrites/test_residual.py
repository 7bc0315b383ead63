"""Factors on the residual stream: which models they can be folded in, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gguf_tools.model.spec import LayerSpec, Norm
from gguf_tools.rewrites.residual import EMBEDDING_ROOT, FOLDED_INPUT_SCALE, is_root
from tests.oracle import nmse, reference
from tests.random_model import DELTA, EXPERTS, HIDDEN, PROMPTS, layer, random_model

SMALL = Norm(1e-9)


def read(*scales: float, **changes: Any) -> list[LayerSpec]:
    """Layers that read the stream times these factors."""
    given = {"mixer_norm": SMALL, "ffn_norm": SMALL, **changes}
    return [replace(layer(), input_scale=scale, **given) for scale in scales]


def applies(layers: Sequence[LayerSpec], **outside: Any) -> bool:
    given = {"output_norm": SMALL, "embedding_norm": SMALL, **outside}
    return FOLDED_INPUT_SCALE.applies(random_model(layers, **given).spec)


@pytest.mark.parametrize(
    ("layers", "outside", "wanted"),
    [
        (read(2.0), {}, True),
        (read(1.0, 2.0), {}, True),
        (read(1.0, 1.0), {}, False),
        (read(2.0), {"embedding_norm": None}, False),
        (read(2.0, -1.0), {}, False),
        (read(-2.0, -1.0), {}, False),
        (read(0.0), {}, False),
        (read(2.0, mixer_norm=None), {}, False),
        (read(2.0, ffn_norm=None), {}, False),
        (read(2.0, ffn_norm=None, parallel=True), {}, True),
        ([*read(2.0), *read(1.0, mixer_norm=None)], {}, False),
        # A factor of 1/2 makes an epsilon three times as much again, against a bound of 1e-6.
        (read(0.5), {"output_norm": Norm(3.3e-7)}, True),
        (read(0.5), {"output_norm": Norm(3.4e-7)}, False),
        (read(0.5, mixer_norm=Norm(3.4e-7)), {}, False),
        (read(0.5, ffn_norm=Norm(3.4e-7)), {}, False),
        (read(0.5, mixer_norm=Norm(3.3e-7)), {}, True),
        # Of a large factor the whole epsilon is lost.
        (read(1e6, ffn_norm=Norm(9e-7)), {}, True),
        (read(1e6, ffn_norm=Norm(1.1e-6)), {}, False),
        # Factors that cancel, after a layer that has the first one.
        (read(0.5, 2.0), {"output_norm": Norm(3.4e-7)}, False),
    ],
)
def test_which_factors_fold(layers: Sequence[LayerSpec], outside: dict[str, Any], wanted: bool) -> None:
    assert applies(layers, **outside) == wanted


def test_the_bound_belongs_to_what_folds() -> None:
    eps = 1e-6 / 3
    assert 3 * eps == 1e-6
    assert applies(read(0.5), output_norm=Norm(eps))


def test_what_layers_add_is_divided_by_the_product_of_factors() -> None:
    kinds = [layer(), layer(DELTA), layer(feed_forward=EXPERTS)]
    layers = [
        replace(one, input_scale=scale, mixer_norm=SMALL, ffn_norm=SMALL)
        for one, scale in zip(kinds, (2.0, 1.0, 0.25), strict=True)
    ]
    before = random_model(layers, output_norm=SMALL, embedding_norm=SMALL)
    assert FOLDED_INPUT_SCALE.applies(before.spec)
    after = FOLDED_INPUT_SCALE.apply(before)
    for old, new, factor in zip(before.layers, after.layers, (2.0, 2.0, 0.5), strict=True):
        assert new.spec == replace(old.spec, input_scale=1.0)
        for role, tensor in old.tensors.items():
            by = 1 / factor if role.endswith((".o", ".down")) else 1.0
            assert np.array_equal(new.tensors[role].array(), tensor.array() * np.float32(by))
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= 1e-12


def test_what_is_the_root() -> None:
    root = HIDDEN**0.5
    found = [
        is_root(random_model([layer()], embedding_scale=root * factor).spec)
        for factor in (1.0, 1 + 9e-8, 1 - 9e-8, 1 + 1.1e-7, 1 - 1.1e-7, 1.001, 2.0)
    ]
    assert found == [True, True, True, False, False, False, False]


@pytest.mark.parametrize(
    "norm", [Norm(1e-5), Norm(1e-5, 0.5), Norm(1e-5, weighted=False), Norm(1e-5, 0.5, weighted=False)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_tied_output_is_corrected_by_the_last_norm(norm: Norm, bias: bool) -> None:
    norm = replace(norm, bias=bias)
    for tied in (True, False):
        before = random_model([layer()], tied=tied, embedding_scale=3.0, output_norm=norm)
        after = EMBEDDING_ROOT.apply(before)
        assert is_root(after.spec)
        assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= 1e-12
        assert after.spec.output_norm == (replace(norm, offset=0.0, weighted=True) if tied else norm)
