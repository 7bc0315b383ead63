"""llama.cpp's `qwen3next`: Gated DeltaNet and gated attention in any order, experts and a gated shared expert in every
layer (`src/models/qwen3next.cpp`)."""

from __future__ import annotations

import numpy as np

from gguf_tools.gguf_file import u32
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.rewrites import EMPTY_SHARED_EXPERT, ZERO_ATTENTION_GATE, ZERO_SHARED_GATE
from gguf_tools.spec import Attention, DeltaNet, LayerSpec, Mixer, Model, ModelSpec, MoE, Norm
from gguf_tools.targets import common
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.tensors import Mapped, Tensor, concatenate, interleave_rows, take, take_rows

NAME = "qwen3next"
POST_NORM = "post_attention_norm.weight"
DELTA_NAMES = {
    "delta.qkv": "attn_qkv.weight",
    "delta.z": "attn_gate.weight",
    "delta.conv": "ssm_conv1d.weight",
    "delta.dt_bias": "ssm_dt.bias",
    "delta.decay": "ssm_a",
    "delta.ba": "ssm_ba.weight",
    "delta.norm": "ssm_norm.weight",
    "delta.o": "ssm_out.weight",
}
NAMES = {
    "mixer_norm": "attn_norm.weight",
    **common.ATTENTION_NAMES,
    **DELTA_NAMES,
    "ffn_norm": POST_NORM,
    **common.MOE_NAMES,
}


def deltas(spec: ModelSpec) -> list[DeltaNet]:
    """The DeltaNet of every layer that has one."""
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, DeltaNet)]


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = common.same(deltas(spec), "shape of linear attention")
    if not deltas(spec):
        found.append("a model without linear attention layers")
    if not common.attentions(spec):
        found.append("a model without full attention layers")
    found += [
        f"linear attention with keys of {d.key_dim} and values of {d.value_dim}"
        for d in dict.fromkeys(deltas(spec))
        if d.key_dim != d.value_dim
    ]
    if any(not isinstance(layer.feed_forward, MoE) for layer in spec.layers):
        found.append("layers without experts")
    for moe in common.moes(spec):
        if moe.shared is None or not moe.shared.gated:
            found.append("experts without a gated shared expert")
    found += common.same((moe.shared.width for moe in common.moes(spec) if moe.shared), "width of the shared expert")
    found += common.attention_lacks(spec, gated=True, full_rope=False)
    return list(dict.fromkeys(found + common.moe_lacks(spec) + common.norm_lacks(spec) + common.scale_lacks(spec)))


def lower(model: Model) -> Lowered:
    """Query and gate are interleaved a head at a time, beta and alpha a key head at a time; A becomes the decay rate."""
    spec = model.spec
    delta = deltas(spec)[0]
    metadata = common.common_metadata(NAME, spec) | common.moe_metadata(NAME, common.moes(spec)[0])
    ssm = {
        "conv_kernel": delta.kernel,
        "state_size": delta.key_dim,
        "group_count": delta.key_heads,
        "time_step_rank": delta.value_heads,
        "inner_size": delta.value_heads * delta.value_dim,
    }
    metadata |= {f"{NAME}.ssm.{key}": u32(value) for key, value in ssm.items()}
    recurrent = [isinstance(layer.mixer, DeltaNet) for layer in spec.layers]
    metadata[f"{NAME}.attention.recurrent_layers"] = common.booleans(recurrent)

    def layer(n: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        mixer = spec.layers[n].mixer
        joined = _join_gate(mixer, tensors) if isinstance(mixer, Attention) else _join_delta(mixer, tensors)
        return common.rename(joined, NAMES)

    return Lowered(NAME, metadata, common.lower_tensors(model, layer))


def _join_gate(mixer: Attention, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = dict(tensors)
    out["attn.q"] = interleave_rows([out["attn.q"], out.pop("attn.gate")], mixer.heads)
    if "attn.gate_bias" in out:
        out["attn.q_bias"] = interleave_rows([out["attn.q_bias"], out.pop("attn.gate_bias")], mixer.heads)
    return out


def _join_delta(mixer: DeltaNet, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = dict(tensors)
    out["delta.qkv"] = concatenate([out.pop("delta.q"), out.pop("delta.k"), out.pop("delta.v")])
    out["delta.ba"] = interleave_rows([out.pop("delta.beta"), out.pop("delta.alpha")], mixer.key_heads)
    if mixer.decay == "log":
        out["delta.decay"] = Mapped(out["delta.decay"], lambda a, _: -np.exp(a.astype(np.float64)), "-exp")
    return out


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> tuple[LayerSpec, dict[str, Tensor]]:
        mixer: Mixer
        if f"blk.{n}.ssm_a" in source.tensors:
            mixer, part = _lift_delta(source, n, norm)
        else:
            mixer, part = _lift_attention(source, n, norm)
        ffn, ffn_part = lift_moe(source, n)
        return LayerSpec(mixer, ffn, norm, norm), part | ffn_part

    return lift_layers(source, layer, POST_NORM)


def _lift_attention(source: GGUFSource, n: int, norm: Norm) -> tuple[Attention, dict[str, Tensor]]:
    spec, part = common.lift_attention(source, n, norm)
    for name in ("q", "q_bias"):
        if f"attn.{name}" in part:
            both = part[f"attn.{name}"]
            part[f"attn.{name}"] = take_rows(both, spec.heads, 0, spec.head_dim)
            part[f"attn.{name.replace('q', 'gate')}"] = take_rows(both, spec.heads, spec.head_dim, spec.head_dim)
    gated = Attention(spec.heads, spec.kv_heads, spec.head_dim, spec.rope, spec.bias, spec.qk_norm, gated=True)
    return gated, part


def _lift_delta(source: GGUFSource, n: int, norm: Norm) -> tuple[DeltaNet, dict[str, Tensor]]:
    key_heads, value_heads = int(source.key("ssm.group_count")), int(source.key("ssm.time_step_rank"))
    dim, kernel = int(source.key("ssm.state_size")), int(source.key("ssm.conv_kernel"))
    spec = DeltaNet(key_heads, value_heads, dim, dim, kernel, norm, "rate", norm.eps)
    part = {role: source.tensor(f"blk.{n}.{name}") for role, name in DELTA_NAMES.items()}
    qkv, ba = part.pop("delta.qkv"), part.pop("delta.ba")
    key, group = key_heads * dim, value_heads // key_heads
    part |= {
        "delta.q": take(qkv, range(key)),
        "delta.k": take(qkv, range(key, 2 * key)),
        "delta.v": take(qkv, range(2 * key, qkv.shape[0])),
        "delta.beta": take_rows(ba, key_heads, 0, group),
        "delta.alpha": take_rows(ba, key_heads, group, group),
    }
    return spec, part


TARGET = Target(NAME, (ZERO_ATTENTION_GATE, EMPTY_SHARED_EXPERT, ZERO_SHARED_GATE), lacks, lower, lift)
