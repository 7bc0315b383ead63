"""Recipes: sequences of ops, read from text, from a TOML file, or from command-line options.

Text: `swap(12:13, 16:17) + interpolate(20:22, 0.5) + bridge(5:20)`. A file holds the same steps as a list of strings:

    layers = 28     # of the model it was made for; checked where it is given
    about = "…"     # for readers, as is source
    steps = [
        "swap(12:13, 16:17)",
        "interpolate(20:22, 0.5)",
        "bridge(5:20)",
    ]
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.formats.output import atomic_output
from gguf_tools.formats.text_file import Kind, read_text
from surgery.algebra import Stack, identity
from surgery.ops import Op, op_named, parse_op
from surgery.shipped import shipped_recipes

MAX_LAYERS = 4096
"""Maximum number of layers that a recipe can produce, far more than in any model (llama.cpp's limit is 512)."""

TEXTS = ("about", "source")
"""Keys of a recipe's file that are for readers alone."""
_STEP = re.compile(r"\s*([A-Za-z-]+)\s*\(([^()]*)\)\s*")


@dataclass(frozen=True)
class Recipe:
    """Ops in order of application; `layers` is the number of layers that the model must have, or None for any.

    `later` has the numbers of layers, as (ops before, layers), that recipes further back were made for.
    """

    ops: tuple[Op, ...] = ()
    layers: int | None = None
    later: tuple[tuple[int, int], ...] = ()

    def apply(self, count: int) -> Stack:
        """The stack after all ops on a model with `count` layers."""
        expected = {0: self.layers, **dict(self.later)}
        stack = identity(count)
        for n, op in enumerate(self.ops):
            if expected.get(n) not in (None, len(stack)):
                what = f"this one has {len(stack)}" + (" at this point" if n else "")
                raise InputError(
                    f"the recipe is for a model of {expected[n]} layers, but {what} (0 to {len(stack) - 1})"
                )
            stack = op.apply(stack)
            if len(stack) > MAX_LAYERS:
                raise InputError(f"{op}: {len(stack)} layers would result; expected at most {MAX_LAYERS}")
        return stack

    def then(self, other: Recipe) -> Recipe:
        """This recipe followed by another; each keeps the number of layers that it is for."""
        if not self.ops:
            return other
        shift = len(self.ops)
        later = ([] if other.layers is None else [(0, other.layers)]) + list(other.later)
        return Recipe(self.ops + other.ops, self.layers, (*self.later, *((n + shift, count) for n, count in later)))

    def __str__(self) -> str:
        return " + ".join(map(str, self.ops))

    def __bool__(self) -> bool:
        return bool(self.ops)


def parse_text(text: str) -> Recipe:
    """Parse a recipe in text form; InputError names the part that cannot be parsed."""
    ops: list[Op] = []
    position = 0
    while True:
        match = _STEP.match(text, position)
        if match is None:
            rest = text[position:].strip() or "nothing"
            raise InputError(f"recipe: found {rest[:40]!r}; expected an op such as swap(1:3)")
        ops.append(parse_op(match[1], match[2]))
        position = match.end()
        if position == len(text):
            return Recipe(tuple(ops))
        if text[position] != "+":
            raise InputError(f"recipe: found {text[position:][:40]!r}; expected + and another op")
        position += 1


def load_recipe(given: str) -> Recipe:
    """A recipe given as text, which contains a parenthesis, as the name of one that ships, or of a TOML file."""
    if "(" in given and not given.endswith(".toml"):
        return parse_text(given)
    return read_file(shipped_recipes().get(given, Path(given)))


def read_file(path: Path) -> Recipe:
    """The recipe in a TOML file."""
    # tomllib is in Python from 3.11 on; tomli is its backport.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = read_text(path, Kind.RECIPE, InputError)
    except InputError as error:
        names = ", ".join(shipped_recipes())
        raise InputError(
            f"recipe {error}; expected a TOML file, a text such as 'swap(1:3)', or one of {names}"
        ) from error
    try:
        data = toml.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"recipe {path}: not valid TOML ({error})") from error
    steps, layers = data.get("steps"), data.get("layers")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise InputError(
            f'recipe {path}: steps is missing or not a list of ops; expected steps = ["swap(1:3)"] or similar'
        )
    if layers is not None and (type(layers) is not int or layers < 1):
        raise InputError(f"recipe {path}: layers is {layers!r}; expected a whole number above 0")
    unknown = sorted(set(data) - {"steps", "layers", *TEXTS})
    if unknown:
        raise InputError(f"recipe {path}: key {unknown[0]} is not known; expected steps and optionally layers")
    return Recipe(parse_text(" + ".join(steps)).ops, layers)


def file_text(recipe: Recipe, layers: int | None = None) -> str:
    """The recipe as a TOML file, for a model of `layers` layers."""
    count = recipe.layers if layers is None else layers
    lines = [] if count is None else [f"layers = {count}"]
    # An ASCII JSON string is also a TOML basic string.
    return "\n".join([*lines, "steps = [", *(f"    {json.dumps(str(op))}," for op in recipe.ops), "]", ""])


def save_recipe(recipe: Recipe, path: Path, layers: int, *, force: bool = False) -> None:
    """Write the recipe to a TOML file, whole or not at all; OutputError where it exists without `force`, or that fails."""
    with atomic_output(path, force=force) as stream:
        stream.write(file_text(recipe, layers).encode())


def from_options(options: Iterable[tuple[str, str]]) -> Recipe:
    """The recipe of options (name, value), in the order of the command line.

    `only` restricts the preceding op to one half; `recipe` inserts all ops of a recipe.
    """
    recipe = Recipe()
    texts: list[tuple[str, str]] = []
    for name, value in options:
        if name == "only":
            if not texts or not op_named(texts[-1][0]).takes_only:
                raise InputError(
                    f"--only {value}: does not follow a swap, blend or scale; put it right after the op that it restricts"
                )
            texts[-1] = (texts[-1][0], f"{texts[-1][1]},only={value}")
        elif name == "recipe":
            recipe = recipe.then(_parsed(texts)).then(load_recipe(value))
            texts = []
        else:
            texts.append((name, value))
    return recipe.then(_parsed(texts))


def _parsed(texts: Iterable[tuple[str, str]]) -> Recipe:
    return Recipe(tuple(parse_op(name, text) for name, text in texts))
