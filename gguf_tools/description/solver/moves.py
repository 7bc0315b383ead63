"""The alternatives of each choice that one token or a few tokens show, as changes of `Choices`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Literal, get_args

from gguf_tools.description.assignment import Assignment
from gguf_tools.description.choices import HEAD_FIELDS, NORM_FIELDS, Blocks, Choices, RouterBias
from gguf_tools.description.forms import DELTA, QKV, SSM, Form, head_dims, router_of
from gguf_tools.description.mixers import per_head_roles
from gguf_tools.model.feed_forward import MLP, XIELU, Activation

Move = tuple[str, Choices]
"""(what is chosen, the choices with another answer to it)."""
BLOCKS = (
    {"placement", "roles"},
    {"placement", "activation"},
    {"activation", "roles"},
    {"activation", "gate_up"},
    {"scale", "normed"},
    {"top_k", "score", "normalised"},
    {"head_dim", "qkv", "roles"},
    {"placement", "offset"},
    {"scale", "placement"},
    {"centred", "offset"},
    {"clamped", "gate_up"},
    {"groups", "norm_first", "per_head"},
    {"groups", "ssm_order"},
    {"per_head", "ssm_order"},
    {"clamped", "router_bias"},
    {"key_heads", "delta_order", "roles"},
)
"""Choices that are changed together where changing one does not help: pairs within a set."""
MULTIPLIED = ("attn.o", *SSM, "ssm.o", "ffn.gate", "ffn.down")
"""Roles that models with a state space beside attention multiply by numbers; those of v and of up act as those of o and down."""
SCORES: tuple[Literal["softmax", "sigmoid"], ...] = ("softmax", "sigmoid")
MOST_EXPERTS = 8
MOST_FORMS = 8
"""Forms of a layer that the search begins with."""
ACTIVATIONS: tuple[Activation, ...] = tuple(
    name for name in get_args(Activation) if MLP(1, name).roles(1).keys() == MLP(1, "relu").roles(1).keys()
)
"""Activations that have no weights of their own."""
FACTORS = (0.25, 0.5, 0.7, 1.4, 2.0, 4.0)
"""By how much the scale of the embeddings is changed where none of the usual ones fits."""
HEADWISE: tuple[Blocks, ...] = ("heads", "whole")
ROWWISE: tuple[Blocks, ...] = ("whole", "rows")
"""Ways in which the rows of roles that share a matrix are grouped."""


def coupled(first: str, second: str) -> bool:
    """Whether two choices are in a block together."""
    return any(first in block and second in block for block in BLOCKS)


def placements(count: int, heads: tuple[str, ...], needed: bool, parallel: bool) -> list[tuple[str, ...]]:
    """The fields that `count` norms can be in, in every order; those in `heads` all or none, and all if `needed`."""
    if not count:
        return [("mixer_norm", "ffn_norm"), NORM_FIELDS[2:], NORM_FIELDS, ("mixer_norm",), ()]
    fields = [*NORM_FIELDS, *(heads if count > 2 or needed else ())]
    allowed = {len(heads)} if needed else {0, len(heads)}
    chosen = [set_ for set_ in combinations(fields, count) if len(set(heads) & set(set_)) in allowed]
    if parallel:
        chosen = [set_ for set_ in chosen if set_[0] == "mixer_norm"]
    return [order for set_ in chosen for order in permutations(set_)]


def starts(assignment: Assignment) -> list[Choices]:
    """The first guesses, one for each form: what most decoders do, and what names hint at."""
    first, *others = assignment.groups
    out = []
    for form in first.forms[:MOST_FORMS]:
        alike = [
            next((other for other in group.forms if kind(other) == kind(form)), group.forms[0]) for group in others
        ]
        out.append(start(assignment, (form, *alike)))
    return out


def kind(form: Form) -> Hashable:
    """What two forms have in common that differ only in which tensor of a shape is which, or in widths."""
    return form.mixer, form.ffn, tuple(sorted(source.roles for source in form.sources))


def start(assignment: Assignment, forms: tuple[Form, ...]) -> Choices:
    """What most decoders with these forms do."""
    attention = next((form for form in forms if form.mixer == "Attention"), None)
    linear = next((form for form in forms if form.mixer == "DeltaNet"), None)
    own = {role for form in forms if form.beside for source in form.sources for role in source.roles}
    counts = dict.fromkeys(len(group.norms) for group in assignment.groups)
    experts = max((form.experts for form in forms), default=0)
    sizes = _known_dim(assignment, forms) or (head_dims(attention) if attention else [64])
    pairs = [pair for pair in zip(assignment.groups, forms, strict=True) if pair[0].per_head]
    sizes = [size for size in sizes if all(per_head_roles(group, form, size) for group, form in pairs)] or sizes
    return Choices(
        forms=forms,
        placements=tuple((count, default_placement(count, *head_fields(assignment))) for count in counts),
        head_dim=sizes[0],
        qk_norm="before" if any(group.head_norms for group in assignment.groups) else "none",
        activation="silu" if any(form.ffn == "GatedMLP" for form in forms) else "gelu_tanh",
        rotated=assignment.outside.positions is None and attention is not None,
        centred=any(norm.bias for group in assignment.groups for norm in group.norms),
        output=1 if len(assignment.outside.matrices) > 1 else -1,
        final=len(assignment.outside.norms) - 1,
        top_k=min(2, experts) or 1,
        parallel=counts == {1: None} and all(form.ffn for form in forms),
        key_heads=key_heads(linear)[0] if linear else 1,
        delta_blocks="key_heads" if linear and any(set(s.roles) == set(DELTA[:4]) for s in linear.sources) else "whole",
        multipliers=tuple((role, 1.0) for role in MULTIPLIED if role in own),
    )


def head_fields(assignment: Assignment) -> tuple[tuple[str, ...], bool]:
    """The norms of q and k that may be among those of the layer, being as wide, and whether they must be."""
    hidden = assignment.structure.hidden
    for group in assignment.groups:
        form = group.forms[0]
        if len(group.head_norms) == 1:
            return HEAD_FIELDS[:1], True
        if form.q == form.kv == hidden and not group.head_norms:
            return HEAD_FIELDS, False
    return (), False


def default_placement(count: int, heads: tuple[str, ...] = (), needed: bool = False) -> tuple[str, ...]:
    """The fields of a layer's norms in the order in which most decoders have them."""
    if needed:
        return (*heads, *default_placement(count - len(heads)))
    usual = {0: ("mixer_norm", "ffn_norm"), 1: ("mixer_norm",), 2: ("mixer_norm", "ffn_norm")}
    usual |= {3: ("mixer_norm", "ffn_norm", "ffn_post_norm")}
    usual |= {4: ("mixer_norm", "mixer_post_norm", "ffn_norm", "ffn_post_norm")}
    return usual.get(count, (*NORM_FIELDS, *HEAD_FIELDS)[:count])


def _known_dim(assignment: Assignment, forms: tuple[Form, ...]) -> list[int]:
    """The size of the heads where norms of q and k show it."""
    for group in assignment.groups:
        sizes = {slot.squeezed[-1] for slot in group.head_norms}
        if len(group.head_norms) == 2 and len(sizes) == 1:
            (size,) = sizes
            return [size] if size != forms[assignment.groups.index(group)].q else []
    return []


def one_token(assignment: Assignment, choices: Choices) -> Iterator[Move]:
    """Every choice that a prompt of one token shows, changed alone."""
    yield from form_moves(assignment, choices)
    yield from exchanges(choices, assignment.structure.hidden, unseen=({"attn.q", "attn.k"},))
    heads, needed = head_fields(assignment)
    for at, (count, placed) in enumerate(choices.placements):
        for parallel in (False, True) if any(form.ffn for form in choices.forms) else (False,):
            for other in placements(count, heads, needed, parallel):
                if (other, parallel) != (placed, choices.parallel):
                    changed = (*choices.placements[:at], (count, other), *choices.placements[at + 1 :])
                    yield "placement", replace(choices, placements=changed, parallel=parallel)
    if any(form.ffn in ("GatedMLP", "MLP") for form in choices.forms):
        yield from (("activation", replace(choices, activation=other)) for other in ACTIVATIONS)
    yield from _fused(choices)
    yield from (("scale", replace(choices, embedding_scale=scale)) for scale in embedding_scales(assignment))
    if not _has_embedding_norm(assignment, choices):
        yield "normed", replace(choices, embedding_normed=not choices.embedding_normed)
    yield from (("offset", replace(choices, offset=offset, head_offset=offset)) for offset in (0.0, 1.0))
    yield "centred", replace(choices, centred=not choices.centred)
    if any(form.ffn == "MoE" for form in choices.forms):
        yield from _routing(assignment, choices)
    yield from _small(assignment, choices)
    yield from _state_spaces(assignment, choices)
    yield from _linear(choices)
    attention = next((form for form in choices.forms if form.mixer == "Attention"), None)
    if attention and attention.kv != attention.q and not _known_dim(assignment, choices.forms):
        yield from (("head_dim", replace(choices, head_dim=size)) for size in head_dims(attention))


def _state_spaces(assignment: Assignment, choices: Choices) -> Iterator[Move]:
    """Other answers to how a state space computes, but for its decay, which one token does not show."""
    form = next((form for form in choices.forms if form.spaced), None)
    if form is None:
        return
    if any(group.inner_norm for group in assignment.groups):
        yield from (("inner_offset", replace(choices, inner_offset=offset)) for offset in (0.0, 1.0))
    groups = (n for n in (1, 2, 4, 8, 16) if form.heads % n == 0 and form.state % n == 0)
    yield from (("groups", replace(choices, ssm_groups=n)) for n in groups)
    yield "norm_first", replace(choices, norm_first=not choices.norm_first)
    for first, second in combinations(range(len(choices.ssm_order)), 2):
        order = list(choices.ssm_order)
        order[first], order[second] = order[second], order[first]
        yield "ssm_order", replace(choices, ssm_order=tuple(order))


def _linear(choices: Choices) -> Iterator[Move]:
    """Other answers to how linear attention computes, but for its decay, which one token does not show."""
    form = next((form for form in choices.forms if form.mixer == "DeltaNet"), None)
    if form is None:
        return
    yield from (("inner_offset", replace(choices, inner_offset=offset)) for offset in (0.0, 1.0))
    counts = key_heads(form)
    yield from (("key_heads", replace(choices, key_heads=count)) for count in counts)
    fused = [set(source.roles) for source in form.sources if len(source.roles) > 1 and set(source.roles) <= set(DELTA)]
    if not fused:
        return
    for first, second in combinations(range(len(DELTA)), 2):
        order = list(choices.delta_order)
        order[first], order[second] = order[second], order[first]
        if any({order[first], order[second]} <= roles for roles in fused):
            yield "delta_order", replace(choices, delta_order=tuple(order))
    other: Literal["whole", "key_heads"] = "whole" if choices.delta_blocks == "key_heads" else "key_heads"
    yield from (("delta_order", replace(choices, delta_blocks=other, key_heads=count)) for count in counts)


def key_heads(form: Form) -> list[int]:
    """Numbers of key heads that linear attention may have, those first whose heads are as wide as those of the values."""
    counts = [count for count in range(1, form.heads + 1) if form.heads % count == 0 and form.state % count == 0]
    return sorted(counts, key=lambda count: (form.state // count != form.inner // form.heads, -count))


def joint(choices: Choices) -> Iterator[Choices]:
    """Every combination of how experts are selected and weighted, of which single changes may not help."""
    experts = max(form.experts for form in choices.forms)
    counts = range(1, min(experts, MOST_EXPERTS) + 1)
    for count, score, normalised, bias in product(counts, SCORES, (True, False), get_args(RouterBias)):
        yield replace(choices, top_k=count, score=score, normalised=normalised, router_bias=bias)


def _small(assignment: Assignment, choices: Choices) -> Iterator[Move]:
    """Other roles of the tensors of one number, and of the vectors with a number for each head."""
    if any(len(group.scalars) == len(XIELU) for group in assignment.groups):
        yield from (("scalars", replace(choices, scalars=order)) for order in permutations(XIELU))
    pairs = zip(assignment.groups, choices.forms, strict=True)
    ways = max(len(per_head_roles(group, form, choices.head_dim)) if group.per_head else 0 for group, form in pairs)
    yield from (("per_head", replace(choices, per_head=n)) for n in range(ways))


def _has_embedding_norm(assignment: Assignment, choices: Choices) -> bool:
    return len(assignment.outside.norms) > (1 if choices.final >= 0 else 0)


def embedding_scales(assignment: Assignment) -> tuple[float, ...]:
    """Usual factors on the embeddings."""
    root = float(assignment.structure.hidden**0.5)
    return (1.0, root, 1 / root)


def scalings(choices: Choices) -> Iterator[Move]:
    """Other factors on the embeddings, near that chosen: they set how much the layers matter beside the embedding."""
    for factor in FACTORS:
        yield "factor", replace(choices, embedding_scale=choices.embedding_scale * factor)


def form_moves(assignment: Assignment, choices: Choices) -> Iterator[Move]:
    """Another form of one group of layers."""
    for n, group in enumerate(assignment.groups):
        for form in group.forms:
            if form != choices.forms[n]:
                yield "form", replace(choices, forms=(*choices.forms[:n], form, *choices.forms[n + 1 :]))


def exchanges(choices: Choices, hidden: int, unseen: tuple[set[str], ...] = ()) -> Iterator[Move]:
    """Two matrices of the same shape exchanged, in every group of layers that has both; not those that are `unseen`."""
    seen: set[frozenset[str]] = set()
    for form in choices.forms:
        for first, second in combinations([source for source in form.sources if len(source.roles) == 1], 2):
            pair = frozenset((first.roles[0], second.roles[0]))
            shapes = [_shapes(form, hidden).get(role) for role in (first.roles[0], second.roles[0])]
            if set(pair) in unseen or pair in seen or None in shapes or shapes[0] != shapes[1]:
                continue
            seen.add(pair)
            yield "roles", replace(choices, forms=tuple(exchanged(form, *pair) for form in choices.forms))


def _shapes(form: Form, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the matrices that may be exchanged."""
    shapes: dict[str, tuple[int, ...]] = {
        "attn.q": (form.q, hidden), "attn.k": (form.kv, hidden), "attn.v": (form.kv, hidden), "attn.gate": (form.q, hidden),
        "attn.o": (hidden, form.q), "delta.q": (form.state, hidden), "delta.k": (form.state, hidden),
        "delta.v": (form.inner, hidden), "delta.z": (form.inner, hidden), "delta.o": (hidden, form.inner),
        "delta.beta": (form.heads, hidden), "delta.alpha": (form.heads, hidden), "moe.router": (form.experts, hidden),
        "ffn.gate": (form.width, hidden), "ffn.up": (form.width, hidden),
        "ffn.down": (hidden, form.width), "shared.gate": (form.shared, hidden), "shared.up": (form.shared, hidden),
        "shared.down": (hidden, form.shared), "moe.gate": (form.experts, form.width, hidden),
        "moe.up": (form.experts, form.width, hidden), "moe.down": (form.experts, hidden, form.width),
    }  # fmt: skip
    return shapes


def exchanged(form: Form, first: str, second: str) -> Form:
    """The form with the tensors of two roles exchanged, if it has both."""
    by_role = {source.roles[0]: source for source in form.sources if len(source.roles) == 1}
    if first not in by_role or second not in by_role:
        return form
    swap = {first: by_role[second], second: by_role[first]}
    sources = tuple(
        replace(source, tensor=swap[source.roles[0]].tensor, transposed=swap[source.roles[0]].transposed)
        if len(source.roles) == 1 and source.roles[0] in swap
        else source
        for source in form.sources
    )
    return replace(form, sources=sources)


def _fused(choices: Choices) -> Iterator[Move]:
    """Other orders of roles that share a matrix."""
    roles = {source.roles for form in choices.forms for source in form.sources if len(source.roles) > 1}
    if any(QKV - {"attn.q"} <= set(each) for each in roles):
        sizes = _fused_sizes(choices)
        for order in permutations(("attn.q", "attn.k", "attn.v")):
            yield "qkv", replace(choices, qkv=(order, "whole"))
            yield from (("qkv", replace(choices, qkv=(order, "kv_heads"), head_dim=size)) for size in sizes)
    if any("attn.gate" in each for each in roles):
        for order in permutations(("attn.q", "attn.gate")):
            for blocks in HEADWISE:
                yield "q_gate", replace(choices, q_gate=(order, blocks))
    if any(set(each) & {"ffn.gate", "moe.gate", "shared.gate"} for each in roles):
        for order in permutations(("gate", "up")):
            for blocks in ROWWISE:
                yield "gate_up", replace(choices, gate_up=(order, blocks))


def _fused_sizes(choices: Choices) -> list[int]:
    """Sizes of heads that rows grouped by head may have: all, where there are as many key heads as query heads."""
    form = next((form for form in choices.forms if form.mixer == "Attention"), None)
    return head_dims(form) if form and form.q == form.kv else [choices.head_dim]


def _routing(assignment: Assignment, choices: Choices) -> Iterator[Move]:
    """Other answers to how experts are selected and weighted."""
    experts = max(form.experts for form in choices.forms)
    yield from (("top_k", replace(choices, top_k=count)) for count in range(1, min(experts, MOST_EXPERTS) + 1))
    yield "score", replace(choices, score="sigmoid" if choices.score == "softmax" else "softmax")
    yield "normalised", replace(choices, normalised=not choices.normalised)
    yield "clamped", replace(choices, clamped=not choices.clamped)
    if any(
        group.router_bias or group.biases.get(router_of(form))
        for group, form in zip(assignment.groups, choices.forms, strict=True)
    ):
        yield from (("router_bias", replace(choices, router_bias=use)) for use in get_args(RouterBias))
