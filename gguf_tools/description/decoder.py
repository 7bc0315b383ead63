"""The decoder that the choices make of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gguf_tools.description.assignment import Assignment, Group, NormSlots
from gguf_tools.description.choices import CLAMPED, Choices
from gguf_tools.description.forms import QKV, Form
from gguf_tools.description.mixers import build_mixer, build_norm, state_space
from gguf_tools.description.schema import Source
from gguf_tools.model.feed_forward import MLP, XIELU, GatedMLP, MoE, Router, SharedExpert
from gguf_tools.model.norms import Norm
from gguf_tools.model.spec import FeedForward, LayerSpec, ModelSpec


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
    embedding_norm = build_norm(choices, first[0]) if first else None
    if embedding_norm is None and choices.embedding_normed:
        embedding_norm = build_norm(choices, NormSlots())
    spec = ModelSpec(
        vocab_size=structure.vocabulary,
        hidden=structure.hidden,
        context_length=min(context, positions) if positions else context,
        layers=tuple(specs[n][0] for n in range(structure.count)),
        output_norm=build_norm(choices, last),
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
        norms[name] = build_norm(choices, own)
        sources += own.sources(name)
    present = {role for source in sources for role in source.roles}
    mixer, more = build_mixer(group, form, choices, n, norms, present)
    sources += more
    space, more = state_space(group, form, choices, present) if form.beside else (None, [])
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
        beside=space,
        multipliers=tuple((role, factor) for role, factor in choices.multipliers if factor != 1 and role in by_role),
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
    if prefix == "delta":
        order = tuple(role for role in choices.delta_order if role in roles)
        grouped = choices.key_heads if choices.delta_blocks == "key_heads" else 1
        return Source(source.tensor, order, grouped, source.transposed)
    if set(roles) == QKV:
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
