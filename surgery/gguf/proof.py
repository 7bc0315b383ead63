"""`tinyq surgery --prove`: llama.cpp computes each layer of the result as it computes the source's own.

The layers of the source are run in their new order, one by one: llama.cpp's evaluation callback gives what enters and leaves
each of the source's layers on a text of random tokens; the same is put into the layer that took its place in the result, whose
output must be the same, as must the logits after the last. So a fault shows at the layer that has it, whatever the others are,
and needs no reference: only that llama.cpp runs the source.

Layers that are computed (blended, scaled, halves, fewer experts) or of another file have no counterpart in the source. For
those the whole result is held against the torch reference, which operates on the source's own weights, where tinyq has the
architecture as a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import InputError, LlamaError, UnsupportedError
from gguf_tools.machine import useful_threads
from gguf_tools.runtime.interface import Node
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.algebra import Blend, Edited, Halves, Layer, Original, SwapExperts
from surgery.gguf.reference import logits_after
from surgery.gguf.rewrite import GGUFPlan

FEW, MANY = 24, 512
"""Tokens of the text: enough to pass the window where there is one, within these bounds."""
LIMIT = 1e-6
"""Largest NMSE of what a layer adds to the residual stream, and of the logits; the same layer gives the same bits."""
TYPE_LIMITS = {"f32": 1e-9, "f16": 1e-4, "bf16": 1e-2}
"""Largest NMSE of the logits against the torch reference, by the coarsest type of the layers' matrices."""
SEED = 13

Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Proved:
    """What was found: the layers held against their source, the worst NMSE of what one adds, that of the logits, tokens read.

    `reference` is the NMSE of the logits against the torch reference, None where it was not asked; `unproved` says in
    sentences what could not be held against anything.
    """

    layers: int
    worst: float
    logits: float | None
    n_tokens: int
    reference: float | None = None
    unproved: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """ "layers", "reference", both, or "none"."""
        return (
            " and ".join(
                word for word, held in (("layers", self.layers), ("reference", self.reference is not None)) if held
            )
            or "none"
        )

    def as_dict(self) -> dict[str, Any]:
        """The value of `proof` in `--json`."""
        return {
            "method": self.method,
            "layers": self.layers,
            "worst_layer_nmse": self.worst,
            "logits_nmse": self.logits,
            "reference_nmse": self.reference,
            "n_tokens": self.n_tokens,
            "unproved": list(self.unproved),
        }

    @property
    def lines(self) -> list[str]:
        """The result in sentences, for a terminal."""
        found = []
        if self.layers:
            found.append(
                f"llama.cpp: {self.layers} layers compute what they did in the source, on {self.n_tokens} tokens (worst NMSE of "
                f"what one adds {self.worst:.0e})"
            )
        if self.reference is not None:
            found.append(
                f"llama.cpp: the logits are those of the torch reference after the same ops (NMSE {self.reference:.0e})"
            )
        return [*found, *(f"not proved: {sentence}" for sentence in self.unproved)]


class SurgeryProof:
    """The proof of one plan: the source is run when it is made, the result when it is called with its path.

    With `demanded`, UnsupportedError where nothing can be proved; else that is a sentence in `proved.unproved`. A result that
    computes something else raises UnsupportedError, LlamaError if llama.cpp does not run it though it runs the source.
    """

    def __init__(self, plan: GGUFPlan, *, demanded: bool = False) -> None:
        """Run the source in llama.cpp and keep what enters and leaves its layers."""
        self._plan, self._demanded = plan, demanded
        self._source = plan.file.header.path
        self._why = plan.file.architecture.beyond_stream
        self._base: _Base | None = None
        self.proved: Proved | None = None
        if not self._why:
            try:
                self._base = _Base.of(plan)
            except (LlamaError, InputError) as error:
                self._why = f"llama.cpp does not run the source as a language model ({error})"
            except _NoStreamError as error:
                self._why = str(error)
        if demanded and self._base is None and not self._computed:
            raise UnsupportedError(f"{self._source}: cannot be proved: {self._why}; --no-prove writes it without")

    @property
    def _computed(self) -> list[int]:
        return [n for n, layer in enumerate(self._plan.stack) if copied(layer) is None]

    def __call__(self, path: Path) -> None:
        """Run the result at `path` and compare; sets `proved`."""
        try:
            layers, worst, logits, count = self._by_layers(path) if self._base else (0, 0.0, None, 0)
        except LlamaError as error:
            raise LlamaError(f"{self._source}: the result does not run, so nothing was written: {error}") from error
        unproved = [self._why] if self._base is None else list(self._base.notes)
        reference, computed = None, self._computed
        if computed:
            reference, why = _by_reference(self._plan, path)
            if why:
                one = len(computed) == 1
                named = ", ".join(map(str, computed[:8])) + (", …" if len(computed) > 8 else "")
                grafted = any(isinstance(self._plan.stack[n], Original) for n in computed)
                made = "computed or grafted" if grafted else "computed"
                unproved.append(f"layer{'' if one else 's'} {named}, which {'is' if one else 'are'} {made}: {why}")
        self.proved = Proved(
            layers=layers,
            worst=worst,
            logits=logits,
            n_tokens=count,
            reference=reference,
            unproved=tuple(filter(None, unproved)),
        )
        if self._demanded and self.proved.method == "none":
            raise UnsupportedError(
                f"{self._source}: cannot be proved: {'; '.join(unproved)}; --no-prove writes it without"
            )

    def _by_layers(self, path: Path) -> tuple[int, float, float | None, int]:
        """Put what entered each source layer into the one that took its place; layers compared, worst, logits, tokens."""
        base, stack = self._base, self._plan.stack
        assert base is not None
        with _runtime(path) as runtime:
            stream = _Stream.of(runtime.nodes(base.tokens), len(stack))
            origins = [copied(layer) for layer in stack]
            write = {
                stream.outputs[n - 1]: base.entering(origin)
                for n, origin in enumerate(origins)
                if n and origin is not None
            }
            write[stream.outputs[-1]] = base.leaving[-1]
            found, logits = runtime.exchange(base.tokens, stream.outputs, write)
        worst = 0.0
        for n, origin in enumerate(origins):
            if origin is None:
                continue
            entered, expected = base.expected(n, origin)
            error = _nmse(found[n] - entered, expected - entered)
            worst = max(worst, error)
            if not error <= LIMIT:
                raise UnsupportedError(
                    f"{self._source}: in layer {n} of the result llama.cpp computes something else than in the source's layer "
                    f"{origin}, its origin (NMSE of what it adds {error:.1e}), so nothing was written: please report it"
                )
        error = _nmse(logits, base.logits)
        if not error <= LIMIT:
            raise UnsupportedError(
                f"{self._source}: behind the last layer llama.cpp computes something else in the result (NMSE of the logits "
                f"{error:.1e}), so nothing was written: please report it"
            )
        return sum(origin is not None for origin in origins), worst, error, len(base.tokens)


def copied(layer: Layer) -> int | None:
    """The source layer that computes what this one must: it is copied, or its experts exchanged; None if it is computed."""
    if isinstance(layer, Original):
        return None if layer.source else layer.index
    return copied(layer.layer) if isinstance(layer, Edited) and isinstance(layer.edit, SwapExperts) else None


def _start(layer: Layer) -> int | None:
    """The source layer whose keys and values a layer computes from what enters it, so that others may read them there."""
    if isinstance(layer, Original):
        return None if layer.source else layer.index
    if isinstance(layer, Blend):
        return None
    return _start(layer.attention if isinstance(layer, Halves) else layer.layer)


class _NoStreamError(Exception):
    """The graph does not show what enters and leaves each layer."""


@dataclass(frozen=True)
class _Stream:
    """The places, in the order of computation, of what enters the first layer and of what leaves each layer."""

    entrance: int
    outputs: list[int]

    @classmethod
    def of(cls, nodes: Sequence[Node], count: int) -> _Stream:
        """Find them by the names that llama.cpp gives them; `_NoStreamError` if it gives none."""
        places: dict[str, int] = {node.name: n for n, node in enumerate(nodes)}
        outputs = [places.get(f"l_out-{n}", -1) for n in range(count)]
        if -1 in outputs and f"attn_norm_in-{count - 1}" in places:  # step35 names what enters a layer
            outputs = [places.get(f"attn_norm_in-{n}", -1) for n in range(1, count)] + [places.get("h_nextn", -1)]
        first = next((n for n, node in enumerate(nodes) if node.name.endswith("-0")), None)
        if -1 in outputs or f"l_out-{count}" in places or first is None:
            raise _NoStreamError("its graph in llama.cpp does not name what leaves each layer")
        shape = nodes[outputs[0]].shape
        sources = [n for n in nodes[first].sources if nodes[n].shape == shape]
        before = [n for n in range(first) if nodes[n].shape == shape and nodes[n].floating]
        if not (sources or before) or any(nodes[n].shape != shape or not nodes[n].floating for n in outputs):
            raise _NoStreamError("its graph in llama.cpp does not show what enters its first layer")
        return cls((sources or before)[-1], outputs)


@dataclass(frozen=True, kw_only=True)
class _Base:
    """The source's run: tokens, what enters the first layer, what leaves each, the logits, and notes.

    `first` is what the layer that comes first in the result makes of what enters the source's first.
    """

    tokens: tuple[int, ...]
    entrance: Values
    leaving: list[Values]
    logits: Values
    first: Values | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, plan: GGUFPlan) -> _Base:
        """Run the source, and once more with its entrance put into the layer that the result begins with."""
        with _runtime(plan.file.header.path) as runtime:
            window = plan.file.get("attention.sliding_window")
            window = window if type(window) is int else 0
            count = min(max(FEW, min(window + 8, MANY)), runtime.info.batch, runtime.context_limit)
            drawn = np.random.default_rng(SEED).integers(0, runtime.info.n_vocab, count)
            tokens = tuple(int(token) for token in drawn)
            stream = _Stream.of(runtime.nodes(tokens), len(plan.file.layers))
            (entrance, *leaving), logits = runtime.exchange(tokens, [stream.entrance, *stream.outputs], {})
            if not np.isfinite(logits).all():
                raise LlamaError(f"the logits of {runtime.path} are not finite")
            begins = copied(plan.stack[0])
            first = None
            if begins:
                place = stream.outputs[begins]
                (first,), _ = runtime.exchange(tokens, [place], {stream.outputs[begins - 1]: entrance})
        notes = (f"what a window of {window} hides, since {count} tokens were read",) if window >= count else ()
        return cls(tokens=tokens, entrance=entrance, leaving=leaving, logits=logits, first=first, notes=notes)

    def entering(self, layer: int) -> Values:
        """What enters a layer of the source."""
        return self.leaving[layer - 1] if layer else self.entrance

    def expected(self, place: int, origin: int) -> tuple[Values, Values]:
        """What enters the result's layer at `place`, which is the source's `origin`, and what must leave it."""
        if place == 0 and origin and self.first is not None:
            return self.entrance, self.first
        return self.entering(origin), self.leaving[origin]


def _runtime(path: Path) -> Runtime:
    return Runtime(path, RuntimeOptions(threads=useful_threads(path.stat().st_size)))


def _nmse(found: Values, expected: Values) -> float:
    """Σ|found - expected|² / Σ|expected|², 0 where both are 0."""
    error = float(np.square(found - expected, dtype=np.float64).sum())
    scale = float(np.square(expected, dtype=np.float64).sum())
    return error / scale if scale else (0.0 if error == 0.0 else float("inf"))


def _by_reference(plan: GGUFPlan, path: Path) -> tuple[float | None, str]:
    """The NMSE of the result's logits against the torch reference that operates on the source, or why there is none.

    Raises UnsupportedError if it is more than the types' rounding explains.
    """
    types = {piece.type.name for _, piece in plan.outputs if len(piece.shape) > 1}
    limit = max(TYPE_LIMITS.get(name, 0.0) for name in types) if types <= set(TYPE_LIMITS) else None
    if limit is None:
        return None, "their types are coarser than what a fault would have to be told from"
    tokens = tuple(map(int, np.random.default_rng(SEED).integers(0, plan.file.vocabulary or 1, FEW)))
    wanted, why = logits_after(plan, tokens)
    if wanted is None:
        return None, why
    with _runtime(path) as runtime:
        (found,) = runtime.logits([tokens])
    error = _nmse(found, wanted)
    if not error <= limit:
        raise UnsupportedError(
            f"{plan.file.header.path}: llama.cpp computes something else of the result than the torch reference after the same "
            f"ops (NMSE of the logits {error:.1e}, at most {limit:.0e} expected), so nothing was written: please report it"
        )
    return error, ""
