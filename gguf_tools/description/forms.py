"""Which tensors of a layer can be which projections, by shape: the forms of a layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from gguf_tools.description.schema import Source
from gguf_tools.description.structure import Slot

HINTS: Mapping[str, str] = {
    "attn.q": "q|wq|query|queries|to_q|q_proj",
    "attn.k": "k|wk|key|keys|to_k|k_proj",
    "attn.v": "v|wv|value|values|to_v|v_proj",
    "attn.o": "o|wo|out|output|o_proj|out_proj|c_proj|dense|proj|to_out",
    "attn.gate": "g|gate|g_proj",
    "ffn.gate": "gate|gate_proj|w1|wg|fc_1",
    "ffn.up": "up|up_proj|w3|fc|c_fc|fc1|wi|fc_in",
    "ffn.down": "down|down_proj|w2|c_proj|fc2|wo|fc_out",
    "moe.router": "router|gate",
    "moe.gate": "gate|gate_proj|w1",
    "moe.up": "up|up_proj|w3",
    "moe.down": "down|down_proj|w2",
    "shared.gate": "gate|gate_proj|w1",
    "shared.up": "up|up_proj|w3",
    "shared.down": "down|down_proj|w2",
}
"""Role → words that its tensor is often called by, as parts of a name between dots."""


SSM = ("ssm.z", "ssm.x", "ssm.b", "ssm.c", "ssm.step")
"""The roles that share a state space's input projection, in the order of the published files."""


@dataclass(frozen=True)
class Form:
    """The matrices of a layer and their roles; `biases` their biases. `mixer` and `ffn` are classes of the spec.

    `q` and `kv` are the rows of queries and of keys (values have as many), 0 for another mixer than attention. `width` is that
    of the feed-forward or of each of the `experts`, `shared` that of a shared expert, `kernel` that of a convolution. A state
    space has `heads`, together `inner` wide, and B and C of `state` rows each.
    """

    mixer: str
    ffn: str | None
    sources: tuple[Source, ...]
    q: int = 0
    kv: int = 0
    width: int = 0
    experts: int = 0
    shared: int = 0
    kernel: int = 0
    inner: int = 0
    heads: int = 0
    state: int = 0

    @property
    def score(self) -> int:
        """How many tensors have a name that hints at their role."""
        return sum(hinted(role, source.tensor) for source in self.sources for role in source.roles[:1])

    @property
    def usual(self) -> bool:
        """Whether the feed-forward has a gate and the attention none, as in most decoders."""
        return self.ffn in ("GatedMLP", "MoE") and not _gates(self)


def _gates(form: Form) -> bool:
    return any("attn.gate" in source.roles for source in form.sources)


def hinted(role: str, name: str) -> bool:
    """Whether a part of the name is a word for the role."""
    words = HINTS.get(role)
    return bool(words and re.search(rf"(^|[._])({words})([._]|$)", name.lower()))


def layer_forms(slots: Sequence[Slot], hidden: int) -> list[Form]:
    """The forms of a layer with these tensors, those first whose names hint at them.

    Of tensors of the same shape, which is which is settled by hints and by their order; the solver exchanges them.
    """
    experts = [slot for slot in slots if len(slot.squeezed) == 3]
    matrices = [slot for slot in slots if is_matrix(slot) and hidden in slot.squeezed]
    kernels = [slot for slot in slots if is_kernel(slot)]
    found: dict[tuple[tuple[str, tuple[str, ...], bool], ...], Form] = {}
    for transposed in (False, True):
        for form in _forms(matrices, experts, kernels, hidden, transposed):
            if form.mixer == "Attention" and not head_dims(form):
                continue
            form = by_hints(form, slots)
            key = tuple(sorted((source.tensor, source.roles, source.transposed) for source in form.sources))
            found.setdefault(key, form)
    return sorted(found.values(), key=lambda form: (-form.score, not form.usual))


def head_dims(form: Form) -> list[int]:
    """Sizes that heads can have, the likely ones first: even divisors of the rows of queries and of keys."""
    sizes = [d for d in range(4, min(form.kv, 512) + 1, 2) if form.kv % d == 0 and form.q % d == 0]
    sizes = [d for d in sizes if (form.q // d) % (form.kv // d) == 0]
    return sorted(sizes, key=lambda d: (d & (d - 1) != 0 and d not in (80, 96, 112, 160, 192), abs(d - 64)))


def router_of(form: Form) -> str:
    """The tensor of the router; empty if there is none."""
    return next((source.tensor for source in form.sources if source.roles == ("moe.router",)), "")


def by_hints(form: Form, slots: Sequence[Slot]) -> Form:
    """The form with sources of the same shape exchanged so that as many as possible have hinting names."""
    shapes = {slot.name: (slot.shape, slot.experts) for slot in slots}
    sources = list(form.sources)
    for shape in {shapes[source.tensor] for source in sources}:
        places = [n for n, s in enumerate(sources) if shapes[s.tensor] == shape and len(s.roles) == 1]
        names = [sources[n].tensor for n in places]
        if len({sources[n].transposed for n in places}) > 1 or len(places) > 6:
            continue
        best = max(
            permutations(names),
            key=lambda order: sum(hinted(sources[n].roles[0], name) for n, name in zip(places, order, strict=True)),
        )
        for n, name in zip(places, best, strict=True):
            sources[n] = replace(sources[n], tensor=name)
    return replace(form, sources=tuple(sources))


def is_kernel(slot: Slot) -> bool:
    """Whether a tensor has the shape of a depthwise convolution's weights, (channels, 1, kernel)."""
    return len(slot.shape) == 3 and slot.shape[1] == 1 and slot.shape[2] > 1


def recurrent(slots: Sequence[Slot]) -> str:
    """What a layer with a convolution over channels looks like, as the middle of a sentence; empty without one."""
    kernel = next(filter(is_kernel, slots), None)
    if kernel is None:
        return ""
    channels, _, width = kernel.shape
    sizes = Counter(slot.squeezed for slot in slots if len(slot.squeezed) == 1 and slot.squeezed != (channels,))
    heads = min((size for size, count in sizes.items() if count >= 2), default=(0,))
    kind = "a state space like Mamba-2" if sizes[heads] == 3 else "linear attention like Gated DeltaNet"
    seen = f"a convolution of {width} tokens over {channels} channels"
    return f"but show {kind}: {seen}, {sizes[heads]} vectors of {heads[0]} heads " if heads[0] else f"but show {seen} "


def is_matrix(slot: Slot) -> bool:
    """Whether a tensor is one matrix."""
    return len(slot.squeezed) == 2 and not is_kernel(slot)


def _forms(
    matrices: Sequence[Slot], experts: Sequence[Slot], kernels: Sequence[Slot], hidden: int, transposed: bool
) -> Iterator[Form]:
    """Every split of the matrices into a mixer and a feed-forward, all stored the same way round."""
    matcher = _Matcher(hidden, transposed)
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
    """Matches matrices by shape; `transposed` says that they are stored as (in, out)."""

    hidden: int
    transposed: bool

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
        if len(matrices) == 2 and len(kernels) == 1:
            yield from self._state_space(matrices, kernels[0])

    def _state_space(self, matrices: list[Slot], kernel: Slot) -> Iterator[Form]:
        """Mamba-2: z, x, B, C and the steps from one matrix, of which x, B and C pass the convolution."""
        channels = kernel.shape[0]
        for wide, out in (matrices, matrices[::-1]):
            (rows, columns), (back, inner) = self.shape(wide), self.shape(out)
            heads, state = rows - inner - channels, (channels - inner) // 2
            fits = columns == back == self.hidden and heads > 0 and state > 0 and channels == inner + 2 * state
            if fits and inner % heads == 0:
                sources = (self.source(wide, *SSM), Source(kernel.name, ("ssm.conv",)), self.source(out, "ssm.o"))
                yield Form("Mamba2", None, sources, kernel=kernel.shape[2], inner=inner, heads=heads, state=state)


def _without(slots: Sequence[Slot], taken: Sequence[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot not in taken]
