"""What rows are made of: properties, changed roles and refusals that several architectures share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

from surgery.architectures.base import Architecture, Note, Property, Refusal, Role, Rule, Slice
from surgery.architectures.rules import (
    PATTERN,
    Array,
    AttentionScale,
    ByCount,
    Deepstack,
    Every,
    ExpertCount,
    First,
    FromCount,
    Indices,
    KeysRead,
    LacksTensor,
    LightningDecay,
    NoRope,
    Recurrent,
    Rescaled,
    ResidualScale,
    SharedIndexer,
    SharesKeys,
    Window,
    WriteArray,
    WriteFirst,
    WriteIndices,
    WriteLast,
    WriteNumber,
)
from surgery.architectures.tensors import MTP, roles

RECURRENT_KEY = "attention.recurrent_layers"
LEAD = "leading_dense_block_count"
SLIDES = "has a sliding window"


def arch(
    name: str,
    layer: str,
    *properties: Property,
    changed: Mapping[str, Role] | None = None,
    source: str = "",
    **more: Any,
) -> Architecture:
    """A row: name, the tensors of a layer (names, and groups in capitals), properties, and what else it has."""
    sliding = more.pop("sliding", any(p.what == SLIDES for p in properties))
    return Architecture(
        name=name,
        source=source or f"{name}.cpp",
        tensors=roles(layer, changed or {}),
        properties=properties,
        sliding=sliding,
        **more,
    )


def window(period: int, *, full_first: bool = False, stated: bool = False) -> Property:
    """Sliding windows by a period, or by an array."""
    return Property(SLIDES, "attention", Window(period, full_first, stated), WriteArray(PATTERN))


def recurrent(interval: int) -> Property:
    """Recurrent layers by an interval, or by an array."""
    rule = Array(RECURRENT_KEY, Recurrent(interval))
    return Property("is recurrent", "attention", rule, WriteArray(RECURRENT_KEY))


def no_rope(
    step: int,
    rest: int,
    windows: Literal["", "stated", "not 0"] = "",
    otherwise: Literal["none", "last"] = "none",
) -> Property:
    """A fixed pattern of layers without RoPE."""
    return Property("has no rope", "attention", NoRope(step, rest, windows, otherwise))


def attention_scale(count: int) -> Property:
    """Another attention scale with exactly this number of layers."""
    return Property("the attention scale", "attention", AttentionScale(count))


def residual_scale(key: str = "") -> Property:
    """A scale of both halves' outputs by the number of layers, unless a key states it."""
    return Property("the scale of what a layer adds", None, ResidualScale(key), WriteNumber(key) if key else None)


def shared_keys(start: int | None, slides: Rule) -> tuple[Property, Property]:
    """Layers without keys and values of their own, and the layer whose they read."""
    rule = SharesKeys(start)
    carry = WriteLast("attention.shared_kv_layers") if start is None else None
    return (
        Property("shares keys and values", "attention", rule, carry),
        Property("the layer whose keys and values are read", "attention", KeysRead(rule, slides)),
    )


def shared_indexer(default: Literal["all", "none", "GLM 5.2"]) -> Property:
    """Layers that use the choice of positions of a layer before them."""
    return Property("the layer whose indexer is used", "attention", SharedIndexer(default))


def by_count(what: str, special: Mapping[int, Hashable], other: Hashable, **more: Any) -> Property:
    """A value for all layers by their number."""
    return Property(what, None, ByCount(special, other, **more))


DENSE_FIRST = Property("has a dense feed-forward", "ffn", First(LEAD), WriteFirst(LEAD))
MOE_STEP = Property("has experts", "ffn", Every("interleave_moe_layer_step"))
MOE_EVERY = Property("has experts", "ffn", Every("moe_every_n_layers", rest=1))
SPARSE = Property("has sparse activations", "ffn", First(count=10))
MODERN_BERT = Property("lacks its first norm", "attention", LacksTensor("attn_norm.weight"))
NGRAM = Property("has n-gram embeddings", None, Indices("ple.layers"), WriteIndices("ple.layers"))
DEEPSTACK = Property("takes image features", "attention", Deepstack())
HASHED = Property("routes by token ids", "ffn", First("hash_layer_count"), WriteFirst("hash_layer_count"))
RESCALED = Property("how often the residual stream was halved", None, Rescaled())
FIRST_VALUES = Property("gives its values to all others", "attention", First(count=1))
BANKS = Property("banks the residual stream", None, Every("attn_res.block_size", rest=0))
M3_SPARSE = Property("has dense attention", "attention", First(LEAD), WriteFirst(LEAD))
LIGHTNING = Property("the decay factor", "attention", LightningDecay(Array(RECURRENT_KEY, Recurrent(8))))
BAICHUAN = by_count("the position encoding", {32: "RoPE", 40: "ALiBi"}, "none")
COMMAND_R = Property("has norms of queries and keys", None, FromCount(64))
EXAONE4 = by_count("the attention", {64: "with windows, RoPE only in them"}, "full, with RoPE everywhere")
EXAONE4_WINDOW = Property(SLIDES, "attention", Window(4, only=64), WriteArray(PATTERN))
LITE = by_count("the query projection", {26: "whole", 27: "whole"}, "of low rank")
LITE_VOCABULARY = by_count("the query projection", {48: "whole"}, "of low rank", vocabulary=128256)
GATING = by_count(
    "the router", {47: "sigmoid", 48: "sigmoid"}, "softmax", vocabulary=154880, absent="expert_gating_func"
)
LLAMA4_128 = Property("has norms of queries and keys", "attention", ExpertCount(128))

FALCON = {"attn_norm_2": Role("attention", "input norm")}
GROK = {
    "attn_output_norm": Role("attention", "output norm"),
    "layer_output_norm": Role("ffn", "output norm"),
}
DBRX = {"attn_output_norm": Role("ffn", "input norm")}
RWKV = {"attn_norm_2": Role("ffn", "input norm")}
FFN_NORM = {"post_attention_norm": Role("ffn", "input norm")}
MTP_NORM = {"layer_output_norm": Role(MTP)}
TALKIE = {"layer_output_scale": Role("embedding skip", "output")}
NEMOTRON_H = {"ffn_latent_up": Role("ffn", "output"), "post_attention_norm": Role(MTP)}
KIMI_K3 = {"ffn_routed_up": Role("ffn", "output")}
GEMMA4 = {"ffn_gate_inp.scale": Role("ffn")}
MINIMAX_01 = {
    "attn_norm": Role("attention", "stream norm"),
    "ffn_norm": Role("ffn", "stream norm"),
    "attn_norm_2": Role("attention"),
}

PER_LAYER = (Slice("per_layer_token_embd.weight", 1), Slice("per_layer_model_proj.weight", 0))
GROVE = Refusal(
    "experts", "expert i shares the adjugate expert i // experts_per_group, and the group's id gives its weight"
)
SWIN = Refusal("scale", "with swin_norm its norms come after the attention and the feed-forward", "swin_norm")
IMAGE_FEATURES = Note(
    "n_deepstack_layers",
    "image features (deepstack) are still added after the first layers, whichever these are now; text is not affected",
)
