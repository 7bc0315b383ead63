"""Recipes: sequences of ops, read from text, from a TOML file, or from command-line options.

Text: `swap(12:13, 16:17) + interpolate(20:22, 0.5) + bridge(5:20)`. A file holds the same steps as a list of strings:

    layers = 28     # of the model it was made for; checked where it is given
    about = "…"     # for readers, as are source and base
    steps = [
        "swap(12:13, 16:17)",
        "interpolate(20:22, 0.5)",
        "graft(B:5..6@20)",
    ]

    [donors.B]
    path = "../other"       # seen from the file's folder
    digest = "9f86d081…"    # SHA-256; checked where it is given
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.formats.output import atomic_output
from gguf_tools.formats.text_file import Kind, parse_toml, read_text
from gguf_tools.text import expected
from surgery.algebra import Stack, identity
from surgery.ops import Op, op_named, parse_op
from surgery.ops.base import DONOR
from surgery.shipped import shipped_recipes
from surgery.sources import Donor, parse_donor, source_digest

MAX_LAYERS = 4096
"""Maximum number of layers that a recipe can produce, far more than in any model (llama.cpp's limit is 512)."""

TEXTS = ("about", "source", "base")
"""Keys of a recipe's file that are for readers alone."""
_STEP = re.compile(r"\s*([A-Za-z-]+)\s*\(([^()]*)\)\s*")


@dataclass(frozen=True)
class Recipe:
    """Ops in order of application; `layers` is the number of layers that the model must have, or None for any.

    `later` has the numbers of layers, as (ops before, layers), that recipes further back were made for. `donors` are the
    other models that ops take layers from.
    """

    ops: tuple[Op, ...] = ()
    layers: int | None = None
    later: tuple[tuple[int, int], ...] = ()
    donors: tuple[Donor, ...] = ()

    def apply(self, count: int, donors: Mapping[str, int] | None = None) -> Stack:
        """The stack after all ops on a model with `count` layers; `donors` has the number of layers of each donor."""
        expected = {0: self.layers, **dict(self.later)}
        stack = identity(count)
        for n, op in enumerate(self.ops):
            if expected.get(n) not in (None, len(stack)):
                what = f"this one has {len(stack)}" + (" at this point" if n else "")
                raise InputError(
                    f"the recipe is for a model of {expected[n]} layers, but {what} (0 to {len(stack) - 1})"
                )
            _check_donors(op, donors or {})
            stack = op.apply(stack)
            if len(stack) > MAX_LAYERS:
                raise InputError(f"{op}: {len(stack)} layers would result; expected at most {MAX_LAYERS}")
        return stack

    def then(self, other: Recipe) -> Recipe:
        """This recipe followed by another; each keeps the number of layers that it is for."""
        donors = _joined(self.donors, other.donors)
        if not self.ops:
            return replace(other, donors=donors)
        shift = len(self.ops)
        later = ([] if other.layers is None else [(0, other.layers)]) + list(other.later)
        later = [*self.later, *((n + shift, count) for n, count in later)]
        return Recipe(self.ops + other.ops, self.layers, tuple(later), donors)

    def with_donors(self, donors: Iterable[Donor]) -> Recipe:
        """The recipe with these donors in the place of those of the same names.

        InputError for a donor that no op takes a layer from, and for one that ops name and nobody gave.
        """
        given = {donor.name: donor for donor in (*self.donors, *donors)}
        used = [origin.source for op in self.ops for origin in op.donors]
        for name, donor in given.items():
            if name not in used:
                raise InputError(f"--with {name}={donor.path}: no op takes a layer of {name}; name one as {name}:N")
        for name in used:
            if name not in given:
                raise InputError(f"the recipe takes layers of {name}; say with --with {name}=PATH which model that is")
        return replace(self, donors=tuple(given.values()))

    def __str__(self) -> str:
        return " + ".join(map(str, self.ops))

    def __bool__(self) -> bool:
        return bool(self.ops)

    def with_digests(self) -> Recipe:
        """The recipe with the digests of its donors, each read once where it is not known."""
        found = (replace(donor, digest=donor.digest or source_digest(donor.path)) for donor in self.donors)
        return replace(self, donors=tuple(found))


def _check_donors(op: Op, donors: Mapping[str, int]) -> None:
    """Raise InputError where an op names a layer that its donor lacks, or a donor that is not among those given."""
    for origin in op.donors:
        count = donors.get(origin.source)
        if count is None:
            raise InputError(f"{op}: say with --with {origin.source}=PATH which model {origin.source} is")
        if origin.index >= count:
            raise InputError(
                f"{op}: there is no layer {origin.index} in {origin.source}, which has {count} layers, 0 to {count - 1}"
            )


def _joined(donors: tuple[Donor, ...], others: tuple[Donor, ...]) -> tuple[Donor, ...]:
    """The donors of two recipes; InputError where they call two models by one name."""
    found = {donor.name: donor for donor in donors}
    for donor in others:
        known = found.setdefault(donor.name, donor)
        places = known.path.resolve(), donor.path.resolve()
        if known.digest != donor.digest if known.digest and donor.digest else places[0] != places[1]:
            raise InputError(
                f"{donor.name} is {known.path} in the recipe before, and {donor.path} now; give this one another name, such as "
                f"--with C={donor.path}"
            )
    return tuple(found.values())


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
    try:
        text = read_text(path, Kind.RECIPE, InputError)
    except InputError as error:
        wanted = expected(str(path), shipped_recipes(), "expected a TOML file, a text such as 'swap(1:3)', or one of")
        raise InputError(f"recipe {error}; {wanted}") from error
    return parse_file_text(text, path)


def parse_file_text(text: str, path: Path) -> Recipe:
    """The recipe in the text of a TOML file; `path` is named in errors, and donors' paths are relative to its folder."""
    data = parse_toml(text, f"recipe {path}")
    steps, layers = data.get("steps"), data.get("layers")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise InputError(
            f'recipe {path}: steps is missing or not a list of ops; expected steps = ["swap(1:3)"] or similar'
        )
    if layers is not None and (type(layers) is not int or layers < 1):
        raise InputError(f"recipe {path}: layers is {layers!r}; expected a whole number above 0")
    unknown = sorted(set(data) - {"steps", "layers", "donors", *TEXTS})
    if unknown:
        raise InputError(
            f"recipe {path}: key {unknown[0]} is not known; expected steps and optionally layers and donors"
        )
    return Recipe(parse_text(" + ".join(steps)).ops, layers, donors=_donors(path, data.get("donors", {})))


def _donors(path: Path, tables: Any) -> tuple[Donor, ...]:
    """The donors of a recipe's file: a table of path and digest each."""
    found = []
    for name, table in tables.items() if isinstance(tables, dict) else [("", None)]:
        stated = (
            {key: value for key, value in table.items() if isinstance(value, str)} if isinstance(table, dict) else {}
        )
        if (
            not re.fullmatch(DONOR, name)
            or stated != table
            or not stated.keys() <= {"path", "digest"}
            or "path" not in stated
        ):
            raise InputError(
                f"recipe {path}: donors{name and f'.{name}'} is {table!r}; a path, and perhaps a digest, are expected, such as "
                f'[donors.B] path = "../other"'
            )
        found.append(Donor(name, path.parent / stated["path"], stated.get("digest")))
    return tuple(found)


def file_text(recipe: Recipe, layers: int | None = None, folder: Path | None = None, base: Donor | None = None) -> str:
    """The recipe as a TOML file in `folder`, for a model of `layers` layers; `base` is the model that was operated on."""
    count = recipe.layers if layers is None else layers
    lines = [] if count is None else [f"layers = {count}"]
    # An ASCII JSON string is also a TOML basic string.
    lines += ["steps = [", *(f"    {json.dumps(str(op))}," for op in recipe.ops), "]"]
    for name, donor in [("base", base), *((f"donors.{donor.name}", donor) for donor in recipe.donors)]:
        if donor:
            place = os.path.relpath(donor.path.absolute(), (folder or Path()).absolute())
            lines += ["", f"[{name}]", f"path = {json.dumps(Path(place).as_posix())}"]
            lines += [f"digest = {json.dumps(donor.digest)}"] if donor.digest else []
    return "\n".join([*lines, ""])


def save_recipe(recipe: Recipe, path: Path, layers: int, *, force: bool = False) -> None:
    """Write the recipe to a TOML file, whole or not at all; OutputError where it exists without `force`, or that fails."""
    with atomic_output(path, force=force) as stream:
        stream.write(file_text(recipe, layers, path.parent).encode())


def from_options(options: Iterable[tuple[str, str]]) -> Recipe:
    """The recipe of options (name, value), in the order of the command line.

    `only` restricts the preceding op to one half; `recipe` inserts all ops of a recipe; `with`, wherever it stands, declares a
    donor.
    """
    recipe = Recipe()
    donors: list[Donor] = []
    texts: list[tuple[str, str]] = []
    for name, value in options:
        if name == "only":
            if not texts or not op_named(texts[-1][0]).takes_only:
                raise InputError(
                    f"--only {value}: does not follow a swap, blend or scale; put it right after the op that it restricts"
                )
            texts[-1] = (texts[-1][0], f"{texts[-1][1]},only={value}")
        elif name == "with":
            donors.append(parse_donor(value))
        elif name == "recipe":
            recipe = recipe.then(_parsed(texts)).then(load_recipe(value))
            texts = []
        else:
            texts.append((name, value))
    twice = next((donor.name for n, donor in enumerate(donors) if donor.name in {d.name for d in donors[:n]}), None)
    if twice:
        raise InputError(f"--with names two models {twice}; give one of them another name, such as --with C=PATH")
    return recipe.then(_parsed(texts)).with_donors(donors)


def _parsed(texts: Iterable[tuple[str, str]]) -> Recipe:
    return Recipe(tuple(parse_op(name, text) for name, text in texts))
