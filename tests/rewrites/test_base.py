"""The definition of a rewrite, and the sets of features that rewrites are tested with."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from gguf_tools.model.spec import Attention, Layer, LayerSpec, Mamba2, Model, ModelSpec, Norm
from gguf_tools.rewrites import base
from gguf_tools.rewrites.base import Rewrite, any_layer, map_layers
from tests.random_model import ATTENTION, DELTA, EXPERTS, layer, random_model


def plain(**given: object) -> Rewrite:
    """A rewrite that says what it has to and no more."""
    stated = {
        "name": "nothing",
        "why": "for a test",
        "applies": lambda spec: True,
        "apply": lambda model: model,
        "parts": (Attention,),
        "expresses": base.ATTENTION,
    }
    return Rewrite(**{**stated, **given})  # type: ignore[arg-type]


def test_a_rewrite_that_does_not_say_so_is_not_linear_and_holds_for_all_weights() -> None:
    rewrite = plain()
    assert (rewrite.linear, rewrite.keeps_row_angles, rewrite.removes) == (False, False, frozenset())
    assert rewrite.holds(random_model([layer()])) is True


@pytest.mark.parametrize(
    ("mixer", "parts", "suits"),
    [
        (ATTENTION, (Attention,), True),
        (replace(ATTENTION, sinks=True), (Attention,), False),
        (replace(ATTENTION, sinks=True), (ModelSpec, LayerSpec), True),
        (replace(ATTENTION, sinks=True), (ModelSpec, Attention), False),
    ],
)
def test_features_of_other_parts_do_not_matter(mixer: Attention, parts: tuple[type, ...], suits: bool) -> None:
    rewrite = plain(parts=parts, expresses=base.ATTENTION | base.LAYER | base.MODEL)
    assert rewrite.suits(random_model([layer(), layer(mixer)]).spec) == suits


def test_each_layer_is_changed_by_itself() -> None:
    model = random_model([layer(), layer(feed_forward=EXPERTS), layer(DELTA)])
    seen = []

    def change(one: Layer) -> Layer:
        seen.append(one.spec)
        return replace(one, spec=replace(one.spec, residual_scale=float(len(seen))))

    made: Model = map_layers(model, change)
    assert tuple(seen) == model.spec.layers
    assert [one.residual_scale for one in made.spec.layers] == [1.0, 2.0, 3.0]
    assert made.layer_tensors == model.layer_tensors


def test_one_layer_is_enough() -> None:
    test = any_layer(lambda one: isinstance(one.mixer, Attention))
    assert test(random_model([layer(DELTA), layer()]).spec)
    assert not test(random_model([layer(DELTA)] * 2).spec)


def stated(keys: frozenset[str], part: type) -> set[str]:
    """The fields of a part that a set of features names."""
    return {key.split(".")[1].partition("=")[0] for key in keys if key.startswith(f"{part.__name__}.")}


def test_any_layer_is_every_layer_but_for_the_factors_on_the_stream() -> None:
    assert stated(base.ANY_LAYER, LayerSpec) == {field.name for field in fields(LayerSpec)} - {"input_scale"}
    sizes = {"heads", "head_dim", "groups", "state", "kernel"}
    assert stated(base.ANY_LAYER, Mamba2) == {field.name for field in fields(Mamba2)} - sizes
    assert base.LAYER < base.ANY_LAYER
    mixers = {key for key in base.ANY_LAYER if key.startswith("LayerSpec.mixer=")}
    assert {key.partition("=")[2] for key in mixers} == {"Attention", "DeltaNet", "Mamba2", "ShortConv"}


def test_any_norm_is_every_norm() -> None:
    assert stated(base.ANY_NORM, Norm) == {field.name for field in fields(Norm)} - {"eps"}
    assert stated(base.NORM, Norm) == {"offset"}
