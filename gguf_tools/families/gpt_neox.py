"""GPT-NeoX in Hugging Face layout (transformers: GPTNeoXForCausalLM), which Pythia is too.

`query_key_value` has for each head the rows of its q, then its k, then its v. Mixer and feed-forward are in parallel unless
the config says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.hf_rope import rope
from gguf_tools.families.reading import Inventory, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.spec import Attention, Layer, LayerSpec, LayerTensors, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import take_rows

OLD_KEYS = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
"""The class's own names of rope's keys."""


def matches(checkpoint: Checkpoint) -> bool:
    """The names of GPT-NeoX."""
    return "gpt_neox.layers.0.attention.query_key_value.weight" in checkpoint.tensors


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("gpt_neox"))
    _rename(config)
    embedding, output = embedding_and_output(inventory, config, "gpt_neox.embed_in.weight", "embed_out.weight")
    hidden = embedding.shape[1]
    norm = Norm(config.number("layer_norm_eps"), centred=True, bias=True)
    activation, parallel = hf.activation(config), config.flag("use_parallel_residual", True)
    layers = []
    for n in range(layer_count(inventory, "gpt_neox.layers.")):
        place = f"gpt_neox.layers.{n}."
        mixer, part = _attention(inventory, config, f"{place}attention.", hidden)
        up, down = "dense_h_to_4h", "dense_4h_to_h"
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{place}mlp.", hidden, activation, up, down)
        part |= ffn_part | hf.norm(inventory, f"{place}input_layernorm", norm, "mixer_norm", hidden)
        part |= hf.norm(inventory, f"{place}post_attention_layernorm", norm, "ffn_norm", hidden)
        config.expect("intermediate_size", ffn.width)
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm, parallel=parallel), part))
    tensors = {"embedding": embedding, "output": output}
    tensors |= hf.norm(inventory, "gpt_neox.final_layer_norm", norm, "output_norm", hidden)
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=norm,
        context=config.integer("max_position_embeddings"),
        keys=("vocab_size", "hidden_size", "num_hidden_layers"),
    )


def _rename(config: ClassConfig) -> None:
    """Rope's keys by their usual names. Where the class is named, it heeds its own names alone, beside rope_parameters."""
    renamed = {new: config.values[old] for old, new in OLD_KEYS.items() if old in config.values}
    ignored = [key for key in OLD_KEYS.values() if config.kind and key in config.values]
    for key in ignored:
        config.unheeded(key, config.values[key])
    kept = {key: value for key, value in config.values.items() if key not in ignored}
    config.values = {**renamed, **kept}


def _attention(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[Attention, LayerTensors]:
    """`query_key_value`, (3 · hidden, hidden), and `dense`; CheckpointError if the heads do not divide the hidden size."""
    heads = config.integer("num_attention_heads")
    if hidden % heads:
        raise CheckpointError(
            f"{config.path}: num_attention_heads is {heads}, which does not divide the hidden size {hidden}"
        )
    dim = hidden // heads
    part: LayerTensors = {"attn.o": inventory.take(f"{prefix}dense.weight", hidden, hidden)}
    both = {"": inventory.take(f"{prefix}query_key_value.weight", 3 * hidden, hidden)}
    biased = f"{prefix}query_key_value.bias" in inventory
    if biased:
        both["_bias"] = inventory.take(f"{prefix}query_key_value.bias", 3 * hidden)
        part["attn.o_bias"] = inventory.take(f"{prefix}dense.bias", hidden)
    for ending, tensor in both.items():
        for n, name in enumerate("qkv"):
            part[f"attn.{name}{ending}"] = take_rows(tensor, heads, n * dim, dim)
    bias = frozenset("qkvo") if biased else frozenset[str]()
    return Attention(heads=heads, kv_heads=heads, head_dim=dim, rope=rope(config, dim), bias=bias), part


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"rotary_pct": 0.25}, Expected(target="gptneox")),
    "sequential": ({"use_parallel_residual": False, "rotary_pct": 1.0}, Expected(target="gptneox")),
    "no-biases": ({"attention_bias": False, "rotary_pct": 0.5, "hidden_act": "gelu_fast"}, Expected(target="gptneox")),
}
"""Keys of each variant's config.json, and what it shows."""
HIDDEN, WIDTH, LAYERS, VOCAB = 64, 96, 3, 288


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint in the published layout."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}
    config = {"model_type": "gpt_neox", "num_attention_heads": 4, "max_position_embeddings": 256, "hidden_act": "gelu"}
    config |= {"layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "bos_token_id": 0, "eos_token_id": 1, **sizes}
    config |= {"tie_word_embeddings": False, **VARIANTS[variant][0]}
    shapes: dict[str, tuple[int, ...]] = {
        "gpt_neox.embed_in.weight": (VOCAB, HIDDEN),
        "embed_out.weight": (VOCAB, HIDDEN),
    }
    shapes |= {f"gpt_neox.final_layer_norm.{name}": (HIDDEN,) for name in ("weight", "bias")}
    for n in range(LAYERS):
        place = f"gpt_neox.layers.{n}."
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{place}{norm}.{name}": (HIDDEN,) for norm in norms for name in ("weight", "bias")}
        pairs = {"attention.query_key_value": (3 * HIDDEN, HIDDEN), "attention.dense": (HIDDEN, HIDDEN)}
        mlp = {"mlp.dense_h_to_4h": (WIDTH, HIDDEN), "mlp.dense_4h_to_h": (HIDDEN, WIDTH)}
        shapes |= {f"{place}{name}.weight": shape for name, shape in (pairs | mlp).items()}
        biased = mlp | (pairs if config.get("attention_bias", True) else {})
        shapes |= {f"{place}{name}.bias": shape[:1] for name, shape in biased.items()}
    write_checkpoint(
        folder, config, random_tensors(shapes, seed, gain={"query_key_value.weight": 1.0, "embed_out": 1.3})
    )
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="gpt-neox",
    title="GPT-NeoX, Pythia",
    model_types=("gpt_neox",),
    matches=matches,
    build=build,
    preferred_targets=("gptneox",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
