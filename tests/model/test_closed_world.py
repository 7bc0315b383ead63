"""The closed world: a feature that nobody has thought of is refused by every target, the reference, rewrites and arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest

from gguf_tools.errors import UnsupportedError
from gguf_tools.families import all_families, load_model
from gguf_tools.model import rope, spec
from gguf_tools.model.features import Feature, features, undeclared
from gguf_tools.model.feed_forward import Activation
from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.reference.decoder import EXPRESSES as REFERENCE
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.targets.planner import COMMON_REWRITES
from gguf_tools.targets.registry import all_targets
from surgery.model import EXPRESSES as ARITHMETIC
from surgery.model import operate_text

PARTS = (
    spec.Norm,
    spec.Attention,
    spec.DeltaNet,
    spec.ShortConv,
    spec.Mamba2,
    spec.GatedMLP,
    spec.MLP,
    spec.Router,
    spec.SharedExpert,
    spec.MoE,
    spec.ClampedSwiGLU,
    spec.LayerSpec,
    spec.ModelSpec,
    rope.Rope,
    rope.LinearScaling,
    rope.YarnScaling,
    rope.Llama3Scaling,
    rope.LongRopeScaling,
)
"""Every class of the spec (FactorScaling, which only a GGUF states, apart)."""
IN_LAYERS = tuple(part for part in PARTS if part is not spec.ModelSpec)


@cache
def models() -> tuple[Model, ...]:
    """A model of every variant that a family takes; only their specs and the shapes of their tensors are read."""
    found = []
    for family in all_families():
        for variant, expected in family.variants.items():
            if not expected.target:
                continue  # refused by the family itself
            with TemporaryDirectory() as folder:
                assert family.tiny
                family.tiny(Path(folder) / "source", variant, 1)
                found.append(load_model(Path(folder) / "source"))
    return tuple(found)


def inside(part: Any) -> Iterator[Any]:
    """A part of a spec and all parts inside it."""
    yield part
    for entry in fields(part):
        value = getattr(part, entry.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if is_dataclass(inner) and not isinstance(inner, type):
                yield from inside(inner)


ODD = {
    kind: make_dataclass(
        kind.__name__, [("surprise", float, field(default=0.0))], bases=(kind,), frozen=True, kw_only=True
    )
    for kind in PARTS
}
"""Classes of the same names with a field that nobody has declared."""


def odd(part: Any, surprise: float) -> Any:
    """The same part, of a class that has one field more, which is 0 where it changes nothing."""
    return ODD[type(part)](**{entry.name: getattr(part, entry.name) for entry in fields(part)}, surprise=surprise)


def with_odd(part: Any, kind: type, surprise: float) -> Any:
    """A part with every part of a class inside it made odd, and itself if it is of that class."""
    changes: dict[str, Any] = {}
    for entry in fields(part):
        value = getattr(part, entry.name)
        if isinstance(value, tuple):
            changes[entry.name] = tuple(with_odd(v, kind, surprise) if is_dataclass(v) else v for v in value)
        elif is_dataclass(value):
            changes[entry.name] = with_odd(value, kind, surprise)
    changed = replace(part, **changes)
    return odd(changed, surprise) if type(part) is kind else changed


def odd_models(kind: type, surprise: float = 1.0) -> list[Model]:
    """The models that have a part of this class, with it made odd."""
    having = [model for model in models() if any(type(part) is kind for part in inside(model.spec))]
    assert having, f"no variant has a {kind.__name__}"
    return [replace(model, spec=with_odd(model.spec, kind, surprise)) for model in having]


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_a_feature_that_nobody_thought_of_is_refused_by_every_target(kind: type) -> None:
    for before, model in zip(odd_models(kind, 0.0), odd_models(kind), strict=True):
        for target in all_targets():
            lacking = target.lacks(model.spec)
            named = [words for words in lacking if f"{kind.__name__}.surprise" in words]
            # Of a part that the target lacks altogether, only the part is named.
            assert named or target.lacks(before.spec), f"{target.name} takes {model.family}"
            assert named or lacking


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_it_is_refused_by_the_reference(kind: type) -> None:
    for model in odd_models(kind):
        with pytest.raises(UnsupportedError, match=rf"does not support .*{kind.__name__}\.surprise"):
            Reference(model)


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_a_new_field_at_its_neutral_value_changes_nothing(kind: type) -> None:
    for model in odd_models(kind, 0.0):
        plain = next(other for other in models() if other.tensors is model.tensors)
        assert [f.key for f in features(model.spec)] == [f.key for f in features(plain.spec)]
        assert [target.lacks(model.spec) for target in all_targets()] == [t.lacks(plain.spec) for t in all_targets()]


@pytest.mark.parametrize("kind", IN_LAYERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("recipe", ["interpolate(0:1@0.5)", "merge(0:1)", "scale(0@0.5)", "drop-experts(0:0)"])
def test_arithmetic_on_layers_that_have_it_is_refused(kind: type, recipe: str) -> None:
    tried = 0
    for model in odd_models(kind):
        first, second = model.spec.layers[:2]
        experts = (
            isinstance(first.feed_forward, spec.MoE) and first.feed_forward.experts > first.feed_forward.router.top_k
        )
        if not any(type(part).__name__ == kind.__name__ for part in inside(first)):
            continue
        if (recipe.startswith("drop") and not experts) or (recipe[0] in "im" and type(first) is not type(second)):
            continue
        if recipe[0] in "im" and _blended_kinds_differ(model):
            continue
        if recipe.startswith("drop") and not _in_feed_forward(kind, first):
            continue
        tried += 1
        with pytest.raises(UnsupportedError, match=r"surprise.*(can only be moved as a whole|belongs to)"):
            operate_text(model, recipe)
    assert tried or kind is rope.LinearScaling or recipe.startswith("drop")


def _blended_kinds_differ(model: Model) -> bool:
    first, second = model.spec.layers[:2]
    return first != second


def _in_feed_forward(kind: type, layer: spec.LayerSpec) -> bool:
    return any(type(part).__name__ == kind.__name__ for part in inside(layer.feed_forward))


@pytest.mark.parametrize("kind", IN_LAYERS, ids=lambda kind: kind.__name__)
def test_layers_that_have_it_can_be_moved_whole(kind: type) -> None:
    for model in odd_models(kind):
        moved = operate_text(model, "swap(0:1)")
        assert moved.spec.layers[:2] == model.spec.layers[1::-1]


def rewrites() -> list[Rewrite]:
    """Every rewrite that a target may apply."""
    return list(
        dict.fromkeys([*COMMON_REWRITES, *(rewrite for target in all_targets() for rewrite in target.rewrites)])
    )


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_a_rewrite_of_a_part_that_has_it_is_not_applied(kind: type) -> None:
    for model in odd_models(kind):
        for rewrite in rewrites():
            if issubclass(kind, rewrite.parts):
                assert not rewrite.suits(model.spec), rewrite.name


def test_every_rewrite_relies_on_some_part() -> None:
    assert all(rewrite.parts and rewrite.expresses for rewrite in rewrites())


# Declarations


def known_keys() -> frozenset[str]:
    """The keys of all features that the spec's classes can have."""
    known = set()
    for kind in (*PARTS, rope.FactorScaling):
        for entry in fields(kind):
            name, stated = f"{kind.__name__}.{entry.name}", str(entry.type)
            known.add(name)
            known |= {f"{name}={value}" for value in ("true", "false") if stated == "bool"}
            known |= {
                f"{name}={item}" for item in ("q", "k", "v", "o", "gate", "up", "down", "in") if "frozenset" in stated
            }
            known |= {f"{name}={other.__name__}" for other in (*PARTS, rope.FactorScaling)}
            known |= {f"{name}=None"} if "None" in stated else set()
            if "Literal" in stated or stated == "Activation":
                known |= {f"{name}={v}" for v in eval(stated, {"Literal": Literal, "Activation": Activation}).__args__}
    return frozenset(known)


@pytest.mark.parametrize(
    ("who", "declared"),
    [
        ("the reference", REFERENCE),
        ("arithmetic", ARITHMETIC),
        *((target.name, target.expresses) for target in all_targets()),
        *((rewrite.name, rewrite.expresses) for rewrite in rewrites()),
    ],
)
def test_declarations_name_features_that_there_are(who: str, declared: frozenset[str]) -> None:
    assert declared <= known_keys(), who


def test_the_reference_computes_what_every_family_has() -> None:
    for model in models():
        assert not undeclared(features(model.spec), REFERENCE), model.family


@pytest.mark.parametrize("change", [lambda f: f, lambda f: replace(f, key="Nobody.knows")])
def test_a_part_that_is_not_expressed_is_named_without_what_is_in_it(change: Callable[[Feature], Feature]) -> None:
    outer, inner = Feature("A.b=C", "a C", spec.Norm), Feature("C.d", "a d", spec.Norm, ("A.b=C",))
    assert undeclared([outer, change(inner)], frozenset()) == ["a C"]
    assert undeclared([outer, change(inner)], frozenset({"A.b=C"})) == ["a d"]
