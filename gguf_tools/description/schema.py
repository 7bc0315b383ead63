"""The data of a description: where each role's tensor is, and the fields of the spec as nested tables.

[model]                     fields of ModelSpec; hidden, vocab_size, tied … follow from the tensors
[norm]                      fields of every norm, unless the norm's own table says otherwise
[layer]                     fields of LayerSpec: [layer.mixer], [layer.mixer.rope], [layer.feed_forward] …
[[layers]] only = [0, 2]    other values for some layers
[tensors]                   role = "name" of the tensors outside the layers
[tensors.layer]             role = "name" of a layer's tensors; {n} is the layer's number, {e} the expert's or the head's;
                            {n+1} where the names count layers from 1, as numbers in a name that is not the layer's start
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.text import shortened

LAYER, EXPERT = "{n}", "{e}"
"""The places of a layer's and of an expert's number in a tensor's name."""
_LAYER = re.compile(r"\{n(?:\+([1-9][0-9]{0,3}))?\}")
VOCABULARY = "vocab_size"
"""The key of `[model]` that states the number of tokens, where the embedding has more rows."""
KeyPath = tuple[str, ...]
"""The keys that lead to a value, from the outermost table inwards."""


@dataclass(frozen=True)
class Source:
    """The tensor (or with `{n}` and `{e}` the tensors) that one or several roles are read from.

    Of several roles the first axis holds the rows, in their order, in each of `blocks` equal blocks: 1 for one role after
    another, the number of key/value heads for rows grouped by them. With `transposed` the matrix is stored as (in, out).
    """

    tensor: str
    roles: tuple[str, ...]
    blocks: int = 1
    transposed: bool = False

    def name(self, layer: int, expert: int = 0) -> str:
        """The name of one tensor."""
        return layer_name(self.tensor, layer).replace(EXPERT, str(expert))

    def layer(self, name: str) -> int | None:
        """The layer that a name of one of the tensors belongs to, counted from 0; None for another name."""
        match, mark = name_pattern(self.tensor).fullmatch(name), _LAYER.search(self.tensor)
        layer = int(match["n"]) - int(mark[1] or 0) if match and mark else -1
        return layer if layer >= 0 else None


def layer_mark(first: int) -> str:
    """What stands for the layer's number in names that count layers from `first` on."""
    return f"{{n+{first}}}" if first else LAYER


def layer_name(name: str, layer: int) -> str:
    """The name with the number of layer `layer`, counted from 0, in the place for it."""
    return _LAYER.sub(lambda mark: str(layer + int(mark[1] or 0)), name)


def has_layer(name: str) -> bool:
    """Whether a name has a place for the layer's number."""
    return _LAYER.search(name) is not None


def name_pattern(name: str) -> re.Pattern[str]:
    """A regular expression for a name with `{n}` and `{e}`; where one occurs again, it is the same number."""
    text = re.escape(_LAYER.sub(LAYER, name))
    for key in ("n", "e"):
        first, mark = f"(?P<{key}>0|[1-9][0-9]{{0,8}})", re.escape(f"{{{key}}}")
        text = text.replace(mark, first, 1).replace(mark, f"(?P={key})")
    return re.compile(text)


@dataclass(frozen=True)
class Override:
    """Fields of LayerSpec for the layers `only`."""

    only: tuple[int, ...]
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A description as its file states it; `lines` has the line of each key, for errors."""

    path: Path
    model: Mapping[str, Any]
    norm: Mapping[str, Any]
    layer: Mapping[str, Any]
    overrides: tuple[Override, ...] = ()
    outside: tuple[Source, ...] = ()
    inside: tuple[Source, ...] = ()
    unused: tuple[str, ...] = ()
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def error(self, place: KeyPath, text: str) -> InputError:
        """The error about the value at `place`, or about its table where the key itself is missing."""
        found = next((self.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.lines), None)
        where = f"{self.path}, line {found}" if found else str(self.path)
        return InputError(f"{where}: {shortened('.'.join(place), 120)} {text}")


def roles_of(sources: Iterable[Source]) -> dict[str, Source]:
    """The source of each role."""
    return {role: source for source in sources for role in source.roles}
