"""The algebra: ops on stacks of layers, by properties and by example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from surgery.algebra import (
    DropExperts,
    Layer,
    Original,
    Stack,
    SwapExperts,
    blend,
    describe,
    edited,
    halves,
    identity,
    is_permutation,
    origins,
    parted,
    scaled,
)
from surgery.draw import aligned, changes, removed
from surgery.ops import all_ops
from surgery.recipe import Recipe, parse_text

COUNT = 9
indices = st.integers(0, COUNT - 1)
pairs = st.tuples(indices, indices)
distinct = pairs.filter(lambda pair: pair[0] != pair[1])
spans = pairs.map(lambda pair: (min(pair), max(pair)))
halves_or_none = st.sampled_from(["", ",only=attention", ",only=ffn"])


def applied(text: str, count: int = COUNT) -> Stack:
    return parse_text(text).apply(count, {"B": count, "other_1": 2})


def order(text: str, count: int = COUNT) -> list[str]:
    return [describe(layer) for layer in applied(text, count)]


@st.composite
def any_op(draw: st.DrawFn) -> str:
    """A step that a stack of at least COUNT layers takes."""
    a, b = draw(distinct)
    i, j = draw(spans)
    method = draw(st.sampled_from(["", ",slerp"]))
    only = draw(halves_or_none)
    return draw(
        st.sampled_from(
            [
                f"swap({a}:{b}{only})",
                f"interpolate({a}:{b}@{draw(st.floats(0, 1))}{method}{only})",
                f"interpolate({a}:{b}@{draw(st.floats(0, 1))}={i}{method}{only})",
                f"bridge({a}:{b})",
                f"graft(B:{i}..{j}@{a})",
                f"interpolate({a}:B:{b}@{draw(st.floats(0, 1))}{method}{only})",
                f"interpolate(B:{a}:{b}@{draw(st.floats(0, 1))}={i}{method}{only})",
                f"merge({a}:other_1:1{method}{only})",
                f"duplicate({a})",
                f"triple({a})",
                f"repeat({i}..{j}x{draw(st.integers(1, 3))})",
                f"reverse({i}..{j})",
                f"cycle({i}..{j}@{draw(st.integers(-5, 5))})",
                f"scale({i}..{j}@{draw(st.floats(-2, 2))}{only})",
                f"move({a}:{b})",
                f"path(0..{COUNT - 1},{i}..{j})",
                f"repeat({i}..{j}x2) + attenuate({i}..{2 * j - i + 1})",
                f"swap-experts({a}:{i}:{j})" if i != j else f"drop-experts({a}:{i})",
            ]
        )
    )


recipes = st.lists(any_op(), min_size=1, max_size=6).map(" + ".join)


@given(distinct, halves_or_none)
def test_a_swap_twice_is_nothing(pair: tuple[int, int], only: str) -> None:
    step = f"swap({pair[0]}:{pair[1]}{only})"
    assert applied(f"{step} + {step}") == identity(COUNT)


@given(recipes, distinct, halves_or_none)
def test_a_swap_twice_is_nothing_after_other_ops(before: str, pair: tuple[int, int], only: str) -> None:
    step = f"swap({pair[0]}:{pair[1]}{only})"
    assert applied(f"{before} + {step} + {step}") == applied(before)


@given(recipes, spans)
def test_a_reverse_twice_is_nothing(before: str, span: tuple[int, int]) -> None:
    step = f"reverse({span[0]}..{span[1]})"
    assert applied(f"{before} + {step} + {step}") == applied(before)


@given(spans, st.integers(-20, 20))
def test_a_full_cycle_is_nothing(span: tuple[int, int], by: int) -> None:
    length = span[1] - span[0] + 1
    step = f"cycle({span[0]}..{span[1]}@{by})"
    assert applied(" + ".join([step] * length)) == identity(COUNT)
    assert applied(f"cycle({span[0]}..{span[1]}@{by * length})") == identity(COUNT)


@given(recipes, distinct, st.sampled_from(["", ",slerp"]), halves_or_none)
def test_interpolation_at_its_ends_is_the_layer_itself(before: str, pair: tuple[int, int], how: str, only: str) -> None:
    a, b = pair
    at_0 = applied(f"{before} + interpolate({a}:{b}@0{how}{only})")
    assert at_0 == applied(f"{before} + duplicate({a})")
    at_1 = applied(f"{before} + interpolate({a}:{b}@1{how})")
    assert at_1 == applied(f"{before} + bridge({b}:{a})")


@given(recipes, indices)
def test_deleting_a_copy_is_nothing(before: str, n: int) -> None:
    assert applied(f"{before} + duplicate({n}) + delete({n})") == applied(before)
    assert applied(f"{before} + triple({n}) + delete({n}..{n + 1})") == applied(before)


@given(distinct)
def test_a_move_and_back_is_nothing(pair: tuple[int, int]) -> None:
    assert applied(f"move({pair[0]}:{pair[1]}) + move({pair[1]}:{pair[0]})") == identity(COUNT)


@given(recipes)
def test_any_op_without_arithmetic_equals_its_path(text: str) -> None:
    stack = applied(text)
    if all(isinstance(layer, Original) and not layer.source for layer in stack):
        path = ",".join(str(origins(layer)[0].index) for layer in stack)
        assert applied(f"path({path})") == stack


@given(recipes)
def test_a_recipe_reads_back_from_its_own_text(text: str) -> None:
    recipe = parse_text(text)
    assert parse_text(str(recipe)) == recipe


@given(recipes, recipes)
def test_recipes_compose(first: str, second: str) -> None:
    both = parse_text(first).then(parse_text(second))
    stack = applied(first)
    for op in parse_text(second).ops:
        stack = op.apply(stack)
    assert both.apply(COUNT, {"B": COUNT, "other_1": 2}) == stack


@given(recipes)
def test_the_drawing_shows_every_layer_once_and_in_order(text: str) -> None:
    stack = applied(text)
    lines = aligned(stack, COUNT)
    assert [old for old, _ in lines if old is not None] == list(range(COUNT))
    assert [new for _, new in lines if new is not None] == list(range(len(stack)))
    assert len(changes(stack)) == len(stack)
    used = {origin.index for layer in stack for origin in origins(layer) if not origin.source}
    assert set(removed(stack, COUNT)) == set(range(COUNT)) - used


@given(recipes)
def test_the_weights_of_blends_sum_to_one(text: str) -> None:
    def weights(layer: Layer) -> float:
        parts = getattr(layer, "parts", None)
        return sum(weight for _, weight in parts) if parts else 1.0

    assert all(weights(layer) == pytest.approx(1.0) for layer in applied(text))


def test_each_op_by_example() -> None:
    assert order("swap(0:3)", 5) == ["3", "1", "2", "0", "4"]
    assert order("swap(0:1, 3:4)", 5) == ["1", "0", "2", "4", "3"]
    assert order("interpolate(1:3, 0.25)", 5) == ["0", "1", "0.75·1 + 0.25·3", "2", "3", "4"]
    assert order("interpolate(1:3@0.25=2,slerp)", 5) == ["0", "1", "slerp of 1 and 3 at 0.25", "3", "4"]
    assert order("interpolate(1:3@0.25,only=ffn)", 5)[2] == "attention of 1, ffn of (0.75·1 + 0.25·3)"
    assert order("bridge(0:3)", 5) == ["0", "1", "2", "3", "0", "4"]
    assert order("bridge(4:0)", 5) == ["0", "4", "1", "2", "3", "4"]
    assert order("graft(B:1..2@1)", 3) == ["0", "B:1", "B:2", "1", "2"]
    assert order("graft(other_1:0@3)", 3) == ["0", "1", "2", "other_1:0"]
    assert order("graft(B:0@0) + move(0:3) + graft(B:0@4)", 3) == ["0", "1", "2", "B:0", "B:0"]
    assert order("interpolate(1:B:0@0.25)", 3) == ["0", "1", "0.75·1 + 0.25·B:0", "2"]
    assert order("interpolate(B:1:B:0@0.25=2)", 3) == ["0", "1", "0.75·B:1 + 0.25·B:0"]
    assert order("merge(1:B:0, method=slerp)", 3) == ["0", "slerp of 1 and B:0 at 0.5", "2"]
    assert order("delete(1, 3..4)", 5) == ["0", "2"]
    assert order("duplicate(2)", 4) == ["0", "1", "2", "2", "3"]
    assert order("triple(0)", 2) == ["0", "0", "0", "1"]
    assert order("repeat(1..2)", 4) == ["0", "1", "2", "1", "2", "3"]
    assert order("repeat(1..2x3)", 4) == ["0", "1", "2", "1", "2", "1", "2", "3"]
    both = "1 × 0.707107", "1 with outputs × 0.707107, q and k × 0.707107"
    assert order("duplicate(1) + attenuate(all)", 3) == ["0", *both, "2"]
    assert order("duplicate(1) + attenuate(1..2)", 3) == ["0", *both, "2"]
    assert order("triple(0) + attenuate(0..2)", 1)[1:] == ["0 with outputs × 0.57735, q and k × 0.707107"] * 2
    assert order("reverse(1..3)", 5) == ["0", "3", "2", "1", "4"]
    assert order("cycle(0..3)", 5) == ["3", "0", "1", "2", "4"]
    assert order("cycle(0..3@-1)", 5) == ["1", "2", "3", "0", "4"]
    assert order("scale(1@0.5)", 3) == ["0", "1 × 0.5", "2"]
    assert order("scale(0..1@0.5,only=attention)", 3) == ["0 with attention × 0.5", "1 with attention × 0.5", "2"]
    assert order("merge(0:2)", 4) == ["0.5·0 + 0.5·2", "1", "3"]
    assert order("merge(2:0)", 4) == ["1", "0.5·2 + 0.5·0", "3"]
    assert order("move(0:2)", 4) == ["1", "2", "0", "3"]
    assert order("move(3:0)", 4) == ["3", "0", "1", "2"]
    assert order("path(0..2, 1..2, 3)", 4) == ["0", "1", "2", "1", "2", "3"]
    assert order("drop-experts(1:0, 2)", 2) == ["0", "1 without experts 0, 2"]
    assert order("swap-experts(1:0:2)", 2) == ["0", "1 with experts 0 and 2 exchanged"]


def test_the_champions_are_one_line_each() -> None:
    second = applied("swap(12:13, 16:17) + interpolate(20:22, 0.5) + bridge(5:20)", 28)
    assert len(second) == 30
    assert [describe(second[n]) for n in (12, 13, 16, 17, 20, 21, 22, 23)] == [
        "13", "12", "17", "16", "20", "5", "0.5·20 + 0.5·22", "21",
    ]  # fmt: skip
    first = applied("delete(10) + swap(11:12)", 28)
    assert len(first) == 27
    assert [describe(first[n]) for n in (9, 10, 11, 12, 13)] == ["9", "11", "13", "12", "14"]


def test_means_of_means_become_one() -> None:
    a, b = identity(2)
    inner = blend(((a, 0.5), (b, 0.5)))
    assert blend(((inner, 0.5), (b, 0.5))) == blend(((a, 0.25), (b, 0.75)))
    assert blend(((inner, 0.5), (inner, 0.5))) == inner
    assert blend(((a, 0.3), (a, 0.7))) == a
    with pytest.raises(ValueError, match="sum to"):
        blend(((a, 0.3), (b, 0.3)))


def test_halves_and_scales_come_into_one_form() -> None:
    a, b = identity(2)
    assert halves(halves(a, b), halves(b, a)) == a
    assert scaled(scaled(a, 2.0), 0.5) == a
    assert scaled(scaled(a, 2.0, "ffn"), 3.0) == scaled(scaled(a, 3.0, "attention"), 6.0, "ffn")
    assert edited(edited(a, SwapExperts(0, 1)), SwapExperts(0, 1)) == a
    assert edited(edited(a, DropExperts((1,))), DropExperts((1,))) != edited(a, DropExperts((1,)))
    assert parted(halves(a, b)) == (a, b)
    assert parted(blend(((a, 0.5), (b, 0.5)))) == ()
    assert parted(scaled(a, 2.0)) == ()


def test_only_an_order_is_a_permutation() -> None:
    assert is_permutation(applied("reverse(0..8) + cycle(1..3)"), COUNT)
    for text in ("delete(1)", "duplicate(1)", "path(0, 0..7)", "scale(1@2)", "swap(0:1,only=ffn)"):
        assert not is_permutation(applied(text), COUNT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swap(1:9)", "no layer 9; the model has 9 layers at this point, 0 to 8"),
        ("duplicate(0) + delete(0..9)", "all 10 layers would be deleted"),
        ("delete(3, 2..4)", "layer 3 is given twice"),
        ("swap(1:2, 2:3)", "layer 2 is given twice"),
        ("swap(1:1)", "layer 1 is given twice"),
        ("merge(2:2)", "layer 2 is given twice"),
        ("path(0..9)", "no layer 9"),
        ("path(5..2)", "is descending; expected 2..5"),
        ("wobble(1)", "op 'wobble' is not known; the ops are attenuate, bridge"),
        ("interpolate(1:2, 1.5)", "ALPHA is 1.5; expected a number from 0 to 1"),
        ("interpolate(1:2)", "expected one number from 0 to 1"),
        ("interpolate(1:2, 0.5, sideways)", "ALPHA is missing or given twice"),
        ("interpolate(1:2@nan)", "not a finite number"),
        ("interpolate(1:2@0.5, method=cubic)", "linear or slerp"),
        ("swap(1:2, only=nose)", "attention or ffn"),
        ("bridge(1:2, only=ffn)", "bridge takes no only"),
        ("scale(1)", "the factor is missing"),
        ("scale(1@inf)", "not a finite number"),
        ("repeat(1..2x0)", "K is 0"),
        ("repeat(1..2xx)", "K is 'x'; expected a whole number"),
        ("cycle(1..2@much)", "K is 'much'; expected a whole number"),
        ("swap(one:2)", "'one' is not a layer or expert number; write swap as A:B"),
        ("swap(1-2)", "is not a pair"),
        ("bridge(1:2, 3:4)", "2 arguments are given"),
        ("merge(1:2, 3:4)", "unexpected argument"),
        ("drop-experts(1)", "the experts are missing"),
        ("drop-experts(1:2, 2)", "expert 2 is given twice"),
        ("swap-experts(1:2)", "a layer and two experts"),
        ("swap(1:2, speed=3)", "'speed' is not an argument"),
        ("swap()", "an argument is missing"),
        ("swap(1:2) bridge(1:2)", "expected + and another op"),
        ("swap(1:2) +", "found 'nothing'; expected an op"),
        ("repeat(0..8x1000)", "at most 4096"),
        ("duplicate(4) + attenuate(5..6)", "no layer from 5 to 6 runs more than once"),
        ("duplicate(0) + attenuate(all) + attenuate(all)", "runs more than once"),
        ("graft(B:8..9@0)", "graft(B:8..9@0): there is no layer 9 in B, which has 9 layers, 0 to 8"),
        ("graft(C:0@0)", "say with --with C=PATH which model C is"),
        ("graft(B:0@10)", "there is no place 10; at this point the places are 0 to 9"),
        ("graft(0..1@2)", "'0..1@2' is not of this form; write graft as B:I..J@K"),
        ("graft(B:1)", "is not of this form"),
        ("graft(B:2..1@0)", "2..1 is descending; expected 1..2"),
        ("interpolate(B:1:2@0.5)", "B:1 is no layer of the model, and =N does not say which one is replaced"),
        ("interpolate(1:2:3@0.5)", "'1:2:3' is not a pair"),
        ("interpolate(1:B:9@0.5)", "there is no layer 9 in B"),
        ("merge(B:1:2)", "name the model's own layer first"),
        ("swap(B:1:2)", "'B' is not a layer or expert number"),
        ("attenuate(0..9)", "no layer 9"),
        ("attenuate(none)", "'none' is not a layer or expert number; write attenuate as all|I..J"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        applied(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_every_op_says_how_to_write_it() -> None:
    assert len(all_ops()) == 17
    for name, op in all_ops().items():
        assert name == op.name
        assert op.usage
        assert op.help.endswith(".")


def test_a_recipe_for_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="for a model of 28 layers, but this one has 9"):
        Recipe(parse_text("swap(1:2)").ops, 28).apply(COUNT)
