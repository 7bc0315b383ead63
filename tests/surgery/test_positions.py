"""What llama.cpp derives from a layer's place: values kept or refused, on small architectures made for the test."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import pytest

from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.gguf.header import Field, ValueType, array, u32
from surgery.algebra import Blend, DropExperts, Edited, Halves, Original, Scaled
from surgery.architectures.base import Architecture, Carry, Layers, Property, Rule
from surgery.architectures.judge import VERBS
from surgery.architectures.registry import architectures
from surgery.architectures.rules import PATTERN, Array, First
from surgery.gguf.positions import (
    Changes,
    check_both_kinds,
    derived,
    negated,
    of_source,
    origin,
    phrase,
    placed,
)


@dataclass(frozen=True)
class Listed(Rule):
    """The values that the metadata list, or the layers' numbers."""

    key: str

    def values(self, layers: Layers) -> Sequence[Hashable]:
        listed = layers.get(self.key)
        return listed if isinstance(listed, tuple) else tuple(range(layers.count))


@dataclass(frozen=True)
class Fixed(Rule):
    """The same values whatever the metadata say."""

    fixed: tuple[Hashable, ...]

    def values(self, layers: Layers) -> Sequence[Hashable]:
        return self.fixed


class ByCount(Fixed):
    by = "count"
    counts = "the number of sheep"


@dataclass(frozen=True)
class Stating(Carry):
    """States values in an array, plus `error`; notes how many MTP blocks it was told of."""

    key: str
    error: int = 0

    def fields(self, values: Sequence[Hashable], trailing: int) -> dict[str, Field]:
        found = [value + self.error for value in values if isinstance(value, int)]
        return {self.key: array(ValueType.INT32, found), "trailing": u32(trailing)}


def layers(count: int, metadata: Mapping[str, object] | None = None) -> Layers:
    return Layers(get=dict(metadata or {}).get, names=[()] * count, origins=tuple(range(count)))


def under(count: int, metadata: Mapping[str, object] | None = None) -> Callable[[Changes], Layers]:
    """The layers under changed metadata."""
    return lambda changes: layers(count, dict(metadata or {}) | {key: field.value for key, field in changes.items()})


def architecture(*properties: Property, kinds: str = "", sliding: bool = False) -> Architecture:
    return Architecture(
        name="testarch",
        source="",
        tensors={},
        properties=properties,
        kinds=kinds,  # type: ignore[arg-type]
        sliding=sliding,
    )


def test_what_keys_and_values_come_from() -> None:
    """Scaling and edits keep them, a blend makes new ones, and of halves the attention's counts."""
    a, b = Original(1), Original(2, "B")
    blend = Blend(((a, 0.5), (b, 0.5)))
    assert origin(a, 7) == a
    assert origin(blend, 7) == ("computed", 7)
    assert origin(blend, 8) != origin(blend, 7)
    assert origin(Halves(b, a), 7) == b
    assert origin(Scaled(Halves(blend, a), 2.0, 1.0), 3) == ("computed", 3)
    assert origin(Edited(Scaled(b, 2.0, 1.0), DropExperts((0,))), 0) == b


def test_a_value_that_names_a_layer_is_of_the_file_that_it_is_of() -> None:
    assert of_source(Original(3), "B") == Original(3, "B")
    assert of_source(Original(3), "") == Original(3)
    assert of_source(3, "B") == 3


def test_properties_are_derived_for_every_layer() -> None:
    properties = (Property("is early", None, First(count=2)), Property("number", None, Listed("numbers")))
    found = derived(architecture(*properties), layers(4, {"numbers": (9, 8, 7, 6)}))
    assert found == {properties[0]: (True, True, False, False), properties[1]: (9, 8, 7, 6)}


@pytest.mark.parametrize("wanted", list(permutations(range(3))))
def test_a_property_that_metadata_can_state_is_stated_unless_it_is_so_already(wanted: tuple[int, ...]) -> None:
    number = Property("number", None, Listed("numbers"), Stating("numbers"))
    changes = placed(architecture(number), {number: wanted}, under(3), 5)
    told = {key: field.value for key, field in changes.items()}
    assert told == ({} if wanted == (0, 1, 2) else {"numbers": wanted, "trailing": 5})


def test_what_was_stated_of_one_property_stays_with_the_next() -> None:
    first, second = (Property(name, None, Listed(name), Stating(name)) for name in ("one", "two"))
    changes = placed(architecture(first, second), {first: (1, 0), second: (5, 6)}, under(2), 0)
    assert {key: field.value for key, field in changes.items()} == {"one": (1, 0), "two": (5, 6), "trailing": 0}


def test_what_would_not_be_derived_from_what_is_stated_is_not_stated() -> None:
    number = Property("number", None, Listed("numbers"), Stating("numbers", error=1))
    with pytest.raises(
        UnsupportedError, match="it is 1 for the layer that would become number 0, and would be 0 there"
    ):
        placed(architecture(number), {number: (1, 0)}, under(2), 0)


@pytest.mark.parametrize(
    ("what", "rule", "wanted", "says"),
    [
        (
            "has a window",
            Fixed((False, True, False)),
            (False, True, True),
            "testarch decides by its index whether a layer has a window: the layer that would become number 2 does, but "
            "would not there",
        ),
        (
            "has a window",
            Fixed((False, True, False)),
            (False, False, False),
            "the layer that would become number 1 does not, but would there",
        ),
        (
            "kind",
            Fixed((1, 2)),
            (1, True),
            "decides kind by a layer's place: it is so for .* number 1, and would be 2 there",
        ),
        (
            "kind",
            Fixed((1, False)),
            (1, 2),
            "it is 2 for the layer that would become number 1, and would be not so there",
        ),
        ("scale", Fixed((0.5,)), (1 / 3,), "it is 0.333333 for .* number 0, and would be 0.5 there"),
        ("source", Fixed((Original(3),)), (Original(4, "B"),), "it is layer B:4 for .*, and would be layer 3 there"),
        (
            "source",
            Fixed((("computed", 1),)),
            (("other", 1),),
            r"it is \('other', 1\) for .*, and would be a computed one",
        ),
        (
            "has sheep",
            ByCount((False,)),
            (True,),
            "testarch decides whether a layer has sheep by the number of sheep: it is so in the source and would be not so in",
        ),
        (
            "sheep",
            ByCount((1,)),
            (2,),
            "decides sheep by the number of sheep: it is 2 in the source and would be 1 in the",
        ),
        (
            "sheep",
            ByCount((2,)),
            (True,),
            "testarch decides sheep by the number of sheep: it is so in the source and would",
        ),
        ("has sheep", ByCount((1,)), (2,), "testarch decides has sheep by the number of sheep: it is 2 in the source"),
    ],
)
def test_the_first_layer_that_would_change_is_named(
    what: str, rule: Rule, wanted: tuple[Hashable, ...], says: str
) -> None:
    prop = Property(what, None, rule)
    with pytest.raises(UnsupportedError, match=says):
        placed(architecture(prop), {prop: wanted}, under(len(wanted)), 0)


def test_every_phrase_is_grammatical() -> None:
    for architecture in architectures().values():
        for p in architecture.properties:
            for text in (phrase(p, True), phrase(p, False)) if p.what.split()[0] in VERBS else ():
                assert not re.search(r"\b(\w+) \1\b|no a |no no |True|False", text), text
    assert [negated(what) for what in ("has a window", "has no rope", "is recurrent", "lacks its first norm")] == [
        "has no window",
        "has rope",
        "is not recurrent",
        "does not lack its first norm",
    ]


def test_phrases() -> None:
    window = Property("has a window", None, Fixed(()))
    assert phrase(window, True) == "a place whose layer has a window"
    assert phrase(window, False) == "a place whose layer has no window"
    assert phrase(Property("number of heads", None, Fixed(())), 4) == "number of heads: 4"


RECURRENT = Property("is recurrent", None, Array("recurrent"))


@pytest.mark.parametrize(
    ("before", "after", "left_out"),
    [
        ((True, False), (True, True), "full"),
        ((True, False), (False, False, False), "linear"),
        ((True, False), (False, True), None),
        ((True, True), (True, True), None),
        ((False, False), (False,), None),
        ((True, True), (True, False), None),
    ],
)
@pytest.mark.parametrize("kinds", ["array", "heads", ""])
def test_a_hybrid_keeps_both_kinds(
    kinds: str, before: tuple[bool, ...], after: tuple[bool, ...], left_out: str | None
) -> None:
    def told(recurrent: tuple[bool, ...]) -> Layers:
        heads = tuple(0 if is_recurrent else 2 for is_recurrent in recurrent)
        return layers(len(recurrent), {"recurrent": recurrent, "attention.head_count_kv": heads})

    # Another property is listed before the one that tells the kinds.
    arch = architecture(Property("other", None, Fixed(())), RECURRENT, kinds=kinds)
    if left_out and kinds:
        with pytest.raises(
            UnsupportedError, match=f"testarch does not run a model without {left_out} attention layers"
        ):
            check_both_kinds(arch, told(before), told(after))
    else:
        check_both_kinds(arch, told(before), told(after))


@pytest.mark.parametrize(
    ("heads", "widths", "refused"),
    [
        # A layer that is a feed-forward alone (no heads, but a width) is neither recurrent nor attention.
        ((0, 2, 0), (0, 0, 64), False),
        ((0, 0, 0), (0, 0, 64), True),
        ((2, 2, 0), (0, 0, 64), True),
        ((0, 0, 2), (0, 64, 64), False),
        ((0, 0), (64, 64), True),
        ((0, 2), (64, 64), False),
        # Feed-forwards alone are all that is left: one kind.
        ((0, 0), (64, 0), True),
        # More values than layers: the first ones count.
        ((0, 0, 0, 2), (64, 64, 64, 64), True),
        ((0, 0, 2, 2), (64, 64, 64, 64), False),
    ],
)
def test_layers_that_are_feed_forwards_alone_are_of_no_kind(
    heads: tuple[int, ...], widths: tuple[int, ...], refused: bool
) -> None:
    count = 3 if len(heads) > 3 else len(heads)
    before = layers(2, {"attention.head_count_kv": (0, 2), "feed_forward_length": 64})
    after = layers(count, {"attention.head_count_kv": heads, "feed_forward_length": widths})
    arch = architecture(kinds="heads")
    if refused:
        with pytest.raises(UnsupportedError, match="attention layers; keep one"):
            check_both_kinds(arch, before, after)
    else:
        check_both_kinds(arch, before, after)


def test_nothing_but_feed_forwards_counts_as_attention() -> None:
    before = layers(2, {"attention.head_count_kv": (0, 2), "feed_forward_length": 64})
    alone = layers(2, {"attention.head_count_kv": 0, "feed_forward_length": (0, 0)})
    with pytest.raises(UnsupportedError, match="without full attention layers"):
        check_both_kinds(architecture(kinds="heads"), before, alone)
    none = layers(1, {"attention.head_count_kv": (0, 0), "feed_forward_length": (64, 0)})
    with pytest.raises(UnsupportedError, match="without full attention layers"):
        check_both_kinds(architecture(kinds="heads"), before, none)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("sliding", [True, False])
@pytest.mark.parametrize("before", [(True, False), (False, False)])
@pytest.mark.parametrize("after", [(False, False), (False, True)])
def test_one_layer_at_least_keeps_its_window(
    named: bool, sliding: bool, before: tuple[bool, ...], after: tuple[bool, ...]
) -> None:
    """By the architecture's own rule, or by the array of the metadata where it has none."""
    key = "windows" if named else PATTERN
    own = (Property("has a sliding window", None, Array("windows")),) if named else ()
    arch = architecture(Property("other", None, Fixed((True, True))), *own, sliding=sliding)
    told = [layers(2, {key: values}) for values in (before, after)]
    if sliding and any(before) and not any(after):
        with pytest.raises(UnsupportedError, match="without layers with a sliding window; keep one"):
            check_both_kinds(arch, *told)
    else:
        check_both_kinds(arch, *told)
