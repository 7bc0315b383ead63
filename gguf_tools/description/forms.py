"""A form of a layer: which of its tensors are which projections."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
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
DELTA = ("delta.q", "delta.k", "delta.v", "delta.z", "delta.beta", "delta.alpha")
"""The roles of linear attention that may share a matrix, in the order of the published files."""
QKV = {"attn.q", "attn.k", "attn.v"}


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
    def beside(self) -> bool:
        """Whether a state space is beside attention."""
        return self.mixer == "Attention" and self.state > 0

    @property
    def spaced(self) -> bool:
        """Whether a state space is the mixer, or beside it."""
        return self.mixer == "Mamba2" or self.beside

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values share a matrix."""
        return any(set(source.roles) == QKV for source in self.sources)

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


def joined(slot: Slot, hidden: int) -> Slot:
    """A tensor with an axis for the heads as the matrix or the vector that it is without; any other unchanged."""
    shape = slot.shape
    if len(shape) == 3 and not is_kernel(slot) and hidden in shape:
        if shape[2] == hidden:
            return replace(slot, shape=(shape[0] * shape[1], hidden))
        return replace(slot, shape=(hidden, shape[0] * shape[2] if shape[1] == hidden else shape[1] * shape[2]))
    bias = len(shape) == 2 and 1 not in shape and hidden not in shape and "norm" not in slot.name.lower()
    return replace(slot, shape=(shape[0] * shape[1],)) if bias else slot


def is_matrix(slot: Slot) -> bool:
    """Whether a tensor is one matrix."""
    return len(slot.squeezed) == 2 and not is_kernel(slot)
