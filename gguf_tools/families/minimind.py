"""MiniMind (jingyaogong/minimind) in its own layout: Qwen3's or Llama's tensors under model_type minimind.

MiniMind 3 has q/k norms (Qwen3's arithmetic), MiniMind 2 none (Llama's), with experts or without. MiniMind 2's experts stand
beside `shared_experts.N`, which are all applied to every token without a gate, so that together they are one wide expert. The
router's softmax runs over all experts; the selected weights are renormalised where norm_topk_prob says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_state_dict, write_tiny_tokenizer
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, LayerTensors, Model, MoE, Norm, SharedExpert
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import EMBEDDING, OUTPUT
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Columns, concatenate

DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
}
"""MiniMindConfig's own, for keys that a config leaves out."""
BARE: Mapping[str, Any] = {**DEFAULTS, "hidden_act": "silu", "norm_topk_prob": True, "tie_word_embeddings": True}
BARE_SECOND: Mapping[str, Any] = {**BARE, "rms_norm_eps": 1e-5, "num_attention_heads": 8, "num_experts_per_tok": 2}
BARE_THIRD: Mapping[str, Any] = {**BARE, "num_experts_per_tok": 1}
"""What the tensors do not show, by the defaults of MiniMind 2 and of MiniMind 3, for a state dict without a config."""
VOCABULARY = 6400
"""Rows of the embedding of every MiniMind, which tell a state dict without a config."""
PROJECTIONS = ("gate", "up", "down")


def matches(checkpoint: Checkpoint) -> bool:
    """A decoder in Hugging Face's names; experts beside a list of shared ones are MiniMind's alone."""
    names = checkpoint.tensors
    return "model.layers.0.self_attn.q_proj.weight" in names and "model.layers.0.input_layernorm.weight" in names


def is_bare(checkpoint: Checkpoint) -> bool:
    """Whether this is a state dict as MiniMind's trainers save it, `out/full_sft_768.pth`: without a config, of 6400 tokens."""
    embedding = checkpoint.tensors.get(EMBEDDING)
    alone = [path.suffix for path in checkpoint.weight_files] == [".pth"] and not checkpoint.own_config
    return alone and embedding is not None and embedding.shape[:1] == (VOCABULARY,)


def _assume_defaults(inventory: Inventory, config: ClassConfig, file: str) -> None:
    """Use the defaults of MiniMind 3, which has q/k norms, or of MiniMind 2, and note it."""
    place = "model.layers.0.self_attn."
    third = f"{place}q_norm.weight" in inventory
    defaults = dict(BARE_THIRD if third else BARE_SECOND)
    if third:
        rows, dim = inventory.shape(f"{place}q_proj.weight")[0], inventory.shape(f"{place}q_norm.weight", 1)[0]
        defaults["num_attention_heads"] = max(rows // dim, 1)
    config.values = {**defaults, **config.values}
    listed = ", ".join(f"{key} {value}" for key, value in defaults.items())
    config.note(f"{file} has no config.json beside it: the defaults of MiniMind {3 if third else 2} hold ({listed})")


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for scaled rope at inference, whose table depends on the context length."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint)
    if is_bare(checkpoint):
        _assume_defaults(inventory, config, checkpoint.weight_files[0].name)
    for key, value in DEFAULTS.items():
        config.assume(key, value, "as MiniMindConfig does")
    if config.flag("inference_rope_scaling", False):
        raise UnsupportedError(
            f"{config.path}: inference_rope_scaling is true, whose ramp of frequencies llama.cpp does not have; set it to "
            "false to convert the model with the rope of its training"
        )
    scoring = config.values.get("scoring_func", "softmax")
    if scoring != "softmax":
        raise config.wrong("scoring_func", scoring, "softmax")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        ffn: FeedForward
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = _moe(inventory, config, f"{prefix}mlp.", hidden)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
            config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


def _moe(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[MoE, LayerTensors]:
    """The router (experts, hidden), the experts, and the shared ones joined to one of their widths together."""
    ffn, part = hf.moe(inventory, config, prefix, hidden, normalised=True)
    config.expect("n_routed_experts", ffn.experts)
    shared: list[Mapping[str, Tensor]] = []
    while f"{prefix}shared_experts.{len(shared)}.gate_proj.weight" in inventory:
        shared.append(hf.gated_mlp(inventory, f"{prefix}shared_experts.{len(shared)}.", hidden, "shared")[1])
    config.expect("n_shared_experts", len(shared))
    if not shared:
        return ffn, part
    width = sum(each["shared.gate"].shape[0] for each in shared)
    part |= {f"shared.{name}": concatenate([each[f"shared.{name}"] for each in shared]) for name in ("gate", "up")}
    part["shared.down"] = Columns(tuple(each["shared.down"] for each in shared), np.arange(width))
    return replace(ffn, shared=SharedExpert(width, gated=False)), part


_SHARED = {"n_routed_experts": tiny_attention.EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": True}
_ROUTED = {"num_experts": tiny_attention.EXPERTS, "num_experts_per_tok": 1, "norm_topk_prob": True}
_QWEN3 = {"head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
_BARE_NOTES = ("lm_head.weight repeats the embedding",)
_AS_LLAMA = Expected(target="llama", rewrites=("rope in interleaved pairs",), oracle=False)
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "minimind 3": (_QWEN3, Expected(target="qwen3", oracle=False)),
    "minimind 3 moe": (_QWEN3 | _ROUTED, Expected(target="qwen3moe", oracle=False)),
    "minimind 2": ({}, _AS_LLAMA),
    "minimind 2 moe": (_SHARED | {"n_shared_experts": 1}, Expected(target="glm4moe", oracle=False)),
    "two shared experts": (_SHARED | {"n_shared_experts": 2}, Expected(target="glm4moe", oracle=False)),
    "bare 3": (_QWEN3, Expected(target="qwen3", notes=("defaults of MiniMind 3 hold", *_BARE_NOTES), oracle=False)),
    "bare 2 moe": (
        _SHARED | {"n_shared_experts": 1},
        Expected(target="glm4moe", notes=("defaults of MiniMind 2 hold", *_BARE_NOTES), oracle=False),
    ),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint: Qwen3's or Llama's tensors, and the shared experts beside the routed ones."""
    own = VARIANTS[variant][0]
    config = {**tiny_attention.BASE, "model_type": "minimind", **own}
    layout = tiny_attention.Variant(
        config=config, qk_norm="head_dim" in own, experts="separate" if "num_experts_per_tok" in own else None
    )
    shapes = tiny_attention.shapes(layout)
    width, hidden = tiny_attention.EXPERT_WIDTH, tiny_attention.HIDDEN
    mlp = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    for n in range(tiny_attention.LAYERS):
        for e in range(own.get("n_shared_experts", 0)):
            prefix = f"model.layers.{n}.mlp.shared_experts.{e}."
            shapes |= {f"{prefix}{name}_proj.weight": shape for name, shape in mlp.items()}
    bare = variant.startswith("bare")
    vocab = VOCABULARY if bare else tiny_attention.VOCAB
    shapes |= dict.fromkeys((EMBEDDING, OUTPUT), (vocab, hidden))
    tensors = random_tensors(shapes, seed, gain=tiny_attention.GAIN)
    if bare:
        tensors[OUTPUT] = tensors[EMBEDDING]
        write_state_dict(folder / f"full_sft_{hidden}.pth", tensors, dtype="F16")
    else:
        write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, vocab)


FAMILY = Family(
    name="minimind",
    title="MiniMind 2 and 3",
    model_types=("minimind",),
    matches=matches,
    build=build,
    preferred_targets=("qwen3", "qwen3moe", "llama"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
    by_type=True,
    bare=is_bare,
)
