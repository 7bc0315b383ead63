"""Properties of a layer that llama.cpp derives from its index and not from its tensors, by architecture.

A moved layer must keep these properties. If the architecture reads an array (recurrent layers, sliding windows), the array is
written; if it reads only a number of leading layers, that number is changed where possible; if it has a fixed interval, moves
that break it are refused. Source: `src/models/*.cpp` and `llama_model_base::load_swa_pattern` of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.gguf.header import Field, ValueType, array, u32
from surgery.algebra import Half

Get = Callable[[str], object]
"""Key without the architecture's prefix → its value, or None."""


@dataclass(frozen=True, kw_only=True)
class Trait:
    """A boolean property of layers that depends on their index; `values` gives it for `count` layers (without MTP).

    `key` is the array that llama.cpp reads instead if it exists, `leading` the key with the number of leading layers that
    have the property.
    """

    what: str
    half: Half
    values: Callable[[Get, int], list[bool] | None]
    key: str | None = None
    leading: str | None = None


def _number(get: Get, key: str, default: int) -> int:
    value = get(key)
    return value if type(value) is int else default


RECURRENT = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
"""Architecture → default of `full_attention_interval`."""

SLIDING: dict[str, tuple[int, bool, bool]] = {
    "exaone-moe": (4, False, False), "gemma3n": (5, False, False), "olmo2": (4, False, True),
    "plamo3": (8, False, True), "llama4": (4, False, False), "gemma-embedding": (6, False, False),
    "muse-glimmer": (4, False, False), "gpt-oss": (2, False, False), "cohere2moe": (4, True, False),
    "afmoe": (4, False, True), "cohere2": (4, False, False), "gemma3": (6, False, True), "laguna": (4, True, True),
    "mellum": (4, False, True), "gemma2": (2, False, False), "smallthinker": (4, True, True),
    "modern-bert": (3, True, True),
}  # fmt: skip
"""Architecture → (period, whether the first layer of a period has full attention, whether the window key is required)."""

NO_ROPE = {"llama4": 4, "smollm3": 4, "afmoe": 4}
"""Architecture → interval of layers without RoPE, which is fixed in llama.cpp."""


def _recurrent(default: int) -> Callable[[Get, int], list[bool]]:
    def values(get: Get, count: int) -> list[bool]:
        interval = max(1, _number(get, "full_attention_interval", default))
        return [(n + 1) % interval != 0 for n in range(count)]

    return values


def _sliding(period: int, full_first: bool, stated: bool) -> Callable[[Get, int], list[bool] | None]:
    def values(get: Get, count: int) -> list[bool] | None:
        if not _number(get, "attention.sliding_window", 0 if stated else 1):
            return None
        every = _number(get, "attention.sliding_window_pattern", period)
        return [not every or (n % every != (0 if full_first else every - 1)) for n in range(count)]

    return values


def _every(key: str, default: int, rest: int) -> Callable[[Get, int], list[bool] | None]:
    def values(get: Get, count: int) -> list[bool] | None:
        step = _number(get, key, default)
        return [n % step == rest % step for n in range(count)] if step > 1 else None

    return values


def _leading_dense(get: Get, count: int) -> list[bool] | None:
    lead = _number(get, "leading_dense_block_count", 0)
    return [n < lead for n in range(count)] if lead else None


def _last(key: str, default: int) -> Callable[[Get, int], list[bool] | None]:
    def values(get: Get, count: int) -> list[bool] | None:
        shared = _number(get, key, default)
        return [n >= count - shared for n in range(count)] if shared else None

    return values


def _from(start: int) -> Callable[[Get, int], list[bool] | None]:
    return lambda get, count: [n >= start for n in range(count)]


def _exaone4(get: Get, count: int) -> list[bool]:
    every = _number(get, "attention.sliding_window_pattern", 4)
    return [count == 64 and n % every < every - 1 for n in range(count)]


def traits(arch: str) -> list[Trait]:
    """The properties that an architecture derives from a layer's index."""
    found = [
        Trait(what="has a dense feed-forward", half="ffn", values=_leading_dense, leading="leading_dense_block_count")
    ]
    if arch in RECURRENT:
        found.append(
            Trait(
                what="is recurrent",
                half="attention",
                values=_recurrent(RECURRENT[arch]),
                key="attention.recurrent_layers",
            )
        )
    if arch in SLIDING:
        key = "attention.sliding_window_pattern"
        found.append(Trait(what="has a sliding window", half="attention", values=_sliding(*SLIDING[arch]), key=key))
    if arch == "exaone4":
        found.append(Trait(what="has a sliding window (in models of 64 layers)", half="attention", values=_exaone4))
    if arch in NO_ROPE:
        found.append(Trait(what="has no rope", half="attention", values=_every("", NO_ROPE[arch], -1)))
    if arch in ("llama4", "ernie4_5-moe"):
        found.append(Trait(what="has experts", half="ffn", values=_every("interleave_moe_layer_step", 1, -1)))
    if arch in ("bert", "nomic-bert-moe"):
        found.append(Trait(what="has experts", half="ffn", values=_every("moe_every_n_layers", 0, 1)))
    if arch == "rwkv6":
        found.append(
            Trait(what="halves the residual stream", half="ffn", values=_every("rescale_every_n_layers", 0, -1))
        )
    if arch == "gemma4":
        found.append(
            Trait(what="shares keys and values", half="attention", values=_last("attention.shared_kv_layers", 0))
        )
    if arch == "gemma3n":
        found.append(Trait(what="shares keys and values", half="attention", values=_from(20)))
    return found


def placed(trait: Trait, arch: str, get: Get, wanted: Sequence[bool], trailing: int) -> dict[str, Field]:
    """The metadata (keys without prefix) with which llama.cpp derives the `wanted` values for the layers.

    `trailing` is the number of MTP blocks after them. Raises UnsupportedError, naming the first layer with another value, if
    no metadata does.
    """
    derived = trait.values(get, len(wanted)) or [False] * len(wanted)
    if trait.key:
        if derived == list(wanted):
            return {}
        return {trait.key: array(ValueType.BOOL, [*wanted, *[False] * trailing])}
    if trait.leading:
        lead = next((n for n, value in enumerate(wanted) if not value), len(wanted))
        if not any(wanted[lead:]):
            return {} if derived == list(wanted) else {trait.leading: u32(lead)}
        derived = [n < lead for n in range(len(wanted))]
    wrong = next((n for n, (a, b) in enumerate(zip(derived, wanted, strict=True)) if a != b), None)
    if wrong is not None:
        does, would = ("does", "would not") if wanted[wrong] else ("does not", "would")
        raise UnsupportedError(
            f"llama.cpp's {arch} decides by its place whether a layer {trait.what}: the one that would become layer "
            f"{wrong} {does}, but {would} there"
        )
    return {}
