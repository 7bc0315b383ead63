"""Code shared by the hybrid architectures (`qwen3next`, `qwen35`, `qwen35moe`): Gated DeltaNet and gated attention in any order.

Sources: `src/models/{qwen3next,qwen35,qwen35moe,delta-net-base}.cpp` of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf.header import Metadata, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, DeltaNet, LayerTensors, ModelSpec, Norm
from gguf_tools.rewrites.delta import IDLE_LAYER, REPEATED_VALUES
from gguf_tools.rewrites.gates import ZERO_ATTENTION_GATE
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS
from gguf_tools.targets import lifting, lowering
from gguf_tools.targets.limits import (
    ATTENTION,
    ATTENTION_GATE,
    DECODER,
    LINEAR_ATTENTION,
    PAIRS_HALF,
    PARTIAL_ROPE,
    QK_NORM,
    ROPE_SCALING,
    attention_limits,
    attentions,
    norm_limits,
    same,
)
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Mapped, concatenate, interleave_rows, take, take_rows

POST_NORM = "post_attention_norm.weight"
DELTA_NAMES = {
    "delta.qkv": "attn_qkv.weight",
    "delta.z": "attn_gate.weight",
    "delta.conv": "ssm_conv1d.weight",
    "delta.dt_bias": "ssm_dt.bias",
    "delta.decay": "ssm_a",
    "delta.norm": "ssm_norm.weight",
    "delta.o": "ssm_out.weight",
}
REWRITES = (IDLE_LAYER, REPEATED_VALUES, OUTPUT_BIAS, ZERO_ATTENTION_GATE)


def deltas(spec: ModelSpec) -> list[DeltaNet]:
    """The DeltaNet specs of the layers that have one, in order."""
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, DeltaNet)]


EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | PARTIAL_ROPE | ROPE_SCALING | QK_NORM | ATTENTION_GATE | LINEAR_ATTENTION


def hybrid_limits(spec: ModelSpec) -> list[str]:
    """What the graphs cannot express of this spec's mixers and norms."""
    found = same(deltas(spec), "the shape of linear attention")
    # llama.cpp's hybrid memory has a cache for each mixer type, and an assertion fails for one without layers.
    found += [] if deltas(spec) else ["a model without linear attention layers"]
    found += [] if attentions(spec) else ["a model without full attention layers"]
    found += [
        f"linear attention with key heads of {d.key_dim} and value heads of {d.value_dim} dimensions"
        for d in dict.fromkeys(deltas(spec))
        if d.key_dim != d.value_dim
    ]
    return found + attention_limits(spec, gate=True, qk_norm=True) + norm_limits(spec)


def hybrid_metadata(arch: str, spec: ModelSpec) -> Metadata:
    """Sizes, attention heads, RoPE, the DeltaNet's shape, and which layers are linear attention."""
    delta = deltas(spec)[0]
    values = {
        "ssm.conv_kernel": delta.kernel,
        "ssm.state_size": delta.key_dim,
        "ssm.group_count": delta.key_heads,
        "ssm.time_step_rank": delta.value_heads,
        "ssm.inner_size": delta.value_heads * delta.value_dim,
    }
    metadata = lowering.common_metadata(arch, spec) | {f"{arch}.{key}": u32(value) for key, value in values.items()}
    recurrent = [isinstance(layer.mixer, DeltaNet) for layer in spec.layers]
    metadata[f"{arch}.attention.recurrent_layers"] = lowering.booleans(recurrent)
    return metadata


def join_gate(mixer: Attention, tensors: Mapping[str, Tensor]) -> LayerTensors:
    """The attention's tensors with `attn.q` and `attn.gate` interleaved head by head into one matrix `attn.q`."""
    out = dict(tensors)
    out["attn.q"] = interleave_rows([out["attn.q"], out.pop("attn.gate")], mixer.heads)
    if "attn.gate_bias" in out:
        out["attn.q_bias"] = interleave_rows([out["attn.q_bias"], out.pop("attn.gate_bias")], mixer.heads)
    return out


def join_delta(mixer: DeltaNet, tensors: Mapping[str, Tensor]) -> LayerTensors:
    """The DeltaNet's tensors with q, k and v concatenated into `delta.qkv`, and the decay as a rate, -exp(log)."""
    out = dict(tensors)
    out["delta.qkv"] = concatenate([out.pop("delta.q"), out.pop("delta.k"), out.pop("delta.v")])
    if mixer.decay == "log":
        out["delta.decay"] = Mapped(out["delta.decay"], lambda a, _: -np.exp(a.astype(np.float64)), "-exp")
    return out


def lift_gated_attention(source: GGUFSource, n: int, norm: Norm) -> tuple[Attention, LayerTensors]:
    """Layer n's attention with query and gate split, the inverse of `join_gate`."""
    spec, part = lifting.lift_attention(source, n, norm)
    for name in ("q", "q_bias"):
        if f"attn.{name}" in part:
            both = expect_rows(source, part[f"attn.{name}"], 2 * spec.heads * spec.head_dim)
            part[f"attn.{name}"] = take_rows(both, spec.heads, 0, spec.head_dim)
            part[f"attn.{name.replace('q', 'gate')}"] = take_rows(both, spec.heads, spec.head_dim, spec.head_dim)
    gated = Attention(
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rope=spec.rope,
        bias=spec.bias,
        qk_norm=spec.qk_norm,
        gated=True,
    )
    return gated, part


def expect_rows(source: GGUFSource, tensor: Tensor, rows: int) -> Tensor:
    """Returns the tensor. Raises CheckpointError unless it has `rows` rows: views that select rows ignore surplus rows."""
    if tensor.shape[0] != rows:
        raise CheckpointError(
            f"{source.path}: tensor {tensor.sources[0]} has shape {tensor.shape}; expected {rows} rows"
        )
    return tensor


def lift_delta(source: GGUFSource, n: int, norm: Norm) -> tuple[DeltaNet, LayerTensors]:
    """Layer n's DeltaNet with q, k and v split, the inverse of `join_delta`; without beta and alpha."""
    key_heads, value_heads = source.integer("ssm.group_count"), source.integer("ssm.time_step_rank")
    dim, kernel = source.integer("ssm.state_size"), source.integer("ssm.conv_kernel")
    inner = source.integer("ssm.inner_size")
    if inner != value_heads * dim:
        raise CheckpointError(
            f"{source.path}: metadata {source.architecture}.ssm.inner_size is {inner}; expected {value_heads * dim}, "
            f"ssm.time_step_rank {value_heads} times ssm.state_size {dim}; write the file again"
        )
    spec = DeltaNet(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=dim,
        value_dim=dim,
        kernel=kernel,
        norm=norm,
        decay="rate",
        l2_eps=norm.eps,
    )
    part = {role: source.tensor(f"blk.{n}.{name}") for role, name in DELTA_NAMES.items()}
    qkv, key = part.pop("delta.qkv"), key_heads * dim
    part |= {
        "delta.q": take(qkv, range(key)),
        "delta.k": take(qkv, range(key, 2 * key)),
        "delta.v": take(qkv, range(2 * key, qkv.shape[0])),
    }
    return spec, part
