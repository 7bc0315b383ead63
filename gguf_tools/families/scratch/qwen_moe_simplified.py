"""The simplified Qwen-MoE (bytegoose/arxiv.2505.09388): a state dict, with the fields of its dataclass in config.json.

Llama's tensor names, with experts under `mlp.experts.E.ffn` and a router `mlp.gate.gate` in every `moe_layer_freq`-th layer,
and a shared expert without a gate. The published rope code fails for more than one position; the intended computation is
half-split (NeoX) rope on all dimensions of a head.
"""

from __future__ import annotations

import re
from pathlib import Path

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Config, Inventory
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_state_dict, write_tiny_tokenizer
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, LayerTensors, Model, MoE, Norm, Router, SharedExpert
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import stack

MARK = re.compile(r"model\.layers\.\d+\.mlp\.(gate\.gate|experts\.\d+\.ffn\.|shared_expert\.ffn\.)")
DEFAULTS = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768}


def matches(checkpoint: Checkpoint) -> bool:
    """Expert projections under `mlp.experts.E.ffn`, one module deeper than in any other layout."""
    return any(map(MARK.match, checkpoint.tensors))


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint)
    for key, value in DEFAULTS.items():
        config.assume(key, value, "as the published class does")
    every = config.integer("moe_layer_freq", 1)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """Attention, and experts or a dense MLP depending on the tensors; notes a contradicting moe_layer_freq."""
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        n = int(prefix.split(".")[-2])
        ffn: FeedForward
        routed = f"{prefix}mlp.gate.gate.weight" in inventory
        if routed != (n % every == 0):
            config.note(f"config.json says moe_layer_freq {every}, but layer {n} has {'' if routed else 'no '}experts")
        if routed:
            ffn, ffn_part = _moe(inventory, config, f"{prefix}mlp.", hidden)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


def _moe(inventory: Inventory, config: Config, prefix: str, hidden: int) -> tuple[MoE, LayerTensors]:
    """The router (experts, hidden), the routed experts, and the shared expert if there is one.

    Raises CheckpointError if num_experts_per_tok exceeds the number of experts.
    """
    router = inventory.take(f"{prefix}gate.gate.weight", None, hidden)
    experts = router.shape[0]
    width = inventory.shape(f"{prefix}experts.0.ffn.gate_proj.weight")[0]
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    part: LayerTensors = {"moe.router": router}
    for name, shape in shapes.items():
        each = [inventory.take(f"{prefix}experts.{e}.ffn.{name}_proj.weight", *shape) for e in range(experts)]
        part[f"moe.{name}"] = stack(each)
    config.expect("num_experts", experts)
    config.expect("intermediate_size", width)
    top_k = config.integer("num_experts_per_tok")
    if top_k > experts:
        raise CheckpointError(f"{config.path}: num_experts_per_tok is {top_k}, but the router has {experts} experts")
    shared = None
    if f"{prefix}shared_expert.ffn.gate_proj.weight" in inventory:
        mlp, shared_part = hf.gated_mlp(inventory, f"{prefix}shared_expert.ffn.", hidden, "shared")
        part |= shared_part
        shared = SharedExpert(mlp.width, gated=False)
        config.expect("shared_expert_intermediate_size", mlp.width)
    return MoE(experts, width, Router(top_k=top_k), shared), part


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint: a state dict with MoE in all layers, or in `every 2nd layer`, or as `safetensors`."""
    hidden, heads, kv_heads, vocab, layers, width, shared, experts = 48, 4, 2, 288, 3, 40, 24, 4
    every = 2 if variant == "every 2nd layer" else 1
    config = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 96,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "moe_layer_freq": every,
        "shared_expert_intermediate_size": shared,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    kv = hidden // heads * kv_heads

    def mlp(prefix: str, wide: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{prefix}gate_proj.weight": (wide, hidden),
            f"{prefix}up_proj.weight": (wide, hidden),
            f"{prefix}down_proj.weight": (hidden, wide),
        }

    for n in range(layers):
        prefix = f"model.layers.{n}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
        }
        if n % every:
            shapes |= mlp(f"{prefix}mlp.", width)
            continue
        shapes[f"{prefix}mlp.gate.gate.weight"] = (experts, hidden)
        for e in range(experts):
            shapes |= mlp(f"{prefix}mlp.experts.{e}.ffn.", width)
        shapes |= mlp(f"{prefix}mlp.shared_expert.ffn.", shared)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    tensors = random_tensors(shapes, seed, gain={"gate.gate": 2.0})
    if variant == "safetensors":
        write_checkpoint(folder, config, tensors)
    else:
        write_state_dict(folder / "model.pt", tensors, config=config)
    write_tiny_tokenizer(folder, vocab)


FAMILY = Family(
    name="qwen-moe-simplified",
    title="Qwen-MoE, simplified",
    matches=matches,
    build=build,
    variants=dict.fromkeys(("plain", "every 2nd layer", "safetensors"), Expected(target="step35", oracle=False)),
    tiny=tiny,
)
