"""The mixers that the choices make of a layer's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

from gguf_tools.description.assignment import Group, NormSlots
from gguf_tools.description.choices import HEAD_FIELDS, Choices
from gguf_tools.description.forms import Form
from gguf_tools.description.schema import Source
from gguf_tools.model.norms import Norm
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, DeltaNet, Mixer
from gguf_tools.model.state_space import Mamba2, ShortConv


def build_norm(choices: Choices, slots: NormSlots, offset: float | None = None) -> Norm:
    """A norm with these weights; one without weights has no offset."""
    return Norm(
        eps=choices.eps,
        offset=(choices.offset if offset is None else offset) if slots.weight else 0.0,
        centred=choices.centred,
        weighted=slots.weight is not None,
        bias=slots.bias is not None,
    )


def build_mixer(
    group: Group, form: Form, choices: Choices, n: int, norms: Mapping[str, Norm], roles: set[str]
) -> tuple[Mixer, list[Source]]:
    """The mixer of layer `n`, and the sources of its q and k norms."""
    if form.mixer == "ShortConv":
        return ShortConv(form.kernel, "conv.in_bias" in roles), []
    if form.mixer == "Mamba2":
        return state_space(group, form, choices, roles)
    if form.mixer == "DeltaNet":
        return _linear_attention(group, form, choices)
    dim = choices.head_dim
    head_norms = group.head_norms[::-1] if choices.heads_exchanged else group.head_norms
    roles_of_norms = HEAD_FIELDS[-len(head_norms) :] if head_norms else ()  # a single one is that of k
    sources = [Source(slot.name, (role,)) for slot, role in zip(head_norms, roles_of_norms, strict=True)]
    vectors = _vectors(group, form, choices) if group.per_head and not form.beside else ()
    sources += _of_vectors(group, vectors)
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
        qk_norm=build_norm(choices, weight, choices.head_offset) if normed else None,
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


def state_space(group: Group, form: Form, choices: Choices, roles: set[str]) -> tuple[Mamba2, list[Source]]:
    """The state space of a layer, and the sources of its vectors."""
    sources = _of_vectors(group, _vectors(group, form, choices))
    norm = NormSlots(group.inner_norm) if group.inner_norm else None
    sources += norm.sources("ssm.norm") if norm else ()
    biased = [name for name, role in (("in", "ssm.z_bias"), ("o", "ssm.o_bias")) if role in roles]
    return Mamba2(
        heads=form.heads,
        head_dim=form.inner // form.heads,
        groups=choices.ssm_groups,
        state=form.state // choices.ssm_groups,
        kernel=form.kernel,
        norm=build_norm(choices, norm, choices.inner_offset) if norm else None,
        norm_first=choices.norm_first,
        decay=choices.decay,
        conv_bias="ssm.conv_bias" in roles,
        bias=frozenset(biased),
    ), sources


def _fit(group: Group, roles: Sequence[str], sizes: Mapping[str, int]) -> bool:
    return all(slot.squeezed == (sizes[role],) for slot, role in zip(group.per_head, roles, strict=True))


def _linear_attention(group: Group, form: Form, choices: Choices) -> tuple[DeltaNet, list[Source]]:
    """The linear attention of a layer, and the sources of its vectors."""
    return DeltaNet(
        key_heads=choices.key_heads,
        value_heads=form.heads,
        key_dim=form.state // choices.key_heads,
        value_dim=form.inner // form.heads,
        kernel=form.kernel,
        norm=Norm(choices.eps, choices.inner_offset),
        decay=choices.decay,
    ), _of_vectors(group, _vectors(group, form, choices))


def _vectors(group: Group, form: Form, choices: Choices) -> tuple[str, ...]:
    """The roles of a group's vectors with a number for each head, in the way that was chosen."""
    ways = per_head_roles(group, form, choices.head_dim)
    return ways[choices.per_head % len(ways)] if ways else ()


def _of_vectors(group: Group, vectors: Sequence[str]) -> list[Source]:
    """The sources of these vectors."""
    return [Source(slot.name, (role,)) for slot, role in zip(group.per_head, vectors, strict=False)]


def per_head_roles(group: Group, form: Form, dim: int) -> list[tuple[str, ...]]:
    """The roles that a group's vectors with a number for each head may have, in every way that their sizes allow."""
    if form.spaced:
        return list(permutations(("ssm.decay", "ssm.skip", "ssm.dt_bias"))) if len(group.per_head) == 3 else []
    if form.mixer == "DeltaNet":
        own = {"delta.decay": form.heads, "delta.dt_bias": form.heads, "delta.norm": form.inner // form.heads}
        return [roles for roles in permutations(own) if _fit(group, roles, own)] if len(group.per_head) == 3 else []
    heads, kv_heads = form.q // dim, form.kv // dim
    sizes = {"sinks": heads, "q_gain": heads, "k_gain": kv_heads, "v_scale": kv_heads}
    found = []
    for roles in permutations(sizes, len(group.per_head)):
        gains = {"q_gain", "k_gain"} & set(roles)
        if _fit(group, roles, sizes) and (not gains or (len(gains) == 2 and group.head_norms)):
            found.append(tuple(f"attn.{role}" for role in roles))
    return found
