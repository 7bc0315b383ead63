"""llama.cpp's `gpt-oss`: attention with sinks and a window in some layers, experts of clamped SwiGLUs with biases
(`src/models/openai-moe.cpp`).

All biases are required, and zeros change nothing; the clamp and the slope are constants of the graph. The loader takes the
rotated dimensions for the size of a head. YaRN's correction range is always rounded to whole dimensions
(`ggml_rope_yarn_corr_dims`), and there is no tensor of frequencies that could say otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, ClampedSwiGLU, Layer, LayerSpec, Model, ModelSpec, MoE, Norm
from gguf_tools.rewrites.approximations import TRUNCATED_YARN
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import gemma2, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    BIAS_ON_OUTPUT,
    DECODER,
    EXPERTS,
    PAIRS_HALF,
    ROPE_SCALING,
    SINKS,
    WINDOWS,
    attention_limits,
    attentions,
    moe_limits,
    moes,
    norm_limits,
)

NAME = "gpt-oss"
GRAPH_CLAMP = ClampedSwiGLU(slope=1.702, limit=7.0)
NAMES = {
    "mixer_norm": "attn_norm.weight",
    **names.ATTENTION_NAMES,
    "attn.sinks": "attn_sinks.weight",
    "ffn_norm": "post_attention_norm.weight",
    **names.MOE_NAMES,
    "moe.logit_bias": "ffn_gate_inp.bias",
    "moe.gate_bias": "ffn_gate_exps.bias",
    "moe.up_bias": "ffn_up_exps.bias",
    "moe.down_bias": "ffn_down_exps.bias",
}

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true"})
    | ATTENTION
    | BIAS_ON_OUTPUT
    | PAIRS_HALF
    | ROPE_SCALING
    | SINKS
    | WINDOWS
    | EXPERTS
    | {
        "MoE.bias=gate",
        "MoE.bias=up",
        "MoE.bias=down",
        "MoE.clamped=ClampedSwiGLU",
        "Router.logit_bias",
    }
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = [] if all(mixer.sinks for mixer in attentions(spec)) else ["attention without sinks"]
    for clamp in dict.fromkeys(moe.clamped for moe in moes(spec)):
        if clamp is None:
            found.append("experts without a clamp")
        elif (clamp.slope, clamp.limit) != (GRAPH_CLAMP.slope, GRAPH_CLAMP.limit):
            found.append(f"experts clamped at {clamp.limit:g} with a slope of {clamp.slope:g}")
    return found + gemma2.window_limits(spec) + attention_limits(spec) + moe_limits(spec) + norm_limits(spec)


def form(layer: LayerSpec) -> LayerSpec:
    """The layer with all biases, as the graph has it."""
    mixer, moe = layer.mixer, layer.feed_forward
    assert isinstance(mixer, Attention)
    assert isinstance(moe, MoE)
    full = replace(moe, bias=frozenset({"gate", "up", "down"}), router=replace(moe.router, logit_bias=True))
    return replace(layer, mixer=replace(mixer, bias=frozenset("qkvo")), feed_forward=full)


def lower(model: Model) -> Lowered:
    """The model as a `gpt-oss` file: tensors are renamed, and biases that it lacks are zeros."""
    full = lowering.completed(model, form)
    moe = moes(full.spec)[0]
    metadata = {
        **lowering.common_metadata(NAME, full.spec),
        **lowering.moe_metadata(NAME, moe),
        **gemma2.window_metadata(NAME, full.spec),
        f"{NAME}.feed_forward_length": u32(moe.width),
    }
    return Lowered(NAME, metadata, lowering.lower_tensors(full, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    windows = gemma2.windows_of(source)

    def layer(n: int, norm: Norm) -> Layer:
        """Layer n without its norms, whose form is `norm`."""
        mixer, part = lifting.lift_attention(source, n, norm)
        part["attn.sinks"] = source.tensor(f"blk.{n}.attn_sinks.weight")
        moe, moe_part = lifting.lift_moe(source, n)
        moe_part |= lifting.lift_named(
            source, n, {role: name for role, name in NAMES.items() if role.startswith("moe.")}
        )
        router = replace(moe.router, logit_bias="moe.logit_bias" in moe_part)
        bias = frozenset(name for name in ("gate", "up", "down") if f"moe.{name}_bias" in moe_part)
        moe = replace(moe, router=router, bias=bias, clamped=GRAPH_CLAMP)
        mixer = gemma2.with_local_base(source, n, mixer)
        return Layer(LayerSpec(replace(mixer, window=windows[n], sinks=True), moe, norm, norm), part | moe_part)

    return lifting.lift_layers(source, layer, "post_attention_norm.weight")


TARGET = Target(
    name=NAME,
    rewrites=(HALF_PAIRS, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    approximations=(TRUNCATED_YARN,),
)
