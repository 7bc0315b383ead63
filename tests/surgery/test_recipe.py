"""Recipes as files and as options."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools.errors import InputError, OutputError
from surgery.recipe import Recipe, file_text, from_options, load_recipe, parse_text, read_file, save_recipe

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
        ("steps = []", "a list of steps is expected"),
        ("steps = [3]", "a list of steps is expected"),
        ("layers = 0\nsteps = ['swap(0:1)']", "layers is 0"),
        ("step = 1\nsteps = ['swap(0:1)']", "step is not known"),
        ("steps = ['swap(0:1']", "found where an op"),
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
        with pytest.raises(InputError, match="follows no swap, blend or scale"):
            from_options(given)
