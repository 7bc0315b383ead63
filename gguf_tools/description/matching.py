"""The forms that a layer's tensors allow, by their shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from gguf_tools.description.forms import DELTA, SSM, Form, by_hints, head_dims, is_kernel, is_matrix
from gguf_tools.description.schema import Source
from gguf_tools.description.structure import Slot

PROJECTIONS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (DELTA[:4], DELTA[4:]),
    (DELTA[:3], *((role,) for role in DELTA[3:])),
    (DELTA[:3], DELTA[3:4], DELTA[4:]),
    tuple((role,) for role in DELTA),
    (*((role,) for role in DELTA[:4]), DELTA[4:]),
    (DELTA,),
)
"""Which roles of linear attention share matrices, in the ways that are in use."""


def layer_forms(slots: Sequence[Slot], hidden: int) -> list[Form]:
    """The forms of a layer with these tensors, those first whose names hint at them.

    Of tensors of the same shape, which is which is settled by hints and by their order; the solver exchanges them.
    """
    experts = [slot for slot in slots if len(slot.squeezed) == 3]
    matrices = [slot for slot in slots if is_matrix(slot) and hidden in slot.squeezed]
    kernels = [slot for slot in slots if is_kernel(slot)]
    sizes = Counter(slot.squeezed[0] for slot in slots if len(slot.squeezed) == 1)
    heads = tuple(sorted(size for size, count in sizes.items() if count > 1 and size != hidden))
    found: dict[tuple[tuple[str, tuple[str, ...], bool], ...], Form] = {}
    for transposed in (False, True):
        for form in _forms(matrices, experts, kernels, _Matcher(hidden, transposed, heads)):
            if form.mixer == "Attention" and not head_dims(form):
                continue
            form = by_hints(form, slots)
            key = tuple(sorted((source.tensor, source.roles, source.transposed) for source in form.sources))
            found.setdefault(key, form)
    return sorted(found.values(), key=lambda form: (-form.score, not form.usual))


def _forms(
    matrices: Sequence[Slot], experts: Sequence[Slot], kernels: Sequence[Slot], matcher: _Matcher
) -> Iterator[Form]:
    """Every split of the matrices into a mixer and a feed-forward, all stored the same way round."""
    for split in matcher.feed_forwards(list(matrices), list(experts)):
        for form in matcher.mixers(list(split.rest), kernels):
            yield replace(
                form,
                ffn=split.ffn,
                sources=(*form.sources, *split.sources),
                width=split.width,
                experts=split.experts,
                shared=split.shared,
            )


@dataclass(frozen=True, kw_only=True)
class Split:
    """A feed-forward, and the matrices that remain for the mixer."""

    ffn: str | None
    sources: tuple[Source, ...] = ()
    rest: tuple[Slot, ...] = ()
    width: int = 0
    experts: int = 0
    shared: int = 0


@dataclass(frozen=True)
class _Matcher:
    """Matches matrices by shape; `transposed` says that they are stored as (in, out). `heads` are possible numbers of heads."""

    hidden: int
    transposed: bool
    heads: tuple[int, ...] = ()

    def shape(self, slot: Slot) -> tuple[int, int]:
        """(out, in) of a matrix."""
        rows, columns = slot.squeezed[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    def source(self, slot: Slot, *roles: str) -> Source:
        """The source of roles in a matrix."""
        return Source(slot.name, roles, transposed=self.transposed)

    def having(self, slots: Sequence[Slot], rows: int, columns: int, count: int = 1) -> list[Slot] | None:
        """The first `count` matrices of this shape, or None if there are fewer."""
        found = [slot for slot in slots if self.shape(slot) == (rows, columns)]
        return found[:count] if len(found) >= count else None

    def kinds(self, slots: Sequence[Slot]) -> list[Slot]:
        """One matrix of each shape."""
        return list({self.shape(slot): slot for slot in reversed(slots)}.values())

    def feed_forwards(self, matrices: list[Slot], experts: list[Slot]) -> Iterator[Split]:
        """Every feed-forward that the shapes allow."""
        if experts:
            yield from self._experts(matrices, experts)
            return
        yield from self._dense(matrices, "ffn")
        yield Split(ffn=None, rest=tuple(matrices))

    def _dense(self, matrices: list[Slot], prefix: str) -> Iterator[Split]:
        """Dense feed-forwards, with a gate, with gate and up in one matrix, or without a gate."""
        for down in self.kinds([slot for slot in matrices if self.shape(slot)[0] == self.hidden]):
            rest, width = _without(matrices, [down]), self.shape(down)[1]
            sources = (self.source(down, f"{prefix}.down"),)
            if both := self.having(rest, width, self.hidden, 2):
                parts = (self.source(both[0], f"{prefix}.gate"), self.source(both[1], f"{prefix}.up"))
                left = tuple(_without(rest, both))
                yield Split(ffn="GatedMLP", sources=(*parts, *sources), rest=left, width=width)
            if one := self.having(rest, 2 * width, self.hidden):
                fused = self.source(one[0], f"{prefix}.gate", f"{prefix}.up")
                left = tuple(_without(rest, one))
                yield Split(ffn="GatedMLP", sources=(fused, *sources), rest=left, width=width)
            if prefix == "ffn" and (one := self.having(rest, width, self.hidden)):
                plain = (self.source(one[0], "ffn.up"), *sources)
                yield Split(ffn="MLP", sources=plain, rest=tuple(_without(rest, one)), width=width)

    def _experts(self, matrices: list[Slot], experts: list[Slot]) -> Iterator[Split]:
        """Experts, stacked or one by one, with a router and perhaps a shared expert."""
        count = experts[0].shape[0]
        modules = {slot.module for slot in experts}
        # Biases of the experts, where they are as wide as the model, have the router's shape.
        biases = [slot for slot in matrices if slot.squeezed == (count, self.hidden) and slot.module in modules]
        router = self.having(_without(matrices, biases), count, self.hidden)
        if router is None:
            router, biases = self.having(matrices, count, self.hidden), []
        if router is None or any(slot.shape[0] != count for slot in experts):
            return
        rest = _without(matrices, [*router, *biases])
        for turned in (False, True):
            matcher = replace(self, transposed=turned)
            for split in matcher._dense(experts, "moe"):
                if split.rest:
                    continue
                both = (self.source(router[0], "moe.router"), *split.sources)
                routed = Split(ffn="MoE", sources=both, rest=tuple(rest), width=split.width, experts=count)
                yield routed
                for more in self._dense(rest, "shared"):
                    yield replace(routed, sources=(*both, *more.sources), rest=more.rest, shared=more.width)

    def mixers(self, matrices: list[Slot], kernels: Sequence[Slot]) -> Iterator[Form]:
        """Every mixer that takes all the matrices."""
        if kernels:
            yield from self._convolution(matrices, kernels)
        elif 2 <= len(matrices) <= 5:
            for out in self.kinds([slot for slot in matrices if self.shape(slot)[0] == self.hidden]):
                yield from self._attention(out, _without(matrices, [out]))

    def _attention(self, out: Slot, rest: list[Slot]) -> Iterator[Form]:
        """Attention whose output projection is `out`."""
        hidden, q = self.hidden, self.shape(out)[1]
        o = self.source(out, "attn.o")
        rows = sorted({self.shape(slot)[0] for slot in rest if self.shape(slot)[1] == hidden})
        if any(self.shape(slot)[1] != hidden for slot in rest):
            return
        if len(rest) == 1 and rows[0] > q and (rows[0] - q) % 2 == 0:
            kv = (rows[0] - q) // 2
            yield Form("Attention", None, (self.source(rest[0], "attn.q", "attn.k", "attn.v"), o), q, kv)
        for kv in rows:
            pair = self.having(rest, kv, hidden, 2)
            if len(rest) == 2 and kv % 2 == 0 and (own := self.having(rest, q, hidden)):
                (both,) = _without(rest, own)
                half = self.shape(both)[0] // 2
                parts = (self.source(own[0], "attn.q"), self.source(both, "attn.k", "attn.v"), o)
                yield Form("Attention", None, parts, q, half)
            if not pair:
                continue
            left = _without(rest, pair)
            k, v = self.source(pair[0], "attn.k"), self.source(pair[1], "attn.v")
            if len(left) == 1 and self.shape(left[0])[0] == q:
                yield Form("Attention", None, (self.source(left[0], "attn.q"), k, v, o), q, kv)
            if len(left) == 1 and self.shape(left[0])[0] == 2 * q:
                yield Form("Attention", None, (self.source(left[0], "attn.q", "attn.gate"), k, v, o), q, kv)
            if len(left) == 2 and all(self.shape(slot)[0] == q for slot in left):
                gated = (self.source(left[0], "attn.q"), k, v, self.source(left[1], "attn.gate"), o)
                yield Form("Attention", None, gated, q, kv)

    def _convolution(self, matrices: list[Slot], kernels: Sequence[Slot]) -> Iterator[Form]:
        """A gated short convolution."""
        wide, out = self.having(matrices, 3 * self.hidden, self.hidden), self.having(matrices, self.hidden, self.hidden)
        if wide and out and len(matrices) == 2 and len(kernels) == 1 and kernels[0].shape[0] == self.hidden:
            kernel = Source(kernels[0].name, ("conv.kernel",))
            sources = (self.source(wide[0], "conv.in"), kernel, self.source(out[0], "conv.o"))
            yield Form("ShortConv", None, sources, kernel=kernels[0].shape[2])
        if len(kernels) != 1:
            return
        yield from self._linear(matrices, kernels[0])
        for form in self._state_spaces(matrices, kernels[0]):
            left = [slot for slot in matrices if slot.name not in {source.tensor for source in form.sources}]
            if not left:
                yield form
            elif 2 <= len(left) <= 5:
                for own in self.mixers(left, ()):
                    sizes = replace(form, mixer=own.mixer, sources=(*own.sources, *form.sources))
                    yield replace(sizes, q=own.q, kv=own.kv)

    def _state_spaces(self, matrices: list[Slot], kernel: Slot) -> Iterator[Form]:
        """Mamba-2: z, x, B, C and the steps from one matrix, of which x, B and C pass the convolution."""
        channels = kernel.shape[0]
        for wide, out in product(self.kinds(matrices), self.kinds(matrices)):
            if wide == out:
                continue
            (rows, columns), (back, inner) = self.shape(wide), self.shape(out)
            heads, state = rows - inner - channels, (channels - inner) // 2
            fits = columns == back == self.hidden and heads > 0 and state > 0 and channels == inner + 2 * state
            if fits and inner % heads == 0:
                sources = (self.source(wide, *SSM), Source(kernel.name, ("ssm.conv",)), self.source(out, "ssm.o"))
                yield Form("Mamba2", None, sources, kernel=kernel.shape[2], inner=inner, heads=heads, state=state)

    def _linear(self, matrices: list[Slot], kernel: Slot) -> Iterator[Form]:
        """Gated DeltaNet: q, k and v, which pass the convolution, z, beta and alpha, fused in one of several ways."""
        for out, heads in product(
            self.kinds([slot for slot in matrices if self.shape(slot)[0] == self.hidden]), self.heads
        ):
            inner, left = self.shape(out)[1], _without(matrices, [out])
            keys, odd = divmod(kernel.shape[0] - inner, 2)
            if keys < 1 or odd or inner % heads or any(self.shape(slot)[1] != self.hidden for slot in left):
                continue
            rows = dict(zip(DELTA, (keys, keys, inner, inner, heads, heads), strict=True))
            for fused in PROJECTIONS:
                wanted = [sum(rows[role] for role in roles) for roles in fused]
                if sorted(wanted) != sorted(self.shape(slot)[0] for slot in left):
                    continue
                free, sources = list(left), []
                for size, roles in zip(wanted, fused, strict=True):
                    slot = next(slot for slot in free if self.shape(slot)[0] == size)
                    free.remove(slot)
                    sources.append(self.source(slot, *roles))
                own = (*sources, Source(kernel.name, ("delta.conv",)), self.source(out, "delta.o"))
                yield Form("DeltaNet", None, own, kernel=kernel.shape[2], inner=inner, heads=heads, state=keys)


def _without(slots: Sequence[Slot], taken: Sequence[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot not in taken]
