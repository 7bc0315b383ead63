"""`tinyq surgery --prove`: llama.cpp computes each layer of the result as it computes the source's own.

The layers of the source are run in their new order, one by one: llama.cpp's evaluation callback gives what enters and leaves
each of the source's layers on a text of random tokens; the same is put into the layer that took its place in the result, whose
output must be the same, as must the logits after the last. So a fault shows at the layer that has it, whatever the others are,
and needs no reference: only that llama.cpp runs the source.

Layers whose halves come from two layers, or are scaled, are held against the source half by half: the stream between the halves
is read and replaced likewise, and what a half adds must be its factor times what it added in the source.

Other layers that are computed (blends, fewer experts) or of another file have no counterpart in the source. For those the whole
result is held against the torch reference, which operates on the source's own weights, where tinyq has the architecture as a
target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import InputError, LlamaError, UnsupportedError, named_instead
from gguf_tools.tensors.error import nmse
from surgery.algebra import HALVES, Edited, Half, Halves, Layer, Original, Scaled, SwapExperts
from surgery.gguf.layers import GGUFSpace
from surgery.gguf.reference import logits_after
from surgery.gguf.rewrite import GGUFPlan
from surgery.gguf.streams import FEW, SEED, NoStreamError, SourceRun, Stream, Values, exact_runtime, keys_of

LIMIT = 1e-6
"""Largest NMSE of what a layer adds to the residual stream, and of the logits; the same layer gives the same bits."""
SCALED_LIMITS = {"f32": 1e-8, "f16": 1e-6, "bf16": 1e-4}
"""Largest NMSE of what a scaled half adds, by the type that its factor was rounded to; `COARSE` for all others."""
COARSE = 1e-2
TYPE_LIMITS = {"f32": 1e-9, "f16": 1e-4, "bf16": 1e-2}
"""Largest NMSE of the logits against the torch reference, by the coarsest type of the layers' matrices."""


@dataclass(frozen=True, kw_only=True)
class Proved:
    """What was found: the layers held against their source (whole, or half by half), the worst NMSE of what
    one adds, that of the logits, and the number of tokens read.

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
                f"llama.cpp: {self.layers} layers compute what they did in the source, times their factors, on {self.n_tokens} "
                f"tokens (worst NMSE of what one adds {self.worst:.0e})"
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
        self._base: SourceRun | None = None
        self._runs = True
        self._halved: set[int] = set()
        self.proved: Proved | None = None
        if not self._why:
            try:
                self._base = SourceRun.of(plan)
            except (LlamaError, InputError) as error:
                self._runs = False
                self._why = f"llama.cpp does not run the source as a language model ({error})"
            except NoStreamError as error:
                self._why = str(error)
        if demanded and self._base is None and not (self._runs and self._computed):
            raise UnsupportedError(f"{self._source}: cannot be proved: {self._why}; --no-prove writes it without")

    @property
    def _computed(self) -> list[int]:
        """The layers that no layer of the source can be held against, as far as is known before the result is run."""
        return [n for n, layer in enumerate(self._plan.stack) if copied(layer) is None and n not in self._halved]

    def __call__(self, path: Path) -> None:
        """Run the result at `path` and compare; sets `proved`."""
        reference, why = None, ""
        with named_instead(path, self._source, "the result does not run, so nothing was written"):
            layers, worst, logits, count = self._by_layers(path) if self._base else (0, 0.0, None, 0)
            computed = self._computed if self._runs else []
            if computed:
                reference, why = _by_reference(self._plan, path)
        unproved = [self._why] if self._base is None else list(self._base.notes)
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
        with exact_runtime(path) as runtime:
            stream = Stream.of(runtime.nodes(base.tokens), len(stack))
            starts = [keys_of(layer) for layer in stack]
            write = {stream.outputs[n - 1]: base.entering(o) for n, o in enumerate(starts) if n and o is not None}
            write[stream.outputs[-1]] = base.leaving[-1]
            halved = self._in_halves(base, stream)
            write |= {stream.middles[n]: base.middle[h.ffn] for n, h in halved.items()}
            read = [*stream.outputs, *(stream.middles[n] for n in halved)]
            found, logits = runtime.exchange(base.tokens, read, write)
        middles = dict(zip(halved, found[len(stack) :], strict=True))
        worst, count = 0.0, 0
        for n, layer in enumerate(stack):
            origin = copied(layer)
            if origin is not None:
                entered, _, expected = base.expected(n, origin)
                worst = max(worst, self._held(found[n], entered, expected, 1.0, LIMIT, f"layer {n}", origin))
            elif n in halved:
                h = halved[n]
                entered, middle, _ = base.expected(n, h.attention)
                limits = (h.limit if h.attention_factor != 1.0 else LIMIT, h.limit if h.ffn_factor != 1.0 else LIMIT)
                name = f"the attention of layer {n}", f"the feed-forward of layer {n}"
                worst = max(
                    worst,
                    self._held(middles[n], entered, middle, h.attention_factor, limits[0], name[0], h.attention),
                    self._held(
                        found[n], base.middle[h.ffn], base.leaving[h.ffn], h.ffn_factor, limits[1], name[1], h.ffn
                    ),
                )
            count += origin is not None or n in halved
        self._halved = set(halved)
        error = nmse(base.logits, logits)
        if not error <= LIMIT:
            raise UnsupportedError(
                f"{self._source}: the result's logits in llama.cpp differ from the source's for the same last layer (NMSE "
                f"{error:.1e}), so nothing was written: please report it"
            )
        return count, worst, error, len(base.tokens)

    def _held(
        self, found: Values, entered: Values, expected: Values, factor: float, limit: float, what: str, origin: int
    ) -> float:
        """The NMSE of what a layer, or half of one, adds; UnsupportedError if it is above the limit."""
        error = nmse(np.float32(factor) * (expected - entered), found - entered)
        if not error <= limit:
            raise UnsupportedError(
                f"{self._source}: {what} of the result differs in llama.cpp from the source's layer {origin}, "
                f"its origin (NMSE of what it adds {error:.1e}), so nothing was written: please report it"
            )
        return error

    def _in_halves(self, base: SourceRun, stream: Stream) -> dict[int, Halved]:
        """The computed layers that can be held against the source half by half."""
        found = {}
        for n, layer in enumerate(self._plan.stack):
            parts = halved(self._plan, n) if copied(layer) is None else None
            if parts is None or n not in stream.middles:
                continue
            if {parts.attention, parts.ffn} <= set(base.middle) and (n or base.begins in (None, parts.attention)):
                found[n] = parts
        return found


@dataclass(frozen=True, kw_only=True)
class Halved:
    """A layer of two halves of the source's layers, each times a factor; `limit` is what rounding the scaled weights explains."""

    attention: int
    attention_factor: float
    ffn: int
    ffn_factor: float
    limit: float


def halved(plan: GGUFPlan, place: int) -> Halved | None:
    """A computed layer as two scaled halves, or None where it is not, or a wrong factor could not be told from rounding."""
    attention, ffn = (_term(plan.stack[place], half) for half in HALVES)
    if attention is None or ffn is None:
        return None
    if attention[0] != ffn[0] and plan.file.architecture.ffn_reads_input:
        return None
    space = GGUFSpace(plan.file)
    roles = [role for index in (attention[0], ffn[0]) for role in space.roles(Original(index)).values()]
    if any(role is None or role.half is None for role in roles):
        return None
    types = {
        piece.type.name for name, piece in plan.outputs if piece.ranges is None and name.startswith(f"blk.{place}.")
    }
    limit = max((SCALED_LIMITS.get(name, COARSE) for name in types), default=LIMIT)
    factors = [factor for _, factor in (attention, ffn) if factor not in (0.0, 1.0)]
    if any(limit > 0.1 * (1.0 - 1.0 / factor) ** 2 for factor in factors):
        return None
    return Halved(attention=attention[0], attention_factor=attention[1], ffn=ffn[0], ffn_factor=ffn[1], limit=limit)


def _term(layer: Layer, half: Half) -> tuple[int, float] | None:
    """The source layer and the factor that half a layer is; None if it is something else."""
    if isinstance(layer, Original):
        return None if layer.source else (layer.index, 1.0)
    if isinstance(layer, Halves):
        return _term(layer.attention if half == "attention" else layer.ffn, half)
    if isinstance(layer, Scaled) and layer.query_key == 1.0:
        inner = _term(layer.layer, half)
        return inner and (inner[0], inner[1] * (layer.attention if half == "attention" else layer.ffn))
    return _term(layer.layer, half) if isinstance(layer, Edited) and isinstance(layer.edit, SwapExperts) else None


def copied(layer: Layer) -> int | None:
    """The source layer that computes what this one must: it is copied, or its experts exchanged; None if it is computed."""
    if isinstance(layer, Original):
        return None if layer.source else layer.index
    return copied(layer.layer) if isinstance(layer, Edited) and isinstance(layer.edit, SwapExperts) else None


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
    if not np.isfinite(wanted).all():
        return None, "the torch reference's own logits are not finite, as the weights are not"
    with exact_runtime(path) as runtime:
        (found,) = runtime.logits([tokens])
    error = nmse(wanted, found)
    if not error <= limit:
        raise UnsupportedError(
            f"{plan.file.header.path}: the result's logits in llama.cpp differ from the torch reference's after the same ops "
            f"(NMSE {error:.1e}, at most {limit:.0e} expected); nothing was written; please report it"
        )
    return error, ""
