"""What enters and leaves the layers of a GGUF as llama.cpp runs it, found in its graph by the names that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LlamaError
from gguf_tools.machine import useful_threads
from gguf_tools.runtime.interface import Node
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.algebra import Blend, Halves, Layer, Original
from surgery.gguf.rewrite import GGUFPlan

FEW, MANY = 24, 512
"""Tokens of the text: enough to pass the window where there is one, within these bounds."""
MIDDLES = ("ffn_inp", "attn_residual", "sa_out")
"""llama.cpp's names of the residual stream between the halves of a layer."""
SEED = 13


Values = NDArray[np.float32]


def keys_of(layer: Layer) -> int | None:
    """The source layer whose keys and values a layer computes from what enters it, so that others may read them there."""
    if isinstance(layer, Original):
        return None if layer.source else layer.index
    if isinstance(layer, Blend):
        return None
    return keys_of(layer.attention if isinstance(layer, Halves) else layer.layer)


class NoStreamError(Exception):
    """The graph does not show what enters and leaves each layer."""


@dataclass(frozen=True)
class Stream:
    """The places, in the order of computation, of what enters the first layer and of what leaves each layer.

    `middles` are those of the residual stream between the halves, by layer, where there is one that both halves add to.
    """

    entrance: int
    outputs: list[int]
    middles: dict[int, int]

    @classmethod
    def of(cls, nodes: Sequence[Node], count: int) -> Stream:
        """Find them by the names that llama.cpp gives them; `NoStreamError` if it gives none."""
        places: dict[str, int] = {node.name: n for n, node in enumerate(nodes)}
        outputs = [places.get(f"l_out-{n}", -1) for n in range(count)]
        if -1 in outputs and f"attn_norm_in-{count - 1}" in places:  # step35 names what enters a layer
            outputs = [places.get(f"attn_norm_in-{n}", -1) for n in range(1, count)] + [places.get("h_nextn", -1)]
        first = next((n for n, node in enumerate(nodes) if node.name.endswith("-0")), None)
        if -1 in outputs or f"l_out-{count}" in places or first is None:
            raise NoStreamError("its graph in llama.cpp does not name the output of each layer")
        shape = nodes[outputs[0]].shape
        sources = [n for n in nodes[first].sources if nodes[n].shape == shape]
        before = [n for n in range(first) if nodes[n].shape == shape and nodes[n].floating]
        if not (sources or before) or any(nodes[n].shape != shape or not nodes[n].floating for n in outputs):
            raise NoStreamError("its graph in llama.cpp does not name the input of its first layer")
        enters = [(sources or before)[-1], *outputs]

        def uses(node: int, other: int) -> bool:
            """Whether a node is computed from another, or from rows taken from it."""
            direct = nodes[node].sources
            return other in direct or any(other in nodes[source].sources for source in direct)

        middles = {n: places[f"{name}-{n}"] for n in range(count) for name in MIDDLES if f"{name}-{n}" in places}
        added = {n: p for n, p in middles.items() if uses(p, enters[n]) and uses(outputs[n], p)}
        return cls(enters[0], outputs, {n: p for n, p in added.items() if nodes[p].shape == shape})


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """The source's run: tokens, what enters the first layer, what leaves each, what is between halves, the logits, and notes.

    `first` are the stream after the attention and after the whole of layer `begins`, with which the result begins, on what
    enters the source's first layer.
    """

    tokens: tuple[int, ...]
    entrance: Values
    leaving: list[Values]
    middle: dict[int, Values]
    logits: Values
    begins: int | None
    first: tuple[Values, Values] | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, plan: GGUFPlan) -> SourceRun:
        """Run the source, and once more with its entrance put into the layer that the result begins with."""
        with exact_runtime(plan.file.header.path) as runtime:
            window = plan.file.get("attention.sliding_window")
            window = window if type(window) is int else 0
            count = min(max(FEW, min(window + 8, MANY)), runtime.info.batch, runtime.context_limit)
            drawn = np.random.default_rng(SEED).integers(0, runtime.info.n_vocab, count)
            tokens = tuple(int(token) for token in drawn)
            stream = Stream.of(runtime.nodes(tokens), len(plan.file.layers))
            count_layers = len(stream.outputs)
            read = [stream.entrance, *stream.outputs, *stream.middles.values()]
            (entrance, *found), logits = runtime.exchange(tokens, read, {})
            if not np.isfinite(logits).all():
                raise LlamaError(f"the logits of {runtime.path} are not finite")
            begins = keys_of(plan.stack[0])
            first = None
            if begins:
                places = [stream.middles.get(begins, stream.outputs[begins]), stream.outputs[begins]]
                made, _ = runtime.exchange(tokens, places, {stream.outputs[begins - 1]: entrance})
                first = made[0], made[1]
        notes = (f"what a window of {window} hides, since {count} tokens were read",) if window >= count else ()
        return cls(
            tokens=tokens,
            entrance=entrance,
            leaving=found[:count_layers],
            middle=dict(zip(stream.middles, found[count_layers:], strict=True)),
            logits=logits,
            begins=begins,
            first=first,
            notes=notes,
        )

    def entering(self, layer: int) -> Values:
        """What enters a layer of the source."""
        return self.leaving[layer - 1] if layer else self.entrance

    def expected(self, place: int, origin: int) -> tuple[Values, Values, Values]:
        """What enters the result's layer at `place`, the source's `origin`, and what must be in its middle and leave it."""
        if place == 0 and origin and self.first is not None:
            return self.entrance, *self.first
        return self.entering(origin), self.middle.get(origin, self.leaving[origin]), self.leaving[origin]


def exact_runtime(path: Path) -> Runtime:
    return Runtime(path, RuntimeOptions(threads=useful_threads(path.stat().st_size)))
