"""Decoders that mix linear and full attention: Qwen3-Next and Qwen3.5.

Norm weights are stored minus 1, except the norm inside the DeltaNet. Qwen3-Next fuses the DeltaNet's projections:
`in_proj_qkvz` holds q, k, v and z of key head 0, then those of key head 1, and so on; `in_proj_ba` does so for beta and alpha.
Qwen3.5 has `in_proj_qkv` (all of q, then all of k, then all of v), `in_proj_z`, `in_proj_b` (beta) and `in_proj_a` (alpha).
Source: transformers, `models/qwen3_next` and `models/qwen3_5`.
"""

from __future__ import annotations

from collections.abc import Collection

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Config, Inventory
from gguf_tools.model.spec import DeltaNet, FeedForward, Layer, LayerSpec, LayerTensors, Mixer, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import gated_queries, signature
from gguf_tools.tensors.views import Reshaped, take, take_rows
from gguf_tools.text import shortened


def build_hybrid(checkpoint: Checkpoint, family: str, types: Collection[str]) -> Model:
    """The checkpoint as a Model; each layer's type (linear or full attention) follows from its tensors.

    Raises CheckpointError for missing or misshapen tensors and for config values that do not fit them.
    """
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, types, bare("qwen3_next"))
    _refuse_mixed_gates(checkpoint)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """Linear or full attention, with experts or a dense MLP, depending on the tensors under `prefix`."""
        mixer: Mixer
        ffn: FeedForward
        linear = any(f"{prefix}linear_attn.{name}" in inventory for name in ("out_proj.weight", "A_log"))
        if linear:
            mixer, part = delta_net(inventory, config, f"{prefix}linear_attn.", hidden)
        else:
            mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        hf.expect_kind(config, prefix, "linear_attention" if linear else "full_attention")
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = hf.moe(inventory, config, f"{prefix}mlp.", hidden, normalised=True)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    if inventory.ignore(r"(model\.)?mtp\..*"):
        config.note("the multi-token prediction block (mtp.*) is left out: greedy decoding does not use it")
    return assemble(checkpoint, inventory, config, family, layer, offset=norm_offset(checkpoint, config))


def _refuse_mixed_gates(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if only some layers have an attention gate: the odd ones are probably misshapen tensors.

    The gate also decides whether norm weights are stored minus 1 (`norm_offset`), so a wrong guess would affect all norms.
    """
    gates = gated_queries(checkpoint)
    for kind in (True, False):
        odd = [name for name, gated in gates.items() if gated is kind]
        if 0 < len(odd) <= len(gates) / 2:
            has = "has a gate, but most layers have none" if kind else "has no gate, but most layers have one"
            raise CheckpointError(
                f"{checkpoint.path}: tensor {odd[0]} of shape {checkpoint.tensors[odd[0]].shape} {has}; save the checkpoint again"
            )


def norm_offset(checkpoint: Checkpoint, config: Config) -> float:
    """What the model adds to the stored norm weights: 1, or 0 for a checkpoint that only its config identifies as Qwen3-MoE.

    Tensors with a shared expert, q_norm and k_norm, but neither linear layers nor gated attention, fit both families.
    """
    seen = signature(checkpoint)
    if seen.linear or seen.separate or seen.gated or config.values.get("model_type") != "qwen3_moe":
        return 1.0
    config.note("norm weights are used as stored, without adding 1: config.json's model_type is qwen3_moe")
    return 0.0


def delta_net(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[DeltaNet, LayerTensors]:
    """The Gated DeltaNet `linear_attn`: sizes from the tensors' shapes, the number of key heads from the config.

    Raises CheckpointError if linear_num_key_heads or linear_key_head_dim does not fit the shapes.
    """
    value_heads = inventory.shape(f"{prefix}A_log", 1)[0]
    value_dim = inventory.shape(f"{prefix}norm.weight", 1)[0]
    value = value_heads * value_dim
    channels, _, kernel = inventory.take(f"{prefix}conv1d.weight", None, 1, None).shape
    key_heads = config.integer("linear_num_key_heads")
    key, rest = divmod(channels - value, 2)
    if rest or key < 1 or key % key_heads or value_heads % key_heads:
        raise CheckpointError(
            f"{config.path}: linear_num_key_heads {key_heads} does not fit the tensors: {prefix}conv1d.weight has {channels} "
            f"channels, {value} of them values in {value_heads} heads; set it to the value used in training"
        )
    stated = config.values.get("linear_key_head_dim")
    if stated is not None and stated != key // key_heads:
        raise CheckpointError(
            f"{config.path}: linear_num_key_heads {key_heads} and linear_key_head_dim {shortened(repr(stated))} do not fit "
            f"{prefix}conv1d.weight, which has {key} key channels; set them to the values used in training"
        )
    config.expect("linear_num_value_heads", value_heads)
    config.expect("linear_value_head_dim", value_dim)
    config.expect("linear_conv_kernel_dim", kernel)
    spec = DeltaNet(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=key // key_heads,
        value_dim=value_dim,
        kernel=kernel,
        norm=Norm(config.number("rms_norm_eps")),
    )
    fused = f"{prefix}in_proj_qkvz.weight" in inventory
    part = (_fused if fused else _separate)(inventory, prefix, hidden, spec) | {
        "delta.conv": Reshaped(inventory.take(f"{prefix}conv1d.weight", channels, 1, kernel), (channels, kernel)),
        "delta.decay": inventory.take(f"{prefix}A_log", value_heads),
        "delta.dt_bias": inventory.take(f"{prefix}dt_bias", value_heads),
        "delta.norm": inventory.take(f"{prefix}norm.weight", value_dim),
        "delta.o": inventory.take(f"{prefix}out_proj.weight", hidden, value),
    }
    return spec, part


def _fused(inventory: Inventory, prefix: str, hidden: int, spec: DeltaNet) -> LayerTensors:
    """Splits Qwen3-Next's fused projections: each key head's rows are its q, k, v and z, and its beta and alpha."""
    key_heads, dim, group = spec.key_heads, spec.key_dim, spec.value_heads // spec.key_heads
    wide = group * spec.value_dim
    qkvz = inventory.take(f"{prefix}in_proj_qkvz.weight", 2 * key_heads * (dim + wide), hidden)
    ba = inventory.take(f"{prefix}in_proj_ba.weight", 2 * spec.value_heads, hidden)
    return {
        "delta.q": take_rows(qkvz, key_heads, 0, dim),
        "delta.k": take_rows(qkvz, key_heads, dim, dim),
        "delta.v": take_rows(qkvz, key_heads, 2 * dim, wide),
        "delta.z": take_rows(qkvz, key_heads, 2 * dim + wide, wide),
        "delta.beta": take_rows(ba, key_heads, 0, group),
        "delta.alpha": take_rows(ba, key_heads, group, group),
    }


def _separate(inventory: Inventory, prefix: str, hidden: int, spec: DeltaNet) -> LayerTensors:
    qkv = inventory.take(f"{prefix}in_proj_qkv.weight", spec.channels, hidden)
    key = spec.key_heads * spec.key_dim
    return {
        "delta.q": take(qkv, range(key)),
        "delta.k": take(qkv, range(key, 2 * key)),
        "delta.v": take(qkv, range(2 * key, spec.channels)),
        "delta.z": inventory.take(f"{prefix}in_proj_z.weight", spec.value_heads * spec.value_dim, hidden),
        "delta.beta": inventory.take(f"{prefix}in_proj_b.weight", spec.value_heads, hidden),
        "delta.alpha": inventory.take(f"{prefix}in_proj_a.weight", spec.value_heads, hidden),
    }
