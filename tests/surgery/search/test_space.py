"""The candidates of a search: complete, each stack once, and in an order that depends on nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.errors import InputError, UnsupportedError
from surgery.algebra import Original, identity
from surgery.ops import all_ops
from surgery.recipe import Recipe, parse_text
from surgery.search.space import (
    Candidate,
    Space,
    block_ops,
    candidates,
    expected_loss,
    extended,
    kinds_of,
    later_ops,
    single_ops,
    stack_key,
    surgery_refuses,
)


def space(count: int = 6, **options: object) -> Space:
    values: dict[str, object] = {"count": count, "first": 0, "last": count - 1, "kinds": kinds_of((), ())}
    return Space(**{**values, **options})  # type: ignore[arg-type]


def none(_: Recipe) -> str:
    return ""


def made(given: Space, ops: object) -> list[str]:
    return [str(found.recipe) for found in candidates(given, ops, none)]  # type: ignore[arg-type]


def test_single_ops_are_every_deletion_duplication_neighbour_swap_and_near_interpolation() -> None:
    found = made(space(3, reach=1), single_ops(space(3, reach=1)))
    assert found == [
        "delete(0)",
        "delete(1)",
        "delete(2)",
        "duplicate(0)",
        "duplicate(1)",
        "duplicate(2)",
        "swap(0:1)",
        "swap(1:2)",
        "interpolate(0:1, 0.5)",
        "interpolate(1:2, 0.5)",
    ]


def test_blocks_of_30_layers_are_435_repeats() -> None:
    """Every pair i < j of 30 layers once: 30 · 29 / 2."""
    given = space(30, kinds=kinds_of(("repeat",), ()))
    assert len(made(given, block_ops(given))) == 435


def test_blocks_respect_size_and_stride() -> None:
    given = space(8, sizes=(3, 4), stride=2, kinds=kinds_of(("repeat",), ()))
    assert made(given, block_ops(given)) == [
        "repeat(0..2x2)",
        "repeat(2..4x2)",
        "repeat(4..6x2)",
        "repeat(0..3x2)",
        "repeat(2..5x2)",
        "repeat(4..7x2)",
    ]


def test_ops_name_only_the_layers_that_they_may() -> None:
    given = space(8, first=2, last=4)
    for ops in (single_ops(given), block_ops(given), later_ops(given, 8)):
        for found in candidates(given, ops, none):
            outside = {0, 1, 5, 6, 7}
            kept = [layer.index for layer in found.stack if isinstance(layer, Original) and layer.index in outside]
            assert kept == sorted(outside), found.recipe


def test_layers_behind_the_range_keep_their_place_after_an_op_that_adds_layers() -> None:
    given = space(8, first=2, last=4)
    start = Candidate(parse_text("duplicate(3)"), parse_text("duplicate(3)").apply(8))
    found = extended(given, [start], {}, none, lambda _: 0.0, 500)
    assert all(candidate.stack[-3:] == identity(8)[-3:] for candidate in found)


def test_a_stack_is_one_candidate_whatever_the_recipe() -> None:
    given = space(4)
    ops = [*parse_text("delete(1) + path(0, 2..3) + swap(0:1) + move(0:1)").ops]
    assert made(given, ops) == ["delete(1)", "swap(0:1)"]


def test_the_unchanged_model_is_no_candidate() -> None:
    given = space(4)
    assert made(given, parse_text("swap(0:1)").ops) == ["swap(0:1)"]
    assert made(given, parse_text("path(0..3)").ops) == []


def test_what_surgery_refuses_is_never_tried() -> None:
    def plan(recipe: Recipe) -> None:
        if "delete" in str(recipe):
            raise UnsupportedError("no")

    given = space(4)
    found = list(candidates(given, single_ops(given), surgery_refuses(plan)))
    assert found
    assert not any("delete" in str(candidate.recipe) for candidate in found)


def test_kinds_are_allowed_and_forbidden_by_name() -> None:
    assert kinds_of((), ()) == frozenset(all_ops())
    assert kinds_of(("swap", "delete"), ("delete",)) == {"swap"}
    with pytest.raises(InputError, match="op 'swop' is not known"):
        kinds_of(("swop",), ())
    with pytest.raises(InputError, match="no op is left"):
        kinds_of(("swap",), ("swap",))


def test_experts_are_left_out_of_all_layers() -> None:
    given = space(3, experts=2, kinds=kinds_of(("drop-experts",), ()))
    assert made(given, single_ops(given)) == ["drop-experts(0..2:0)", "drop-experts(0..2:1)"]


def test_extensions_take_turns_among_kinds_and_among_the_beam() -> None:
    given = space(6)
    beam = [Candidate(parse_text(text), parse_text(text).apply(6)) for text in ("delete(1)", "swap(2:3)")]
    known = {found.key: None for found in beam}
    found = extended(given, beam, known, none, lambda candidate: expected_loss(candidate.stack, [1.0] * 6), 20)
    assert len(found) == 20
    starts = [str(candidate.recipe).split(" + ")[0] for candidate in found]
    assert starts == ["delete(1)", "swap(2:3)"] * 10
    kinds = [candidate.recipe.ops[-1].name for candidate in found[::2]]
    assert len(set(kinds)) == len(kinds)
    assert len({candidate.key for candidate in found}) == 20


def test_the_expected_loss_is_the_update_norm_of_what_is_missing_repeated_or_displaced() -> None:
    update = [8.0, 4.0, 2.0, 1.0]

    def loss(text: str) -> float:
        return expected_loss(parse_text(text).apply(4), update)

    assert expected_loss(identity(4), update) == 0.0
    assert loss("delete(2)") == 2.0
    assert loss("duplicate(1)") == 4.0
    assert loss("triple(1)") == 8.0
    assert loss("swap(2:3)") == 1.0  # the lighter of the two is out of order
    assert loss("interpolate(1:2, 0.5)") == pytest.approx(3.0)
    assert loss("scale(3@0.5)") == pytest.approx(0.5)


@settings(max_examples=50)
@given(st.integers(2, 9), st.data())
def test_the_order_of_candidates_is_stable_and_keys_are_those_of_stacks(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    given = space(count, first=first, last=last, reach=data.draw(st.integers(1, 3)))
    once, again = (list(candidates(given, later_ops(given, count), none)) for _ in range(2))
    assert [found.key for found in once] == [found.key for found in again]
    assert len({found.key for found in once}) == len(once)
    assert all(found.key == stack_key(found.recipe.apply(count)) for found in once)
    assert all(a.key != b.key for a, b in pairwise(once))
