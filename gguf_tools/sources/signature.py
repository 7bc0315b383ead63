"""Features that distinguish the families in Hugging Face layout, read from tensor names and shapes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from gguf_tools.sources.checkpoint import Checkpoint

TWO_NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Which tensors a checkpoint has, and whether its query projections include an output gate (`gated`).

    `dense`: a gated feed-forward without experts; `mixtral`: Mixtral's names for experts; `fused`: gate and up projections of
    all experts in one tensor; `router`: the router's weight; `biases`: those of the attention projections q, k, v, o that have
    a bias; `linear` and `separate`: linear attention with fused (Qwen3-Next) and with separate (Qwen3.5) projections.
    `late_norm`: Hunyuan's names for q/k norms, which follow rope.
    `corrected`: a bias on the router's scores, for the selection of experts.
    `two_norms`: the norms of a layer, but for those within its parts, are Llama's two, without biases.
    """

    qk_norm: bool
    linear: bool
    separate: bool
    gated: bool
    experts: bool
    shared: bool
    attention: bool
    dense: bool
    mixtral: bool
    fused: bool
    router: bool
    biases: frozenset[str]
    two_norms: bool
    corrected: bool
    late_norm: bool

    @property
    def hybrid(self) -> bool:
        """Whether it has features that only Qwen3-Next and Qwen3.5 have; both store most norm weights minus 1."""
        return self.linear or self.separate or (self.qk_norm and (self.gated or self.shared))


def signature(checkpoint: Checkpoint) -> Signature:
    """The signature of a checkpoint in Hugging Face layout."""
    suffixes = set(map(_suffix, checkpoint.tensors))
    return Signature(
        qk_norm="self_attn.q_norm.weight" in suffixes,
        linear="linear_attn.in_proj_qkvz.weight" in suffixes,
        separate="linear_attn.in_proj_qkv.weight" in suffixes,
        gated=any(gated_queries(checkpoint).values()),
        experts=any(suffix.startswith("mlp.experts.") for suffix in suffixes),
        shared=any(suffix.startswith("mlp.shared_expert.") for suffix in suffixes),
        attention={f"self_attn.{name}_proj.weight" for name in "qkvo"} <= suffixes,
        dense="mlp.gate_proj.weight" in suffixes,
        mixtral="block_sparse_moe.experts.0.w1.weight" in suffixes,
        fused="mlp.experts.gate_up_proj" in suffixes,
        router="mlp.gate.weight" in suffixes,
        late_norm="self_attn.query_layernorm.weight" in suffixes,
        corrected=any(suffix.endswith("e_score_correction_bias") for suffix in suffixes),
        two_norms={name for name in suffixes if "norm." in name and re.fullmatch(r"\w+norm\.\w+", name)} == TWO_NORMS,
        biases=frozenset(name for name in "qkvo" if f"self_attn.{name}_proj.bias" in suffixes),
    )


@lru_cache(maxsize=1 << 16)
def _suffix(name: str) -> str:
    """A tensor's name without the layer. Cached, since every family asks for the signature."""
    return re.sub(r"^model\.layers\.\d+\.", "", name)


def gated_queries(checkpoint: Checkpoint) -> dict[str, bool]:
    """For each query projection, whether it includes a gate: it then has twice as many rows as o_proj has columns."""
    queries = (name for name in checkpoint.tensors if name.endswith("self_attn.q_proj.weight"))
    return {name: _gated(checkpoint, name) for name in queries}


def _gated(checkpoint: Checkpoint, query: str) -> bool:
    output = checkpoint.tensors.get(query.replace("q_proj", "o_proj"))
    shapes = (checkpoint.tensors[query].shape, output.shape if output else ())
    return all(len(shape) == 2 for shape in shapes) and shapes[0][0] == 2 * shapes[1][1]
