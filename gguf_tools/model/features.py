"""The features of a decoder: everything that its spec states beyond sizes. A feature that no code declares is refused.

Every field of a spec part (the frozen dataclasses of `spec.py` and `rope.py`) is one of four things, given in its metadata:

- a *size* (`size`): a number that determines shapes or arithmetic; every consumer of the part has to read it;
- an *option* (`option`): a feature wherever it is not at its neutral value;
- a *choice* (`choice`): each of its values is a feature;
- a *part* (`part`): another part of the spec, whose class is a feature and which has features of its own.

A field without such metadata counts as an option if it has a default, and as a choice if it has none, so that a new field
without metadata is refused everywhere instead of being ignored.

Targets, rewrites, the reference and surgery declare the keys of the features that they support; `undeclared` gives the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from gguf_tools.text import shortened

if TYPE_CHECKING:
    from gguf_tools.model.spec import LayerSpec, ModelSpec


@dataclass(frozen=True)
class Place:
    """The position of a value in a spec: the whole spec, and the nested parts from the outermost to the value's owner."""

    spec: ModelSpec
    parts: tuple[Any, ...]

    @property
    def owner(self) -> Any:
        """The part that has the value as a field."""
        return self.parts[-1]

    @property
    def parent(self) -> Any:
        """The part that contains the owner."""
        return self.parts[-2]


Words = Callable[[Any, Place], str]
"""(value, its place) → a short description of the feature, for error messages."""
Neutral = Callable[[Any, Place], bool]
"""(value, its place) → whether the value has no effect on what the model computes."""

_KEY = "feature"


@dataclass(frozen=True)
class Meaning:
    """The role of a field of a spec part, with `words` and `neutral` where they differ from the defaults."""

    kind: Literal["size", "option", "choice", "part"]
    words: Words | None = None
    neutral: Neutral | None = None


@dataclass(frozen=True)
class Feature:
    """One feature of a spec.

    `key` is its name in declarations: `Attention.gated`, `Attention.bias=q`, `Rope.pairs=half`. `words` describes it to the
    user, `owner` is the class of the part that has it, and `within` holds the keys of the parts that contain this part.
    """

    key: str
    words: str
    owner: type
    within: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        """The field of the outermost part that contains the feature, such as `mixer`."""
        return (*self.within, self.key)[0].partition("=")[0].partition(".")[2]


def size(default: Any = MISSING) -> Any:
    """A field that is a plain size."""
    return _field(Meaning("size"), default)


def option(words: str | Words, default: Any = None, *, neutral: Neutral | None = None) -> Any:
    """A field that is a feature where it differs from `default` (or is not `neutral`).

    A frozenset yields one feature per item; a part yields a feature named after its class, and its own features.
    """
    return _field(Meaning("option", _words(words), neutral), default)


def choice(words: str | Words, default: Any = MISSING) -> Any:
    """A field each of whose values is a feature."""
    return _field(Meaning("choice", _words(words)), default)


def part(words: str | Words, default: Any = MISSING) -> Any:
    """A field that holds another part of the spec; its class is a feature."""
    return _field(Meaning("part", _words(words)), default)


def _words(words: str | Words) -> Words:
    return (lambda value, place: words) if isinstance(words, str) else words


def _field(meaning: Meaning, default: Any) -> Any:
    return field(default=default, metadata={_KEY: meaning})


def features(spec: ModelSpec) -> tuple[Feature, ...]:
    """Every feature of the spec and its layers, without duplicates, in order of first occurrence."""
    found = dict.fromkeys(_of(Place(spec, (spec,))))
    for layer in dict.fromkeys(spec.layers):
        found |= dict.fromkeys(_of(Place(spec, (spec, layer))))
    return tuple(found)


def layer_features(layer: LayerSpec, spec: ModelSpec) -> tuple[Feature, ...]:
    """The features of one layer of the spec."""
    return tuple(dict.fromkeys(_of(Place(spec, (spec, layer)))))


def parts_of(part: Any) -> Iterator[Any]:
    """A part of a spec, or the whole, and all parts within it; equal layers once."""
    yield part
    for entry in fields(part):
        value = getattr(part, entry.name)
        for inner in dict.fromkeys(value) if isinstance(value, tuple) else (value,):
            if is_dataclass(inner):
                yield from parts_of(inner)


def undeclared(found: Iterable[Feature], expressed: Collection[str]) -> list[str]:
    """Descriptions of the features whose keys are not in `expressed`; for a part that is not, only that of the part itself."""
    lacking = (feature for feature in found if feature.key not in expressed)
    return list(dict.fromkeys(feature.words for feature in lacking if set(feature.within) <= set(expressed)))


def _of(place: Place, within: tuple[str, ...] = ()) -> Iterator[Feature]:
    """The features of the part at `place` and, depth first, of the parts in its fields.

    `within` holds the keys of the parts that contain it. Sizes and options with a neutral value yield nothing.
    """
    owner = place.owner
    kind: Any = type(owner)
    for entry, meaning, name in _entries(kind):
        if meaning.kind == "size":
            continue
        value = getattr(owner, entry.name)
        if meaning.kind == "option" and _is_neutral(entry, meaning, value, place):
            continue
        inner = is_dataclass(value)
        for item in sorted(value) if isinstance(value, frozenset) else [value]:
            key = name
            if inner:
                key = f"{name}={type(value).__name__}"
            elif meaning.kind != "option" or isinstance(value, frozenset):
                key = f"{name}={str(item).lower() if isinstance(item, bool) else shortened(str(item), 40)}"
            words = meaning.words(item, place) if meaning.words else f"{key} of {shortened(repr(value), 40)}"
            yield Feature(key, words, kind, within)
        if inner:
            yield from _of(Place(place.spec, (*place.parts, value)), (*within, key))


@cache
def _entries(owner: type[Any]) -> tuple[tuple[Field[Any], Meaning, str], ...]:
    """Each field of a part of the spec, with its meaning and its name in keys (`Attention.gate`)."""
    return tuple(
        (entry, meaning_of(entry), f"{_defining(owner, entry.name).__name__}.{entry.name}") for entry in fields(owner)
    )


def _is_neutral(entry: Field[Any], meaning: Meaning, value: Any, place: Place) -> bool:
    if meaning.neutral is not None:
        return meaning.neutral(value, place)
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    return bool(value == default)


def meaning_of(entry: Field[Any]) -> Meaning:
    """What a field of a spec part means, by its metadata, or by whether it has a default."""
    stated = entry.metadata.get(_KEY)
    if isinstance(stated, Meaning):
        return stated
    has_default = entry.default is not MISSING or entry.default_factory is not MISSING
    return Meaning("option" if has_default else "choice")


def _defining(owner: type, name: str) -> type:
    """The class that declares a field: an inherited field is named after the base class."""
    return next(base for base in reversed(owner.__mro__) if name in getattr(base, "__annotations__", {}))
