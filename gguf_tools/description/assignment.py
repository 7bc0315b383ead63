"""Which vectors belong to which matrices and norms, and which tensors outside the layers are which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from gguf_tools.description.forms import (
    Form,
    head_dims,
    hinted,
    is_kernel,
    is_matrix,
    joined,
    recurrent,
    router_of,
)
from gguf_tools.description.matching import layer_forms
from gguf_tools.description.schema import Source, layer_name
from gguf_tools.description.structure import Slot, Structure
from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import same_values
from gguf_tools.text import shortened

FIRST_WORDS = ("embed", "tok", "wte", "emb")
WEIGHTS_POSITIVE = 0.9
"""Share of positive numbers in a norm's weights; in a bias about half are."""
VECTORS = {"Mamba2": 3, "DeltaNet": 2}
"""Vectors of a state space and of linear attention with a number for each head."""
MOST_NORMS = 6
"""Norms of a layer: before and after the mixer and the feed-forward, and of q and k."""
NORM_MEAN = 0.5
"""Weights of a norm have a mean near 1, its biases near 0."""


@dataclass(frozen=True)
class NormSlots:
    """The names of a norm's weights and bias; both are None for a norm that has neither."""

    weight: str | None = None
    bias: str | None = None

    def sources(self, role: str) -> tuple[Source, ...]:
        """The sources of the norm in a field whose weights have this role."""
        named = ((self.weight, role), (self.bias, f"{role}_bias"))
        return tuple(Source(name, (role,)) for name, role in named if name is not None)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers with the same tensors: the forms that their matrices allow, and their vectors.

    `biases` maps a matrix's name to that of its bias, `norms` are the norms over the hidden size, `head_norms` the slots of the
    q and k norms (of shape (head_dim,), (heads, head_dim) or (heads · head_dim,)). `scalars` are tensors of one number, and
    `per_head` vectors with a number for each head (of linear attention, also its norm's weights), `inner_norm` the weights of the
    norm within a state space. `left` are tensors without a place.
    """

    layers: tuple[int, ...]
    forms: tuple[Form, ...]
    biases: Mapping[str, str]
    norms: tuple[NormSlots, ...]
    head_norms: tuple[Slot, ...] = ()
    router_bias: str | None = None
    sigmoid: str | None = None
    scalars: tuple[str, ...] = ()
    per_head: tuple[Slot, ...] = ()
    inner_norm: str | None = None
    left: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outside:
    """The tensors outside the layers; `matrices` are those of the embedding's shape, each with whether it is transposed."""

    matrices: tuple[tuple[str, bool], ...]
    norms: tuple[NormSlots, ...]
    positions: str | None = None
    output_bias: str | None = None
    copies: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """The places that shapes allow for all tensors of a checkpoint."""

    structure: Structure
    outside: Outside
    groups: tuple[Group, ...]


def assign(structure: Structure, checkpoint: Checkpoint) -> Assignment:
    """The places of all tensors. Raises UnsupportedError, with the shapes, for layers that match no form."""
    groups = tuple(_group(layers, slots, structure, checkpoint) for layers, slots in structure.groups())
    return Assignment(structure, _outside(structure, checkpoint), groups)


def _group(layers: tuple[int, ...], slots: Sequence[Slot], structure: Structure, checkpoint: Checkpoint) -> Group:
    """The places of one group's tensors."""
    hidden = structure.hidden
    forms = layer_forms(slots, hidden)
    if not forms:
        turned = {slot.name for slot in slots if len(slot.shape) == 3 and slot.shape[1] == hidden}
        slots = [joined(slot, hidden) for slot in slots]
        forms = [
            form
            for form in layer_forms(slots, hidden)
            if all(source.transposed for source in form.sources if source.tensor in turned)
        ]
    if not forms:
        shapes = ", ".join(f"{slot.name} {'×'.join(map(str, slot.shape))}" for slot in slots if len(slot.squeezed) > 1)
        raise UnsupportedError(
            f"{checkpoint.path}: the matrices of layer {layers[0]} match no mixer and feed-forward that tinyq knows "
            f"{recurrent(slots)}({shortened(shapes, 400)}); describe by hand what can be, see docs/describe.md"
        )
    vectors = [slot for slot in slots if len(slot.squeezed) == 1 and not is_kernel(slot)]
    found = [_biases(form, slots, vectors) for form in forms]
    biases = max(found, key=len)  # matrices read the wrong way round have biases of another size
    forms = [form for form, own in zip(forms, found, strict=True) if own == biases]
    form = forms[0]
    rest = [slot for slot in vectors if slot.name not in biases.values()]
    sigmoid = next((slot for slot in rest if slot.shape == (1, hidden)), None)
    moe = form.ffn == "MoE"
    experts = next((slot.shape[0] for slot in slots if len(slot.squeezed) == 3), 0) if moe else 0
    rest = [slot for slot in rest if slot != sigmoid]
    others = [slot for slot in slots if slot.name not in biases.values()]
    head = _head_norms(form, others, rest, hidden) if form.mixer == "Attention" else ()
    rest = [slot for slot in rest if slot not in head]
    unbiased = moe and experts != hidden and router_of(form) not in biases
    biased = [slot for slot in rest if unbiased and slot.squeezed == (experts,)]
    if biased and form.heads == experts:
        biased = biased[VECTORS["Mamba2" if form.spaced else form.mixer] :]
    router = biased[0] if biased else None
    rest = [slot for slot in rest if slot != router]
    norms = _norms([slot for slot in rest if slot.squeezed == (hidden,)], slots, checkpoint, layers)
    if len(norms) > MOST_NORMS:
        listed = shortened(", ".join(norm.weight or "" for norm in norms), 300)
        raise UnsupportedError(
            f"{checkpoint.path}: layer {layers[0]} has {len(norms)} vectors of the hidden size that may be norms ({listed}); "
            f"expected at most {MOST_NORMS}; describe it by hand, see docs/describe.md"
        )
    placed = {*biases.values(), *(source.tensor for source in form.sources)}
    loose = [slot for slot in slots if slot not in vectors and slot.name not in placed]
    loose = [slot for slot in loose if slot not in head]
    scalars = [slot for slot in loose if not slot.squeezed] if form.ffn == "MLP" else []
    loose = [slot for slot in loose if slot not in scalars]
    per_head = [slot for slot in rest if _per_head(slot, form, hidden)]
    inner = next((slot for slot in rest if form.spaced and slot.squeezed == (form.inner,) != (hidden,)), None)
    return Group(
        layers=layers,
        forms=tuple(forms),
        biases=biases,
        norms=norms,
        head_norms=head,
        router_bias=router.name if router else None,
        sigmoid=sigmoid.name if sigmoid and any(s.roles == ("shared.down",) for s in form.sources) else None,
        scalars=tuple(slot.name for slot in scalars),
        per_head=tuple(per_head),
        inner_norm=inner.name if inner else None,
        left=tuple(
            slot.name
            for slot in [*loose, *rest]
            if slot in loose or (slot.squeezed != (hidden,) and slot not in per_head and slot != inner)
        ),
    )


def _per_head(slot: Slot, form: Form, hidden: int) -> bool:
    """Whether a vector may have a number for each query head or each key head."""
    if slot.squeezed == (hidden,):
        return False
    if form.spaced:
        return slot.squeezed == (form.heads,)
    if form.mixer == "DeltaNet":
        return slot.squeezed in ((form.heads,), (form.inner // form.heads,))
    if form.mixer != "Attention":
        return False
    (size,) = slot.squeezed
    return any(rows % size == 0 and rows // size in head_dims(form) for rows in (form.q, form.kv))


def _biases(form: Form, slots: Sequence[Slot], vectors: Sequence[Slot]) -> dict[str, str]:
    """Matrix → its bias: the vector in the same module, else the next one of its rows that no norm can be."""
    by_name = {slot.name: slot for slot in slots}
    modules: dict[str, list[Slot]] = defaultdict(list)
    for slot in slots:
        modules[slot.module].append(slot)
    found: dict[str, str] = {}
    loose: list[tuple[str, int]] = []
    used = {source.tensor for source in form.sources}
    for source in form.sources:
        slot = by_name[source.tensor]
        if len(slot.squeezed) == 3 and not is_kernel(slot):
            count, *both = slot.squeezed
            rows = both[1 if source.transposed else 0]
            free = [one for one in slots if one.squeezed == (count, rows) and one.name not in {*used, *found.values()}]
            if free:
                found[slot.name] = max(free, key=lambda one: _alike(one.name, source.tensor)).name
            continue
        if len(slot.squeezed) != 2:
            if is_kernel(slot):
                loose.append((slot.name, slot.shape[0]))
            continue
        rows = slot.squeezed[1 if source.transposed else 0]
        if is_kernel(slot):
            rows = slot.shape[0]
        beside = modules[slot.module]
        if sum(len(other.squeezed) > 1 for other in beside) == 1:
            own = [other for other in beside if other.squeezed == (rows,)]
            found |= {slot.name: own[0].name} if len(own) == 1 else {}
        else:
            loose.append((slot.name, rows))
    hidden = {
        slot.squeezed[1 if source.transposed else 0]
        for source in form.sources
        if (slot := by_name[source.tensor]) and source.roles[0].endswith(("down", ".o"))
    }
    found |= _renamed(loose, [slot for slot in vectors if slot.name not in found.values()])
    for name, rows in loose:
        free = [slot for slot in vectors if slot.name not in found.values() and slot.squeezed == (rows,)]
        if free and rows not in hidden and name not in found:
            found[name] = free[0].name
    return found


def _renamed(loose: Sequence[tuple[str, int]], vectors: Sequence[Slot]) -> dict[str, str]:
    """Matrix → its bias, where the names of several biases follow from those of the matrices by the same change (W_q, b_q)."""
    pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, rows in loose:
        for slot in vectors:
            if slot.squeezed == (rows,):
                first = _alike(name, slot.name)
                last = min(_alike(name[:first:-1], slot.name[:first:-1]), len(name) - first, len(slot.name) - first)
                change = name[first : len(name) - last], slot.name[first : len(slot.name) - last]
                pairs[change].setdefault(name, slot.name)
    best = max(pairs.values(), key=len, default={})
    return best if len(best) > 1 and len(set(best.values())) == len(best) else {}


def _alike(first: str, second: str) -> int:
    """How many characters two names have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _head_norms(form: Form, slots: Sequence[Slot], rest: Sequence[Slot], hidden: int) -> tuple[Slot, ...]:
    """The slots of the norms of q and k, if there are two that fit; of k alone if that of q looks like a layer's norm."""
    pairs = [slot for slot in slots if is_matrix(slot) and hidden not in slot.squeezed]
    per_head = [slot for slot in pairs if np.prod(slot.squeezed) in (form.q, form.kv)]
    if len(per_head) == 2:
        return tuple(sorted(per_head, key=lambda slot: -int(np.prod(slot.squeezed))))
    for size in dict.fromkeys(slot.squeezed for slot in rest):
        alike = [slot for slot in rest if slot.squeezed == size]
        if len(alike) == 2 and size[0] != hidden and not form.q % size[0] and not form.kv % size[0]:
            return tuple(sorted(alike, key=lambda slot: not hinted("attn.q", slot.name.replace("_norm", ""))))
    whole = [next((slot for slot in rest if slot.squeezed == (rows,)), None) for rows in (form.q, form.kv)]
    if form.q != form.kv and form.kv != hidden and whole[1] and (whole[0] or form.q == hidden):
        return tuple(slot for slot in whole if slot and (slot != whole[0] or form.q != hidden))
    return ()


def _norms(
    vectors: Sequence[Slot], around: Sequence[Slot], checkpoint: Checkpoint, layers: Sequence[int]
) -> tuple[NormSlots, ...]:
    """The norms that vectors of the hidden size belong to: by module, or where names show none, by their values.

    `around` are all tensors beside them.
    """
    modules: dict[str, list[Slot]] = defaultdict(list)
    for slot in vectors:
        modules[slot.module].append(slot)
    if all(len(slots) <= 2 for slots in modules.values()):
        shared = {slot.module for slot in around if len(slot.squeezed) > 1}
        return tuple(
            norm for name, slots in modules.items() for norm in _norm(slots, checkpoint, layers, name in shared)
        )
    weights = [slot for slot in vectors if mean(checkpoint, slot, layers) > NORM_MEAN]
    others = [slot for slot in vectors if slot not in weights]
    if len(weights) != len(others):
        weights, others = list(vectors), []
    named = _renamed([(slot.name, slot.squeezed[0]) for slot in weights], others)
    if others and len(named) == len(weights):
        return tuple(NormSlots(slot.name, named[slot.name]) for slot in weights)
    return tuple(NormSlots(slot.name, others[n].name if others else None) for n, slot in enumerate(weights))


def _norm(slots: Sequence[Slot], checkpoint: Checkpoint, layers: Sequence[int], shared: bool) -> list[NormSlots]:
    """A norm with one vector, its weights, or with two, of which the one with the larger mean is the weights.

    Two vectors of positive numbers are those of two norms, which a layer has as parameters of its own; so are two of numbers near
    0 in a module that is `shared` with matrices.
    """
    first, *rest = sorted(slots, key=lambda slot: -mean(checkpoint, slot, layers))
    less = shared and mean(checkpoint, first, layers) < NORM_MEAN  # weights stored minus 1, of two norms
    if rest and not less and positive(checkpoint, rest[0], layers) < WEIGHTS_POSITIVE:
        return [NormSlots(first.name, rest[0].name)]
    return [NormSlots(slot.name) for slot in slots]


def mean(checkpoint: Checkpoint, slot: Slot, layers: Sequence[int]) -> float:
    """The mean of a tensor over layers, of which single ones may be unlike the others."""
    return float(np.mean([array.mean() for array in _arrays(checkpoint, slot, layers)]))


def positive(checkpoint: Checkpoint, slot: Slot, layers: Sequence[int]) -> float:
    """The share of positive numbers in a tensor over layers."""
    return float(np.mean([(array > 0).mean() for array in _arrays(checkpoint, slot, layers)]))


def _arrays(checkpoint: Checkpoint, slot: Slot, layers: Sequence[int]) -> list[NDArray[np.float32]]:
    return [checkpoint.tensors[layer_name(slot.name, layer)].array() for layer in layers]


def _outside(structure: Structure, checkpoint: Checkpoint) -> Outside:
    """The places of the tensors outside the layers."""
    shape = (structure.rows, structure.hidden)
    matrices = [(s.name, s.shape != shape) for s in structure.outside if s.shape in (shape, shape[::-1])]
    matrices.sort(key=lambda item: not any(word in item[0].lower() for word in FIRST_WORDS))
    copies = tuple(
        name
        for n, (name, _) in enumerate(matrices)
        if any(same_values(checkpoint.tensors[name], checkpoint.tensors[other]) for other, _ in matrices[:n])
    )
    kept = tuple(item for item in matrices if item[0] not in copies)
    rest = [slot for slot in structure.outside if slot.shape not in (shape, shape[::-1])]
    tables = [s for s in rest if len(s.squeezed) == 2 and s.squeezed[1] == structure.hidden]
    vectors = [slot for slot in rest if slot.squeezed == (structure.hidden,)]
    bias = next((slot for slot in rest if slot.squeezed == (structure.rows,)), None)
    placed = [*tables[:1], *vectors, *([bias] if bias else [])]
    return Outside(
        matrices=kept,
        norms=_norms(vectors, structure.outside, checkpoint, (0,)),
        positions=tables[0].name if tables else None,
        output_bias=bias.name if bias else None,
        copies=copies,
        left=tuple(slot.name for slot in rest if slot not in placed),
    )


def names(sources: Iterable[Source]) -> list[str]:
    """The tensors of sources."""
    return [source.tensor for source in sources]


__all__ = ["Assignment", "Group", "NormSlots", "Outside", "assign", "mean", "names", "replace"]
