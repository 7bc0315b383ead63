"""Qwen3-Next in Hugging Face layout (transformers: Qwen3NextForCausalLM): Gated DeltaNet and gated attention, MoE.

Norm weights are stored less 1, save the one inside the DeltaNet. `in_proj_qkvz` holds q, k, v and z of key head 0, then
those of key head 1, and so on; `in_proj_ba` likewise beta and alpha.
"""

from __future__ import annotations

from gguf_tools.checkpoint import Checkpoint
from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Config, Family, Inventory
from gguf_tools.families.signature import signature
from gguf_tools.spec import DeltaNet, FeedForward, LayerSpec, Mixer, Model, Norm
from gguf_tools.tensors import Reshaped, take_rows


def matches(checkpoint: Checkpoint) -> bool:
    """Fused linear attention, a gated query projection, or experts with a shared one, beside q_norm and k_norm."""
    seen = signature(checkpoint)
    return seen.linear or (seen.qk_norm and (seen.gated or seen.shared))


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    stated = config.values.get("layer_types")

    def layer(prefix: str, hidden: int, norm: Norm) -> tuple[LayerSpec, hf.Part]:
        mixer: Mixer
        ffn: FeedForward
        linear = f"{prefix}linear_attn.out_proj.weight" in inventory
        if linear:
            mixer, part = delta_net(inventory, config, f"{prefix}linear_attn.", hidden)
        else:
            mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        n = int(prefix.split(".")[-2])
        kind = "linear_attention" if linear else "full_attention"
        if isinstance(stated, list) and n < len(stated) and stated[n] != kind:
            config.note(f"config.json says layer {n} is {stated[n]}, its tensors are {kind}")
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = hf.moe(inventory, config, f"{prefix}mlp.", hidden, normalised=True)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        return LayerSpec(mixer, ffn, norm, norm), part | ffn_part

    if inventory.ignore(r"mtp\..*"):
        config.note("the multi-token prediction block (mtp.*) is left out: greedy decoding does not use it")
    return assemble(checkpoint, inventory, config, "qwen3-next", layer, offset=1.0)


def delta_net(inventory: Inventory, config: Config, prefix: str, hidden: int) -> tuple[DeltaNet, hf.Part]:
    """`linear_attn` with fused projections; sizes follow from the shapes, the number of key heads from the config."""
    value_heads = inventory.shape(f"{prefix}A_log")[0]
    value_dim = inventory.shape(f"{prefix}norm.weight")[0]
    value = value_heads * value_dim
    channels, _, kernel = inventory.take(f"{prefix}conv1d.weight", None, 1, None).shape
    key_heads = config.integer("linear_num_key_heads")
    key, rest = divmod(channels - value, 2)
    if rest or key < 1 or key % key_heads or value_heads % key_heads:
        raise CheckpointError(
            f"{config.path}: linear_num_key_heads {key_heads} does not fit the tensors: {prefix}conv1d.weight has {channels} "
            f"channels, of which {value} are values in {value_heads} heads"
        )
    config.expect("linear_num_value_heads", value_heads)
    config.expect("linear_value_head_dim", value_dim)
    config.expect("linear_key_head_dim", key // key_heads)
    config.expect("linear_conv_kernel_dim", kernel)
    key_dim, group = key // key_heads, value_heads // key_heads
    qkvz = inventory.take(f"{prefix}in_proj_qkvz.weight", 2 * (key + value), hidden)
    ba = inventory.take(f"{prefix}in_proj_ba.weight", 2 * value_heads, hidden)
    spec = DeltaNet(key_heads, value_heads, key_dim, value_dim, kernel, Norm(config.number("rms_norm_eps")))
    wide = group * value_dim
    part = {
        "delta.q": take_rows(qkvz, key_heads, 0, key_dim),
        "delta.k": take_rows(qkvz, key_heads, key_dim, key_dim),
        "delta.v": take_rows(qkvz, key_heads, 2 * key_dim, wide),
        "delta.z": take_rows(qkvz, key_heads, 2 * key_dim + wide, wide),
        "delta.beta": take_rows(ba, key_heads, 0, group),
        "delta.alpha": take_rows(ba, key_heads, group, group),
        "delta.conv": Reshaped(inventory.take(f"{prefix}conv1d.weight", channels, 1, kernel), (channels, kernel)),
        "delta.decay": inventory.take(f"{prefix}A_log", value_heads),
        "delta.dt_bias": inventory.take(f"{prefix}dt_bias", value_heads),
        "delta.norm": inventory.take(f"{prefix}norm.weight", value_dim),
        "delta.o": inventory.take(f"{prefix}out_proj.weight", hidden, value),
    }
    return spec, part


FAMILY = Family("qwen3-next", "Qwen3-Next, hybrid MoE", matches, build)
