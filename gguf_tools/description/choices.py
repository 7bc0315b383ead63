"""What shapes cannot tell, and the decoder that follows from an answer to all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Literal

from gguf_tools.description.assignment import Assignment, Group, NormSlots
from gguf_tools.description.forms import SSM, Form
from gguf_tools.description.schema import Source
from gguf_tools.model.feed_forward import MLP, XIELU, Activation, ClampedSwiGLU, GatedMLP, MoE, Router, SharedExpert
from gguf_tools.model.norms import Norm
from gguf_tools.model.rope import Rope, Scaling
from gguf_tools.model.spec import Attention, FeedForward, LayerSpec, Mixer, ModelSpec
from gguf_tools.model.state_space import Mamba2, ShortConv

NORM_FIELDS = ("mixer_norm", "ffn_norm", "mixer_post_norm", "ffn_post_norm")
CLAMPED = ClampedSwiGLU(slope=1.702, limit=7.0)
"""The clamped gate of gpt-oss, with its numbers."""
HEAD_FIELDS = ("attn.q_norm", "attn.k_norm")
Blocks = Literal["whole", "kv_heads", "heads", "rows"]
"""How the rows of roles that share a matrix are grouped: not at all, by key/value head, by head, or one by one."""
RouterBias = Literal["score", "selection", "logit"]
"""What a router's bias is added to: the scores or the logits, for the selection alone, or the logits themselves."""
Where = Literal["none", "before", "after"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One answer to everything that shapes leave open. The fields are those of the spec, unless said here.

    `forms` has the form of each group of layers, its sources perhaps exchanged. `placements` has, for each number of norms in a
    layer, the fields that they are in, in their order; for layers without norm weights, the fields that have a norm.
    `qkv` and `gate_up` are the order of roles that share a matrix, and their `Blocks`. `qk_norm` says where q and k are
    normed, `heads_exchanged` that the second of the two norms is that of q. `windowed` and `unrotated` are the layers with the
    window and without rope, `second` those whose rope has a base and a scaling of its own. `output` is the number of the output
    matrix, or -1 for the embedding; `final` the number of the norm before it, or -1 for one without weights. `embedding_normed`
    is a norm of the embeddings. `scalars` are the roles of a layer's tensors of one number, in their order, and `per_head` is the
    number of the roles that its vectors with a number for each head have, of `per_head_roles`. With `clamped` the experts have
    the gate `CLAMPED`.
    """

    forms: tuple[Form, ...]
    placements: tuple[tuple[int, tuple[str, ...]], ...]
    parallel: bool = False
    centred: bool = False
    offset: float = 0.0
    eps: float = 1e-5
    activation: Activation = "silu"
    head_dim: int = 64
    qkv: tuple[tuple[str, ...], Blocks] = (("attn.q", "attn.k", "attn.v"), "whole")
    q_gate: tuple[tuple[str, ...], Blocks] = (("attn.q", "attn.gate"), "heads")
    gate_up: tuple[tuple[str, ...], Blocks] = (("gate", "up"), "whole")
    qk_norm: Where = "none"
    head_offset: float = 0.0
    heads_exchanged: bool = False
    scale: float | None = None
    softcap: float | None = None
    alibi: float | None = None
    per_head: int = 0
    scalars: tuple[str, ...] = XIELU
    theta: float = 10000.0
    dims: int | None = None
    rotated: bool = True
    pairs: Literal["half", "interleaved"] = "half"
    backwards: bool = False
    scaling: Scaling | None = None
    window: int | None = None
    windowed: frozenset[int] | None = None
    unrotated: frozenset[int] = frozenset()
    second: frozenset[int] = frozenset()
    second_theta: float = 10000.0
    second_scaling: Scaling | None = None
    residual_scale: float = 1.0
    embedding_scale: float = 1.0
    embedding_normed: bool = False
    output: int = -1
    final: int = 0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    top_k: int = 2
    normalised: bool = True
    score: Literal["softmax", "sigmoid"] = "softmax"
    router_scale: float = 1.0
    router_bias: RouterBias = "score"
    clamped: bool = False
    ssm_order: tuple[str, ...] = SSM
    ssm_groups: int = 1
    norm_first: bool = False
    decay: Literal["log", "rate"] = "log"


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A spec, and the sources of the roles outside the layers and within each."""

    spec: ModelSpec
    outside: tuple[Source, ...]
    layers: tuple[tuple[Source, ...], ...] = field(default=())

    @property
    def inside(self) -> tuple[Source, ...]:
        """The sources of all layers, each once."""
        return tuple(dict.fromkeys(source for layer in self.layers for source in layer))


def decoder(assignment: Assignment, choices: Choices, context: int) -> Decoder:
    """The decoder that the choices make of the tensors; `context` is its number of positions."""
    structure, outside = assignment.structure, assignment.outside
    specs: dict[int, tuple[LayerSpec, tuple[Source, ...]]] = {}
    for group, form in zip(assignment.groups, choices.forms, strict=True):
        for n in group.layers:
            specs[n] = _layer(group, form, choices, n)
    last = outside.norms[choices.final] if choices.final >= 0 else NormSlots()
    sources = [Source(name, (role,), transposed=turned) for role, (name, turned) in _matrices(assignment, choices)]
    sources += last.sources("output_norm")
    first = [norm for n, norm in enumerate(outside.norms) if n != choices.final]
    sources += first[0].sources("embedding_norm") if first else ()
    sources += [
        Source(name, (role,))
        for name, role in ((outside.positions, "positions"), (outside.output_bias, "output_bias"))
        if name
    ]
    positions = 0 if outside.positions is None else _rows(assignment, outside.positions)
    embedding_norm = _norm(choices, first[0]) if first else None
    if embedding_norm is None and choices.embedding_normed:
        embedding_norm = _norm(choices, NormSlots())
    spec = ModelSpec(
        vocab_size=structure.vocabulary,
        hidden=structure.hidden,
        context_length=min(context, positions) if positions else context,
        layers=tuple(specs[n][0] for n in range(structure.count)),
        output_norm=_norm(choices, last),
        tied=choices.output < 0,
        embedding_scale=choices.embedding_scale,
        logit_scale=choices.logit_scale,
        positions=positions,
        embedding_norm=embedding_norm,
        output_bias=outside.output_bias is not None,
        logit_softcap=choices.logit_softcap,
    )
    return Decoder(spec=spec, outside=tuple(sources), layers=tuple(specs[n][1] for n in range(structure.count)))


def _rows(assignment: Assignment, name: str) -> int:
    return next(slot.squeezed[0] for slot in assignment.structure.outside if slot.name == name)


def _matrices(assignment: Assignment, choices: Choices) -> list[tuple[str, tuple[str, bool]]]:
    """The embedding, and the output projection where it is another matrix."""
    matrices = assignment.outside.matrices
    if choices.output < 0:
        return [("embedding", matrices[0])]
    first = next(n for n in range(len(matrices)) if n != choices.output)
    return [("embedding", matrices[first]), ("output", matrices[choices.output])]


def _norm(choices: Choices, slots: NormSlots, offset: float | None = None) -> Norm:
    """A norm with these weights; one without weights has no offset."""
    return Norm(
        eps=choices.eps,
        offset=(choices.offset if offset is None else offset) if slots.weight else 0.0,
        centred=choices.centred,
        weighted=slots.weight is not None,
        bias=slots.bias is not None,
    )


def _layer(group: Group, form: Form, choices: Choices, n: int) -> tuple[LayerSpec, tuple[Source, ...]]:
    """The spec of layer `n` and the sources of its roles."""
    sources = [_ordered(source, form, choices) for source in form.sources]
    router = "moe.logit_bias" if choices.router_bias == "logit" else "moe.router_bias"
    biases = [(group.biases[source.tensor], source) for source in sources if source.tensor in group.biases]
    sources += [
        Source(name, tuple(router if role == "moe.router" else f"{role}_bias" for role in source.roles), source.blocks)
        for name, source in biases
    ]
    norms: dict[str, Norm] = {}
    placement = dict(choices.placements)[len(group.norms)]
    slots = group.norms if group.norms else tuple(NormSlots() for _ in placement)
    for name, own in zip(placement, slots, strict=True):
        norms[name] = _norm(choices, own)
        sources += own.sources(name)
    mixer, more = _mixer(group, form, choices, n, norms, {role for source in sources for role in source.roles})
    sources += more
    if group.router_bias:
        sources.append(Source(group.router_bias, (router,)))
    sources += [Source(name, (f"ffn.{role}",)) for name, role in zip(group.scalars, choices.scalars, strict=False)]
    if group.sigmoid:
        sources.append(Source(group.sigmoid, ("shared.sigmoid",)))
    by_role = {role: source for source in sources for role in source.roles}
    spec = LayerSpec(
        mixer=mixer,
        feed_forward=_feed_forward(form, choices, by_role, curved=len(group.scalars) == len(XIELU)),
        mixer_norm=norms.get("mixer_norm"),
        ffn_norm=norms.get("ffn_norm"),
        mixer_post_norm=norms.get("mixer_post_norm"),
        ffn_post_norm=norms.get("ffn_post_norm"),
        parallel=choices.parallel,
        residual_scale=choices.residual_scale,
    )
    return spec, tuple(sources)


def _ordered(source: Source, form: Form, choices: Choices) -> Source:
    """The source with the roles that share a matrix in the order chosen, and the number of blocks."""
    roles: Sequence[str] = source.roles
    if len(roles) == 1:
        return source
    prefix = roles[0].partition(".")[0]
    if prefix == "ssm":
        return Source(source.tensor, choices.ssm_order, 1, source.transposed)
    if len(roles) == 3:
        order, blocks = choices.qkv
    elif set(roles) == {"attn.k", "attn.v"}:
        order, blocks = tuple(role for role in choices.qkv[0] if role != "attn.q"), choices.qkv[1]
    elif "attn.gate" in roles:
        order, blocks = choices.q_gate
    else:
        order, blocks = tuple(f"{prefix}.{name}" for name in choices.gate_up[0]), choices.gate_up[1]
    counts: Mapping[str, int] = {
        "whole": 1,
        "kv_heads": max(form.kv // choices.head_dim, 1),
        "heads": max(form.q // choices.head_dim, 1),
        "rows": form.width,
    }
    return Source(source.tensor, tuple(order), counts[blocks], source.transposed)


def _mixer(
    group: Group, form: Form, choices: Choices, n: int, norms: Mapping[str, Norm], roles: set[str]
) -> tuple[Mixer, list[Source]]:
    """The mixer of layer `n`, and the sources of its q and k norms."""
    if form.mixer == "ShortConv":
        return ShortConv(form.kernel, "conv.in_bias" in roles), []
    if form.mixer == "Mamba2":
        return _state_space(group, form, choices, roles)
    dim = choices.head_dim
    head_norms = group.head_norms[::-1] if choices.heads_exchanged else group.head_norms
    roles_of_norms = HEAD_FIELDS[-len(head_norms) :] if head_norms else ()  # a single one is that of k
    sources = [Source(slot.name, (role,)) for slot, role in zip(head_norms, roles_of_norms, strict=True)]
    ways = per_head_roles(group, form, dim) if group.per_head else []
    vectors = ways[choices.per_head % len(ways)] if ways else ()
    sources += [Source(slot.name, (role,)) for slot, role in zip(group.per_head, vectors, strict=False)]
    sizes = [slot.squeezed for slot in head_norms]
    whole = (
        HEAD_FIELDS[0] in norms or len(sizes) == 1 or (sizes == [(form.q,), (form.kv,)] and sizes != [(dim,), (dim,)])
    )
    weight = NormSlots("given") if group.head_norms or HEAD_FIELDS[0] in norms else NormSlots()
    normed = bool(weight.weight) or choices.qk_norm != "none"
    second = n in choices.second
    theta, scaling = (choices.second_theta, choices.second_scaling) if second else (choices.theta, choices.scaling)
    rope = Rope(theta, min(choices.dims or dim, dim), choices.pairs, scaling, choices.backwards)
    return Attention(
        heads=form.q // dim,
        kv_heads=form.kv // dim,
        head_dim=dim,
        rope=rope if choices.rotated and n not in choices.unrotated else None,
        bias=frozenset(name for name in "qkvo" if f"attn.{name}_bias" in roles),
        qk_norm=_norm(choices, weight, choices.head_offset) if normed else None,
        gated="attn.gate" in roles,
        norm_gain="attn.q_gain" in vectors,
        value_scale="attn.v_scale" in vectors,
        sinks="attn.sinks" in vectors,
        norm_per_head=bool(group.head_norms and len(group.head_norms[0].squeezed) == 2),
        norm_whole=whole,
        norm_after_rope=normed and choices.qk_norm == "after",
        alibi=choices.alibi,
        window=choices.window if choices.windowed is None or n in choices.windowed else None,
        scale=choices.scale,
        softcap=choices.softcap,
    ), sources


def _state_space(group: Group, form: Form, choices: Choices, roles: set[str]) -> tuple[Mixer, list[Source]]:
    """The state space of a layer, and the sources of its vectors."""
    ways = per_head_roles(group, form, choices.head_dim)
    vectors = ways[choices.per_head % len(ways)] if ways else ()
    sources = [Source(slot.name, (role,)) for slot, role in zip(group.per_head, vectors, strict=False)]
    norm = NormSlots(group.inner_norm) if group.inner_norm else None
    sources += norm.sources("ssm.norm") if norm else ()
    biased = [name for name, role in (("in", "ssm.z_bias"), ("o", "ssm.o_bias")) if role in roles]
    return Mamba2(
        heads=form.heads,
        head_dim=form.inner // form.heads,
        groups=choices.ssm_groups,
        state=form.state // choices.ssm_groups,
        kernel=form.kernel,
        norm=_norm(choices, norm) if norm else None,
        norm_first=choices.norm_first,
        decay=choices.decay,
        conv_bias="ssm.conv_bias" in roles,
        bias=frozenset(biased),
    ), sources


def per_head_roles(group: Group, form: Form, dim: int) -> list[tuple[str, ...]]:
    """The roles that a group's vectors with a number for each head may have, in every way that their sizes allow."""
    if form.mixer == "Mamba2":
        return list(permutations(("ssm.decay", "ssm.skip", "ssm.dt_bias"))) if len(group.per_head) == 3 else []
    heads, kv_heads = form.q // dim, form.kv // dim
    sizes = {"sinks": heads, "q_gain": heads, "k_gain": kv_heads, "v_scale": kv_heads}
    found = []
    for roles in permutations(sizes, len(group.per_head)):
        fits = all(slot.squeezed == (sizes[role],) for slot, role in zip(group.per_head, roles, strict=True))
        if fits and ("q_gain" in roles) == ("k_gain" in roles) and ("q_gain" not in roles or group.head_norms):
            found.append(tuple(f"attn.{role}" for role in roles))
    return found


def _feed_forward(form: Form, choices: Choices, sources: Mapping[str, Source], *, curved: bool) -> FeedForward | None:
    """The feed-forward of a form; with `curved` its activation is the one that has numbers of its own, xIELU."""
    if form.ffn is None:
        return None
    biases = frozenset(name for name in ("gate", "up", "down") if f"ffn.{name}_bias" in sources)
    if form.ffn == "GatedMLP":
        return GatedMLP(width=form.width, bias=biases, activation=choices.activation)
    if form.ffn == "MLP":
        return MLP(width=form.width, bias=biases, activation="xielu" if curved else choices.activation)
    biased = "moe.router_bias" in sources
    router = Router(
        top_k=choices.top_k,
        normalised=choices.normalised,
        scale=choices.router_scale,
        score=choices.score,
        score_bias=biased and choices.router_bias == "score",
        selection_bias=biased and choices.router_bias == "selection",
        logit_bias="moe.logit_bias" in sources,
    )
    shared = SharedExpert(form.shared, "shared.sigmoid" in sources) if "shared.down" in sources else None
    return MoE(
        experts=form.experts,
        width=form.width,
        router=router,
        shared=shared,
        bias=frozenset(name for name in ("gate", "up", "down") if f"moe.{name}_bias" in sources),
        clamped=CLAMPED if choices.clamped else None,
    )
