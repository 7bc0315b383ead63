"""llama.cpp's `step35`: each layer dense or MoE, with many optional features (`src/models/step35.cpp`).

Ungated shared experts, softmax or sigmoid routers, a selection bias, optional q/k norms, partial RoPE, keys wider than
values, and a sliding window per layer. Peculiarities:

- llama.cpp aborts if no layer has a window. If the model has none, all layers get one larger than any context.
- Layers without a window rotate half of `rope.dimension_count`; layers with one have separate keys (`…_swa`) and no RoPE
  scaling.
- Every MoE layer needs a shared expert, and the output projection is required.
- Normalised expert weights are divided by their sum or by 6.1e-5, whichever is larger: the weights of a sigmoid router whose
  selected logits are all below -9.7 sum to less than 1.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.header import Field, Metadata, boolean, f32, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import (
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Model,
    ModelSpec,
    MoE,
    Norm,
    Router,
)
from gguf_tools.rewrites.approximations import SOFTMAX_ROUTER
from gguf_tools.rewrites.gates import EMPTY_UNGATED_EXPERT
from gguf_tools.rewrites.heads import WIDENED_HEADS
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.router import SINGLE_EXPERT
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.targets.limits import (
    ATTENTION,
    CORRECTED_SCORES,
    DECODER,
    DENSE,
    EXPERTS,
    NO_SHARED_GATE,
    PAIRS_HALF,
    PARTIAL_ROPE,
    QK_NORM,
    SHARED_EXPERT,
    VALUE_SIZES,
    WINDOWS,
    attention_limits,
    attentions,
    mlp_limits,
    moes,
    norm_limits,
    ropes,
    same,
)

NAME = "step35"
NAMES = {
    "mixer_norm": "attn_norm.weight",
    **names.ATTENTION_NAMES,
    "ffn_norm": "ffn_norm.weight",
    **names.FFN_NAMES,
    **names.MOE_NAMES,
}
ENDLESS = 1 << 23
"""A window larger than any context; times 256 sequences it still fits llama.cpp's 32-bit integers."""
SWA_THETA = 10000.0
"""llama.cpp's default RoPE base for layers with a window."""
SOFTMAX_OF_CHOSEN = 3
"""The value of `expert_gating_func` that selects by raw logits plus `exp_probs_b`, with a softmax over the selected ones."""


EXPRESSES = (
    DECODER
    | ATTENTION
    | PAIRS_HALF
    | PARTIAL_ROPE
    | QK_NORM
    | WINDOWS
    | VALUE_SIZES
    | DENSE
    | EXPERTS
    | CORRECTED_SCORES
    | {"Router.selection_bias"}
    | SHARED_EXPERT
    | NO_SHARED_GATE
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = attention_limits(spec)
    windows = (mixer.window for mixer in attentions(spec) if mixer.window)
    found += same(windows, "sliding window")
    return found + _moe_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def _moe_limits(spec: ModelSpec) -> list[str]:
    experts = moes(spec)
    found = same(((moe.experts, moe.width) for moe in experts), "the number and width of experts")
    found += same((moe.router for moe in experts), "router settings")
    if any(moe.router.selection_bias and _gating(moe.router) != SOFTMAX_OF_CHOSEN for moe in experts):
        found.append("a router bias added before the score function, for the selection alone")
    shared = [moe.shared for moe in experts if moe.shared]
    if len(shared) < len(experts):
        found.append("experts without a shared expert")
    return found + same((expert.width for expert in shared), "the width of shared experts")


def _gating(router: Router) -> int:
    if router.score == "sigmoid":
        return lowering.SIGMOID
    return SOFTMAX_OF_CHOSEN if router.normalised and not router.score_bias else lowering.SOFTMAX


def lower(model: Model) -> Lowered:
    """The model as a `step35` file: tensors are renamed, their values do not change."""
    metadata = lowering.common_metadata(NAME, model.spec) | {
        f"{NAME}.{key}": value for key, value in {**_attention_keys(model.spec), **_expert_keys(model.spec)}.items()
    }
    return Lowered(NAME, metadata, lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, NAMES)))


def _attention_keys(spec: ModelSpec) -> dict[str, Field]:
    """RoPE, head size and window keys, without prefix; the graph halves `rope.dimension_count` in layers without a window."""
    mixers = attentions(spec)
    first, rope = mixers[0], ropes(spec)[0]
    window = next((mixer.window for mixer in mixers if mixer.window), None)
    return {
        "rope.dimension_count": u32(2 * rope.dims),
        "rope.dimension_count_swa": u32(rope.dims),
        "rope.freq_base_swa": f32(rope.theta),
        "attention.key_length_swa": u32(first.head_dim),
        "attention.value_length_swa": u32(first.value_size),
        "attention.sliding_window": u32(window or ENDLESS),
        "attention.sliding_window_pattern": lowering.booleans(
            not window or mixer.window is not None for mixer in mixers
        ),
    }


def _expert_keys(spec: ModelSpec) -> Metadata:
    """Feed-forward widths, expert counts and router keys, without prefix."""
    moe = next(iter(moes(spec)), None)
    dense = next(
        (ffn.width for ffn in (layer.feed_forward for layer in spec.layers) if isinstance(ffn, GatedMLP)), None
    )
    values: Metadata = {"feed_forward_length": u32(dense or (moe.width if moe else 0))}
    if moe is None:
        # The loader requires the key but does not use it without experts.
        return values | {"expert_feed_forward_length": u32(0)}
    prefix = f"{NAME}."
    values |= {key.removeprefix(prefix): value for key, value in lowering.moe_metadata(NAME, moe).items()}
    gating = _gating(moe.router)
    values["expert_gating_func"] = u32(gating)
    values["expert_weights_norm"] = boolean(moe.router.normalised and gating != SOFTMAX_OF_CHOSEN)
    return values


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model.

    Raises UnsupportedError for a gate per head, and for an unknown function of the router.
    """
    pattern, layers = source.key("attention.sliding_window_pattern"), source.integer("block_count")
    if not isinstance(pattern, tuple) or len(pattern) < layers:
        raise CheckpointError(
            f"{source.path}: {NAME}.attention.sliding_window_pattern does not have one value for each of the {layers} layers; "
            "write the file again"
        )
    stated = source.integer("attention.sliding_window")
    window = stated if stated < source.integer("context_length") else None

    def layer(n: int, norm: Norm) -> Layer:
        """Layer n without its norms; whether it has a window decides which RoPE keys apply."""
        local = bool(pattern[n])
        dims = source.integer("rope.dimension_count_swa") if local else source.integer("rope.dimension_count") // 2
        mixer, part = lifting.lift_attention(source, n, norm, dims)
        gate = f"blk.{n}.attn_gate.weight"
        if gate in source.tensors:
            raise UnsupportedError(f"{source.path}: {gate} is one gate per head, which tinyq does not support")
        if local:
            theta = source.number("rope.freq_base_swa", SWA_THETA)
            rope = replace(lifting.lift_rope(source, mixer.head_dim, dims), theta=theta, scaling=None)
            mixer = replace(mixer, rope=rope, window=window)
        ffn: FeedForward
        if f"blk.{n}.ffn_gate_inp.weight" in source.tensors:
            ffn, ffn_part = _lift_experts(source, n)
        else:
            ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, "ffn_norm.weight")


def _lift_experts(source: GGUFSource, n: int) -> tuple[MoE, LayerTensors]:
    """Layer n's experts, with the router that `expert_gating_func` and `expert_weights_norm` describe."""
    if source.integer("expert_gating_func", lowering.SIGMOID) != SOFTMAX_OF_CHOSEN:
        return lifting.lift_scored_moe(source, n)
    moe, part = lift_moe(source, n, scaled=True)
    return replace(moe, router=replace(moe.router, selection_bias="moe.router_bias" in part)), part


TARGET = Target(
    name=NAME,
    rewrites=(SINGLE_EXPERT, HALF_PAIRS, WIDENED_HEADS, EMPTY_UNGATED_EXPERT, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    approximations=(SOFTMAX_ROUTER,),
)
