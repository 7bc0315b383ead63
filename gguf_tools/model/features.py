"""The features of a decoder: whatever its spec states beyond sizes, so that nothing is accepted because nobody thought of it.

Every field of a spec part (the frozen dataclasses of `spec.py` and `rope.py`) is one of four things, said by its metadata:

- a *size* (`size`): a number that shapes or arithmetic follow from and that every reader of the part has to read;
- an *option* (`option`): a feature wherever it is not at its neutral value;
- a *choice* (`choice`): each of its values is a feature;
- a *part* (`part`): another part of the spec, whose class is a feature and which has features of its own.

A field without such metadata counts as an option if it has a default, and as a choice if it has none: an author who forgets to
say what a new field is gets it refused everywhere, not accepted.

Targets, rewrites, the reference and surgery declare the keys of the features that they express; `undeclared` gives the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from gguf_tools.text import shortened

if TYPE_CHECKING:
    from gguf_tools.model.spec import LayerSpec, ModelSpec


@dataclass(frozen=True)
class Place:
    """Where a value stands: the parts that it lies in, from the outermost to its own, and the whole spec."""

    spec: ModelSpec
    parts: tuple[Any, ...]

    @property
    def owner(self) -> Any:
        """The part whose field it is."""
        return self.parts[-1]

    @property
    def parent(self) -> Any:
        """The part that the owner lies in."""
        return self.parts[-2]


Words = Callable[[Any, Place], str]
"""(value, its place) → the feature in a few words, for errors."""
Neutral = Callable[[Any, Place], bool]
"""(value, its place) → whether the value changes nothing that the model computes."""

_KEY = "feature"


@dataclass(frozen=True)
class Meaning:
    """What a field of a spec part is; `neutral` and `words` where they are not the obvious ones."""

    kind: Literal["size", "option", "choice", "part"]
    words: Words | None = None
    neutral: Neutral | None = None


@dataclass(frozen=True)
class Feature:
    """One feature of a spec.

    `key` is what declarations list: `Attention.gated`, `Attention.bias=q`, `Rope.pairs=half`. `words` is what a user is told,
    `owner` the class of the part that has it, and `within` the keys of the parts that this part lies in.
    """

    key: str
    words: str
    owner: type
    within: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        """The name of the outermost part's field that it lies under, such as `mixer`."""
        return (*self.within, self.key)[0].partition("=")[0].partition(".")[2]


def size(default: Any = MISSING) -> Any:
    """A field that is a plain size."""
    return _field(Meaning("size"), default)


def option(words: str | Words, default: Any = None, *, neutral: Neutral | None = None) -> Any:
    """A field that is a feature where it differs from `default` (or is not `neutral`).

    A frozenset yields one feature an item; a part is named by its class and yields its own features too.
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
    """Every feature of the spec and its layers, each once, in the order in which it is met."""
    found = dict.fromkeys(_of(Place(spec, (spec,))))
    for layer in dict.fromkeys(spec.layers):
        found |= dict.fromkeys(_of(Place(spec, (spec, layer))))
    return tuple(found)


def layer_features(layer: LayerSpec, spec: ModelSpec) -> tuple[Feature, ...]:
    """The features of one layer of the spec."""
    return tuple(dict.fromkeys(_of(Place(spec, (spec, layer)))))


def undeclared(found: Iterable[Feature], expressed: Collection[str]) -> list[str]:
    """The features, in words, whose keys are not among those `expressed`; of a part that is not, only the part itself."""
    lacking = (feature for feature in found if feature.key not in expressed)
    return list(dict.fromkeys(feature.words for feature in lacking if set(feature.within) <= set(expressed)))


def _of(place: Place, within: tuple[str, ...] = ()) -> Iterator[Feature]:
    owner = place.owner
    for entry in fields(owner):
        value, meaning = getattr(owner, entry.name), _meaning(entry)
        if meaning.kind == "size" or (meaning.kind == "option" and _is_neutral(entry, meaning, value, place)):
            continue
        name = f"{_defining(type(owner), entry.name).__name__}.{entry.name}"
        inner = is_dataclass(value)
        for item in sorted(value) if isinstance(value, frozenset) else [value]:
            key = name
            if inner:
                key = f"{name}={type(value).__name__}"
            elif meaning.kind != "option" or isinstance(value, frozenset):
                key = f"{name}={str(item).lower() if isinstance(item, bool) else shortened(str(item), 40)}"
            words = meaning.words(item, place) if meaning.words else f"{key} of {shortened(repr(value), 40)}"
            yield Feature(key, words, type(owner), within)
        if inner:
            yield from _of(Place(place.spec, (*place.parts, value)), (*within, key))


def _is_neutral(entry: Field[Any], meaning: Meaning, value: Any, place: Place) -> bool:
    if meaning.neutral is not None:
        return meaning.neutral(value, place)
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    return bool(value == default)


def _meaning(entry: Field[Any]) -> Meaning:
    stated = entry.metadata.get(_KEY)
    if isinstance(stated, Meaning):
        return stated
    has_default = entry.default is not MISSING or entry.default_factory is not MISSING
    return Meaning("option" if has_default else "choice")


def _defining(owner: type, name: str) -> type:
    """The class that states a field: what a subclass inherits goes by its base's name."""
    return next(base for base in reversed(owner.__mro__) if name in getattr(base, "__annotations__", {}))
