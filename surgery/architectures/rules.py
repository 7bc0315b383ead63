"""Rules by which llama.cpp decides properties of layers, and ways to state them in the metadata.

Source: `load_arch_hparams`, `load_arch_tensors` and the graphs in `src/models/*.cpp`, `llama_model_base::load_swa_pattern` and
`llama_hparams::set_swa_pattern` of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar, Literal

import numpy as np

from gguf_tools.formats.gguf.header import Field, ValueType, array, f32, u32
from surgery.architectures.base import Carry, Layers, Rule

WINDOW = "attention.sliding_window"
PATTERN = "attention.sliding_window_pattern"


@dataclass(frozen=True)
class Array(Rule):
    """Booleans in an array; a single boolean counts for all layers; without the key, `default` decides or no layer is."""

    key: str
    default: Rule | None = None

    def values(self, layers: Layers) -> Sequence[Hashable]:
        stated = layers.get(self.key)
        if isinstance(stated, tuple):
            return tuple(bool(value) for value in (*stated, *[False] * layers.count)[: layers.count])
        if isinstance(stated, bool) or self.default is None:
            return (bool(stated),) * layers.count
        return self.default.values(layers)


@dataclass(frozen=True)
class Every(Rule):
    """Layers whose index is `rest` modulo the step: `key`'s value, or `default` (0 for no layer)."""

    key: str = ""
    default: int = 0
    rest: int = -1

    def values(self, layers: Layers) -> Sequence[Hashable]:
        step = layers.number(self.key, self.default) if self.key else self.default
        return tuple(step > 0 and n % step == self.rest % step for n in range(layers.count))


@dataclass(frozen=True)
class Recurrent(Rule):
    """All but every `full_attention_interval`-th layer; `default` is the interval where the key is absent."""

    default: int

    def values(self, layers: Layers) -> Sequence[Hashable]:
        interval = max(1, layers.number("full_attention_interval", self.default))
        return tuple((n + 1) % interval != 0 for n in range(layers.count))


@dataclass(frozen=True)
class Window(Rule):
    """All layers but one of a period, the last or (`full_first`) the first; in some architectures only if a window is stated.

    `only` is the one number of layers with which the architecture has windows at all (0: any).
    """

    period: int
    full_first: bool = False
    stated: bool = False
    only: int = 0

    def values(self, layers: Layers) -> Sequence[Hashable]:
        window = layers.number(WINDOW, 0 if self.stated else 1)
        if not window or self.only not in (0, layers.count):
            return (False,) * layers.count
        if isinstance(layers.get(PATTERN), tuple | bool):
            return Array(PATTERN, self).values(layers)
        every = layers.number(PATTERN, self.period)
        return tuple(not every or n % every != (0 if self.full_first else every - 1) for n in range(layers.count))


@dataclass(frozen=True)
class NoRope(Rule):
    """Every `step`-th layer has no RoPE, counted from `rest`.

    `windows`: only in models with a sliding window ("stated": the key is above 0; "not 0": it is not stated as 0); in the
    others `otherwise` decides.
    """

    step: int
    rest: int
    windows: Literal["", "stated", "not 0"] = ""
    otherwise: Literal["none", "last"] = "none"

    def values(self, layers: Layers) -> Sequence[Hashable]:
        window = layers.number(WINDOW, 1 if self.windows == "not 0" else 0)
        count = layers.count
        if self.windows and not window:
            return tuple(self.otherwise == "last" and n == count - 1 for n in range(count))
        if self.windows == "stated" and count == self.step:
            return (False,) * count  # llama.cpp marks "RoPE everywhere" by a step that equals the number of layers
        return tuple(n % self.step == self.rest for n in range(count))


@dataclass(frozen=True)
class First(Rule):
    """The first layers: as many as `key` says, or `count`."""

    key: str = ""
    count: int = 0

    def values(self, layers: Layers) -> Sequence[Hashable]:
        lead = layers.number(self.key, self.count) if self.key else self.count
        return tuple(n < lead for n in range(layers.count))


@dataclass(frozen=True)
class Indices(Rule):
    """The layers whose index an array lists."""

    key: str

    def values(self, layers: Layers) -> Sequence[Hashable]:
        listed = layers.get(self.key)
        return tuple(isinstance(listed, tuple) and n in listed for n in range(layers.count))


@dataclass(frozen=True)
class SharesKeys(Rule):
    """Layers without keys and values of their own: the last `attention.shared_kv_layers`, or all from `start` on."""

    start: int | None = None

    def first(self, layers: Layers) -> int:
        """The index of the first such layer."""
        shared = layers.number("attention.shared_kv_layers", 0)
        return layers.count - shared if self.start is None else self.start

    def values(self, layers: Layers) -> Sequence[Hashable]:
        first = self.first(layers)
        return tuple(n >= first for n in range(layers.count))


@dataclass(frozen=True)
class KeysRead(Rule):
    """The layer whose keys and values a layer without its own reads: the last but one of those with their own if it slides,
    the last if it does not (`llama_model::create_memory`)."""

    shares: SharesKeys
    window: Rule

    def values(self, layers: Layers) -> Sequence[Hashable]:
        first = self.shares.first(layers)
        found: list[Hashable] = []
        for n, slides in enumerate(self.window.values(layers)):
            read = first - (2 if slides else 1)
            found.append((layers.origins[read] if 0 <= read < layers.count else "none") if n >= first else "its own")
        return found


@dataclass(frozen=True)
class SharedIndexer(Rule):
    """The nearest layer before, with an indexer of its own, whose choice of positions a layer without one uses.

    A layer has its own where `attention.indexer.types` is not 0; `default` decides in files without that array.
    """

    default: Literal["all", "none", "GLM 5.2"]

    def own(self, layers: Layers) -> list[bool]:
        """Whether each layer has its own indexer."""
        types = layers.get("attention.indexer.types")
        if isinstance(types, tuple):
            return [bool(value) for value in (*types, *[0] * layers.count)[: layers.count]]
        if self.default == "GLM 5.2" and layers.number("context_length", 0) >= 1 << 20:
            return [n < 2 or (n < 78 and (n - 2) % 4 == 0) for n in range(layers.count)]
        return [self.default != "none"] * layers.count

    def values(self, layers: Layers) -> Sequence[Hashable]:
        found: list[Hashable] = []
        nearest: Hashable = None
        for origin, own in zip(layers.origins, self.own(layers), strict=True):
            nearest = origin if own else nearest
            found.append("its own" if own else nearest)
        return found


@dataclass(frozen=True)
class LacksTensor(Rule):
    """Layers without a tensor that llama.cpp requires from the second layer on."""

    tensor: str

    def values(self, layers: Layers) -> Sequence[Hashable]:
        return tuple(
            self.tensor not in names and ("first" if n == 0 else "later") for n, names in enumerate(layers.names)
        )


@dataclass(frozen=True)
class Deepstack(Rule):
    """Layers before which image features are added; the first layer never takes any, whatever the array says."""

    def values(self, layers: Layers) -> Sequence[Hashable]:
        mapping = layers.get("deepstack_mapping")
        if not isinstance(mapping, tuple):
            return (False,) * layers.count
        padded = (*mapping, *[-1] * layers.count)
        return tuple(n > 0 and padded[n] >= 0 for n in range(layers.count))


@dataclass(frozen=True)
class Rescaled(Rule):
    """How often the residual stream was halved before a layer, and whether it is after it (RWKV 6).

    The converter divides a layer's outputs by as many powers of two.
    """

    def values(self, layers: Layers) -> Sequence[Hashable]:
        every = layers.number("rescale_every_n_layers", 0)
        return tuple((n // every, (n + 1) % every == 0) if every > 0 else None for n in range(layers.count))


@dataclass(frozen=True)
class LightningDecay(Rule):
    """The factor on the decay of a linear-attention layer: 1 - n / (layers - 1) (MiniMax-01)."""

    recurrent: Rule

    def values(self, layers: Layers) -> Sequence[Hashable]:
        last = max(1, layers.count - 1)
        return tuple(1 - n / last if linear else None for n, linear in enumerate(self.recurrent.values(layers)))


@dataclass(frozen=True)
class ByCount(Rule):
    """One value for all layers, by their number; `absent` names a key in whose presence the number does not matter.

    `vocabulary` restricts the exceptional values to models with that number of tokens.
    """

    special: Mapping[int, Hashable] = field(hash=False)
    other: Hashable
    vocabulary: int = 0
    absent: str = ""
    by: ClassVar[Literal["place", "count"]] = "count"

    def values(self, layers: Layers) -> Sequence[Hashable]:
        if self.absent and layers.get(self.absent) is not None:
            return (None,) * layers.count
        fits = self.vocabulary in (0, layers.vocabulary)
        return (self.special.get(layers.count, self.other) if fits else self.other,) * layers.count


@dataclass(frozen=True)
class FromCount(Rule):
    """Whether there are at least `count` layers."""

    count: int
    by: ClassVar[Literal["place", "count"]] = "count"

    def values(self, layers: Layers) -> Sequence[Hashable]:
        return (layers.count >= self.count,) * layers.count


@dataclass(frozen=True)
class AttentionScale(Rule):
    """1/√(embedding length / heads) with exactly `count` layers, else 1/√(key length) (Gemma 2 and 3)."""

    count: int
    by: ClassVar[Literal["place", "count"]] = "count"

    def values(self, layers: Layers) -> Sequence[Hashable]:
        heads = layers.get("attention.head_count")
        heads = heads[0] if isinstance(heads, tuple) and heads else heads
        per_head = layers.number("embedding_length", 0) // max(1, heads if type(heads) is int else 1)
        size = per_head if layers.count == self.count else layers.number("attention.key_length", per_head)
        return (round(1 / sqrt(max(1, size)), 9),) * layers.count


@dataclass(frozen=True)
class ResidualScale(Rule):
    """1.4/√layers on both halves' outputs (MiniCPM), unless `key` states the scale."""

    key: str = ""
    by: ClassVar[Literal["place", "count"]] = "count"

    def values(self, layers: Layers) -> Sequence[Hashable]:
        stated = layers.get(self.key) if self.key else None
        # Computed in float32, as llama.cpp does, so that the number written is the number that it would compute.
        value = stated if isinstance(stated, float) else float(np.float32(1.4) / np.sqrt(np.float32(layers.count)))
        return (value,) * layers.count


@dataclass(frozen=True)
class ExpertCount(Rule):
    """Whether there are exactly `value` experts."""

    value: int
    by: ClassVar[Literal["place", "count"]] = "count"
    counts: ClassVar[str] = "the number of experts"

    def values(self, layers: Layers) -> Sequence[Hashable]:
        return (layers.get("expert_count") == self.value,) * layers.count


@dataclass(frozen=True)
class WriteArray(Carry):
    """An array of booleans, False for the MTP blocks."""

    key: str

    def fields(self, values: Sequence[Hashable], trailing: int) -> dict[str, Field]:
        return {self.key: array(ValueType.BOOL, [*map(bool, values), *[False] * trailing])}


@dataclass(frozen=True)
class WriteFirst(Carry):
    """The number of leading layers."""

    key: str

    def fields(self, values: Sequence[Hashable], trailing: int) -> dict[str, Field]:
        return {self.key: u32(next((n for n, value in enumerate(values) if not value), len(values)))}


@dataclass(frozen=True)
class WriteLast(Carry):
    """The number of layers at the end."""

    key: str

    def fields(self, values: Sequence[Hashable], trailing: int) -> dict[str, Field]:
        return {self.key: u32(next((n for n, value in enumerate(reversed(values)) if not value), len(values)))}


@dataclass(frozen=True)
class WriteIndices(Carry):
    """The indices of the layers, of which there must be exactly one."""

    key: str

    def fields(self, values: Sequence[Hashable], trailing: int) -> dict[str, Field]:
        found = [n for n, value in enumerate(values) if value]
        return {self.key: array(ValueType.UINT32, found)} if len(found) == 1 else {}


@dataclass(frozen=True)
class WriteNumber(Carry):
    """The one value that all layers have."""

    key: str

    def fields(self, values: Sequence[Hashable], trailing: int) -> dict[str, Field]:
        value = values[0]
        return {self.key: f32(value)} if isinstance(value, float) and len(set(values)) == 1 else {}
