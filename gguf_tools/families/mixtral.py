"""Mixtral in Hugging Face layout (transformers: MixtralForCausalLM).

Published files have `block_sparse_moe.gate` and `block_sparse_moe.experts.E.{w1,w2,w3}` (gate, down, up). Some files have the
names that transformers uses in memory: `mlp.gate` and `mlp.experts.{gate_up_proj,down_proj}`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.model.spec import Layer, LayerSpec, LayerTensors, Model, MoE, Norm, Router
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature
from gguf_tools.tensors.views import stack

W_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}


def matches(checkpoint: Checkpoint) -> bool:
    """Plain attention, and experts under Mixtral's names or fused experts without a shared expert."""
    seen = signature(checkpoint)
    fused = seen.fused and seen.router and not (seen.shared or seen.corrected)
    return llama.plain_attention(seen) and (seen.mixtral or fused)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, llama.BARE)
    llama.refuse_other_arithmetic(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix))
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window)
        if f"{prefix}block_sparse_moe.gate.weight" in inventory:
            ffn, ffn_part = _experts(inventory, config, f"{prefix}block_sparse_moe.", hidden)
        else:
            ffn, ffn_part = hf.moe(inventory, config, f"{prefix}mlp.", hidden, normalised=True)
        config.expect("num_local_experts", ffn.experts)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, "mixtral", layer)


def _experts(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[MoE, LayerTensors]:
    """Mixtral's experts: w1 is gate and w3 is up, both (width, hidden); w2 is down, (hidden, width)."""
    router = inventory.take(f"{prefix}gate.weight", None, hidden)
    count = router.shape[0]
    width = inventory.shape(f"{prefix}experts.0.w1.weight")[0]
    top_k = config.integer("num_experts_per_tok")
    if top_k > count:
        raise CheckpointError(f"{config.path}: num_experts_per_tok is {top_k}, but the router has {count} experts")
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    part = {
        f"moe.{name}": stack(
            [inventory.take(f"{prefix}experts.{e}.{W_NAMES[name]}.weight", *shape) for e in range(count)]
        )
        for name, shape in shapes.items()
    }
    if config.kind:
        hf.renormalised(config, True)  # adds a note if the class ignores norm_topk_prob
    return MoE(count, width, Router(top_k=top_k)), {**part, "moe.router": router}


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint of the variant."""
    field_tiny.write(folder, field_tiny.MIXTRAL[variant], seed)


_AS_LLAMA = Expected(target="llama", rewrites=("rope in interleaved pairs",))
VARIANTS = {**dict.fromkeys(field_tiny.MIXTRAL, _AS_LLAMA), "window": replace(_AS_LLAMA, target="granite_swa")}

FAMILY = Family(
    name="mixtral",
    title="Mixtral",
    model_types=("mixtral",),
    matches=matches,
    build=build,
    preferred_targets=llama.WINDOWED,
    variants=VARIANTS,
    tiny=tiny,
)
