"""Recipes as files and as options."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools.errors import InputError, OutputError
from surgery.algebra import describe
from surgery.recipe import Recipe, file_text, from_options, load_recipe, parse_text, read_file, save_recipe
from surgery.shipped import shipped_recipes

LAYERS = {"solar-dus": 32, "rys": 80, "g023-v1": 28, "g023-v2": 28}
CHAMPION = "swap(12:13, 16:17) + interpolate(20:22, 0.5) + bridge(5:20)"


def test_a_recipe_comes_back_from_its_file(tmp_path: Path) -> None:
    recipe = parse_text(CHAMPION)
    path = tmp_path / "champion.toml"
    save_recipe(recipe, path, 28)
    assert read_file(path) == Recipe(recipe.ops, 28)
    assert load_recipe(str(path)) == Recipe(recipe.ops, 28)
    assert load_recipe(CHAMPION) == recipe
    assert 'steps = [\n    "swap(12:13, 16:17)",' in path.read_text()


def test_a_file_may_lack_the_number_of_layers(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(file_text(parse_text("swap(0:1)")))
    assert read_file(path).layers is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps = [", "not valid TOML"),
        ("steps = []", "steps is missing or not a list of ops"),
        ("steps = [3]", "steps is missing or not a list of ops"),
        ("layers = 0\nsteps = ['swap(0:1)']", "layers is 0"),
        ("step = 1\nsteps = ['swap(0:1)']", "step is not known"),
        ("steps = ['swap(0:1']", "expected an op"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(OutputError, match="does not exist; create it first"):
        save_recipe(parse_text("swap(0:1)"), tmp_path / "none" / "r.toml", 2)


def test_options_apply_in_the_order_given(tmp_path: Path) -> None:
    given = [("swap", "0:1"), ("delete", "2"), ("swap", "1:3"), ("only", "ffn"), ("interpolate", "0:1@0.5=2,slerp")]
    assert str(from_options(given)) == (
        "swap(0:1) + delete(2) + swap(1:3, only=ffn) + interpolate(0:1, 0.5, replace=2, method=slerp)"
    )
    mixed = from_options([("swap", "0:1"), ("recipe", "delete(2) + move(0:1)"), ("scale", "1@0.5")])
    assert str(mixed) == "swap(0:1) + delete(2) + move(0:1) + scale(1@0.5)"
    assert not from_options([])


def test_only_follows_what_it_narrows() -> None:
    for given in ([("only", "ffn")], [("bridge", "0:1"), ("only", "ffn")], [("recipe", "swap(0:1)"), ("only", "ffn")]):
        with pytest.raises(InputError, match="does not follow a swap, blend or scale"):
            from_options(given)


def test_the_recipes_that_ship_make_what_their_sources_say() -> None:
    stacks = {name: load_recipe(name).apply(layers) for name, layers in LAYERS.items()}
    assert set(LAYERS) == set(shipped_recipes())
    made = {name: [describe(layer) for layer in stack] for name, stack in stacks.items()}
    assert made["solar-dus"] == [str(n) for n in (*range(24), *range(8, 32))]
    assert made["rys"] == [str(n) for n in (*range(52), *range(45, 80))]
    assert made["g023-v1"] == [str(n) for n in (*range(10), 11, 13, 12, *range(14, 28))]
    assert stacks["g023-v2"] == parse_text(CHAMPION).apply(28)
    for path in shipped_recipes().values():
        assert 'source = "' in path.read_text("utf-8")


@pytest.mark.parametrize("name", ["solar-dus", "rys", "g023-v1", "g023-v2"])
def test_a_recipe_that_ships_is_refused_on_another_number_of_layers(name: str) -> None:
    with pytest.raises(InputError, match=f"for a model of {LAYERS[name]} layers, but this one has 24"):
        load_recipe(name).apply(24)


def test_a_recipe_after_other_ops_counts_the_layers_at_its_place() -> None:
    after = from_options([("delete", "0"), ("recipe", "g023-v1")])
    assert len(after.apply(29)) == 27
    with pytest.raises(InputError, match="for a model of 28 layers, but this one has 27 at this point"):
        after.apply(28)
    again = from_options([("swap", "0:1"), ("recipe", "g023-v1"), ("duplicate", "0"), ("recipe", "g023-v2")])
    assert len(again.apply(28)) == 30


def test_an_unknown_name_is_refused_with_those_that_ship() -> None:
    with pytest.raises(InputError, match="one of g023-v1, g023-v2, rys, solar-dus"):
        load_recipe("nothing-like-it")
    with pytest.raises(InputError, match="did you mean solar-dus"):
        load_recipe("solar")


@pytest.mark.parametrize("text", ["path(0\x1e..1)", "repeat(0..1x\x1f2)", "cycle(0..2@\x1c1)", "swap(\x1d0:\x1e1)"])
def test_white_space_that_int_does_not_take(text: str) -> None:
    assert parse_text(str(parse_text(text))) == parse_text(text)
