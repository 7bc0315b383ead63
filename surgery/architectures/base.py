"""The types of the table of architectures: roles of tensors, properties by place or count, slices, refusals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from gguf_tools.formats.gguf.header import Field
from surgery.algebra import Half

Get = Callable[[str], object]
"""Key without the architecture's prefix → its value, or None."""
Part = Literal["input norm", "inner", "output", "output norm", "stream norm", "stream"]
"""What a tensor does in its branch: normalises the branch's input, computes inside, gives the output that is added to the
residual stream, normalises that output; or acts on the residual stream itself, as its norm or otherwise."""
Aspect = Literal["order", "count", "halves", "blend", "scale", "experts"]
"""What an op asks of an architecture: another order of whole layers; another number of them; halves of layers apart; means of
layers; scaled contributions; other experts."""


@dataclass(frozen=True)
class Role:
    """What a tensor of a layer is: the branch ("attention", "ffn" or another's name), its part in it, and its first axis.

    `experts` says that the first axis counts experts, or that the values are expert ids ("ids").
    """

    branch: str
    part: Part = "inner"
    experts: Literal["", "axis", "ids"] = ""

    @property
    def half(self) -> Half | None:
        """The half of a layer that the branch is, or None."""
        return "attention" if self.branch == "attention" else "ffn" if self.branch == "ffn" else None


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What a rule looks at: metadata, and for each layer (without MTP blocks) its tensors' names and where it comes from.

    `origins` identifies the source of each layer's attention; equal values mean the same keys and values. `vocabulary` is the
    number of tokens.
    """

    get: Get
    names: Sequence[Collection[str]]
    origins: Sequence[Hashable]
    vocabulary: int = 0

    @property
    def count(self) -> int:
        """The number of layers."""
        return len(self.names)

    def number(self, key: str, default: int) -> int:
        """A whole number in the metadata; `default` where there is none."""
        value = self.get(key)
        return value if type(value) is int else default


class Rule(ABC):
    """How llama.cpp decides a property of every layer; `by` is what it decides by, `counts` the number where it is one."""

    by: ClassVar[Literal["place", "count"]] = "place"
    counts: ClassVar[str] = "the number of layers"

    @abstractmethod
    def values(self, layers: Layers) -> Sequence[Hashable]:
        """The property's value for each layer; False or None where a layer does not have it."""


class Carry(ABC):
    """A way to state in the metadata what a rule would decide otherwise."""

    @abstractmethod
    def fields(self, values: Sequence[Hashable], trailing: int) -> dict[str, Field]:
        """The metadata (keys without prefix) for these values; `trailing` is the number of MTP blocks. Empty if none can."""


@dataclass(frozen=True)
class Property:
    """A property of layers that llama.cpp does not take from the layer's own tensors.

    `what` completes the sentence "a layer …" (or names the quantity where values are not booleans). It belongs to `half` of
    a layer, or to the layer as a whole (None). Without `carry` no metadata can state it, so a layer keeps it or is refused.
    """

    what: str
    half: Half | None
    rule: Rule
    carry: Carry | None = None


@dataclass(frozen=True)
class Slice:
    """A tensor outside of the layers that holds one part for each layer: along its rows (axis 0) or columns (axis 1)."""

    tensor: str
    axis: Literal[0, 1]


@dataclass(frozen=True)
class Refusal:
    """Ops that are refused, with the reason; only in files whose metadata has `key` (not 0, not false), if it is given."""

    aspect: Aspect
    reason: str
    key: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence for the user, in files whose metadata have `key` (not 0, not false)."""

    key: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture of llama.cpp.

    `tensors` maps each tensor of a layer (a name without `blk.N.` and without endings such as `.weight`) to its role.
    `closed` is the reason why no surgery is done at all. `kinds` names what tells a hybrid's recurrent layers from others
    ("array": `attention.recurrent_layers`; "heads": no key/value heads), of which llama.cpp wants both kinds; `sliding` says
    that one layer at least must have a sliding window. `beyond_stream` is the reason why a layer's output does not follow from
    its input alone, so that layers cannot be compared one by one; `ffn_reads_input` says that the feed-forward reads what enters
    the layer, besides what the attention made of it. `source` is the file in `src/models`.
    """

    name: str
    source: str
    tensors: Mapping[str, Role]
    properties: tuple[Property, ...] = ()
    slices: tuple[Slice, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    kinds: Literal["", "array", "heads"] = ""
    sliding: bool = False
    closed: str = ""
    beyond_stream: str = ""
    ffn_reads_input: bool = False
    notes: tuple[Note, ...] = ()

    def role(self, suffix: str) -> Role | None:
        """The role of a tensor by its name without `blk.N.`; None if the architecture has no such tensor."""
        return self.tensors.get(suffix) or self.tensors.get(stem(suffix))

    def reason(self, aspect: Aspect, get: Get) -> str:
        """Why ops that need `aspect` are refused in a file with these metadata, or ""."""
        return next((r.reason for r in self.refusals if r.aspect == aspect and (not r.key or get(r.key))), "")


def stem(suffix: str) -> str:
    """The name without endings such as `.weight` and `.bias`."""
    head, _, tail = suffix.rpartition(".")
    return head if head and tail in ("weight", "bias", "scale", "scales", "input_scale") else suffix
