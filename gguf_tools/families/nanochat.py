"""nanochat in Hugging Face layout (transformers: NanoChatForCausalLM).

Every norm is an RMS norm without weights, one of the embeddings among them; rope rotates backwards, and the norm of q and k
follows it; feed-forwards of squared ReLUs have no gate; the logits have a cap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Config, Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint

LAYER = "model.layers.0."


def matches(checkpoint: Checkpoint) -> bool:
    """Feed-forwards of fc1 and fc2, separate projections of q, k and v, and no norm with weights."""
    names = checkpoint.tensors
    marks = (f"{LAYER}mlp.fc1.weight", f"{LAYER}mlp.fc2.weight", f"{LAYER}self_attn.q_proj.weight")
    return all(name in names for name in marks) and not any("norm" in name for name in names)


def cap(config: Config, key: str) -> float | None:
    """The cap on the logits, None where it is null; CheckpointError for 0, by which the model would divide."""
    value = config.values.get(key)
    if value is None:
        return None
    number = config.number(key)
    if number == 0:
        raise CheckpointError(f"{config.path}: {key} is 0; expected a number above 0, or null for no cap")
    return number


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("nanochat"))
    norm = Norm(config.number("rms_norm_eps"), weighted=False)
    activation = hf.activation(config)
    config.fill("final_logit_softcapping")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        rope = replace(mixer.rope, backwards=True) if mixer.rope else None
        mixer = replace(mixer, rope=rope, qk_norm=norm, norm_after_rope=True)
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{prefix}mlp.", hidden, activation, "fc1", "fc2")
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    fields = {"embedding_norm": norm, "logit_softcap": cap(config, "final_logit_softcapping")}
    return assemble(checkpoint, inventory, config, FAMILY.name, layer, norm=norm, fields=fields, swiglu=False)


FOLDED = (
    "normed embeddings stored",
    "rope that rotates forwards",
    "q/k norm before rope",
    "norms without weights",
)
"""What every target needs."""
HOSTED = (
    *FOLDED,
    "squared ReLU as GeGLU",
    "norms after mixer and feed-forward that change nothing",
    "bias on the attention output",
    "embeddings divided by √hidden",
)
"""What `gemma3` needs, whose cap on the logits is used."""
_BASE: Mapping[str, Any] = {
    "model_type": "nanochat",
    "hidden_act": "relu2",
    "final_logit_softcapping": 15.0,
    "tie_word_embeddings": False,
}
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, Expected(target="gemma3", rewrites=HOSTED)),
    "biases": ({"attention_bias": True}, Expected(target="gemma3", rewrites=HOSTED)),
    "without a cap": (
        {"final_logit_softcapping": None},
        Expected(target="qwen3", rewrites=(*FOLDED, "squared ReLU as SwiGLU")),
    ),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {**tiny_attention.BASE, **_BASE, **VARIANTS[variant][0]}
    hidden, width = tiny_attention.HIDDEN, tiny_attention.WIDTH
    made = tiny_attention.Variant(config=config, bias="qkvo" if config.get("attention_bias") else "")
    shapes = {n: s for n, s in tiny_attention.shapes(made).items() if "norm" not in n and "mlp" not in n}
    for n in range(tiny_attention.LAYERS):
        shapes |= {
            f"model.layers.{n}.mlp.fc1.weight": (width, hidden),
            f"model.layers.{n}.mlp.fc2.weight": (hidden, width),
        }
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="nanochat",
    title="nanochat",
    model_types=("nanochat",),
    matches=matches,
    build=build,
    preferred_targets=("qwen3", "gemma3"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
