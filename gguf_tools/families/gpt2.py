"""GPT-2 in Hugging Face layout (transformers: GPT2LMHeadModel).

Projections are stored transposed, (in, out), as transformers' Conv1D has them; q, k and v are one matrix. Published files lack
the prefix `transformer.` and hold causal masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_count
from gguf_tools.families.tiny.writing import Shapes, random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.spec import MLP, Attention, Layer, LayerSpec, LayerTensors, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Transposed, take

PREFIX = "transformer."
NEUTRAL = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
"""Keys that change the attention, and the values with which it is the usual one."""


def matches(checkpoint: Checkpoint) -> bool:
    """Learned positions, and q, k and v in one matrix with three times as many columns as rows."""
    names = checkpoint.tensors
    prefix = _prefix(names)
    qkv = names.get(f"{prefix}h.0.attn.c_attn.weight")
    return (
        f"{prefix}wpe.weight" in names and qkv is not None and len(qkv.shape) == 2 and qkv.shape[1] == 3 * qkv.shape[0]
    )


def _prefix(names: Mapping[str, Tensor]) -> str:
    return PREFIX if f"{PREFIX}wte.weight" in names else ""


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for the variants of attention that the config may ask for."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("gpt2"))
    for key, usual in NEUTRAL.items():
        if config.flag(key, usual) != usual:
            raise UnsupportedError(f"{config.path}: {key} is {not usual}, which is not supported")
    prefix = _prefix(inventory.tensors)
    embedding, output = embedding_and_output(inventory, config, f"{prefix}wte.weight", "lm_head.weight")
    hidden = embedding.shape[1]
    positions = inventory.take(f"{prefix}wpe.weight", None, hidden)
    norm = Norm(config.number("layer_norm_epsilon"), centred=True, bias=True)
    activation = hf.activation(config, "activation_function")
    heads = config.integer("n_head")
    if hidden % heads:
        raise CheckpointError(f"{config.path}: n_head is {heads}, which does not divide the hidden size {hidden}")
    layers = []
    for n in range(layer_count(inventory, f"{prefix}h.")):
        place = f"{prefix}h.{n}."
        part = _attention(inventory, f"{place}attn.", hidden)
        width = inventory.shape(f"{place}mlp.c_fc.weight")[1]
        part |= _projection(inventory, f"{place}mlp.c_fc", "ffn.up", hidden, width)
        part |= _projection(inventory, f"{place}mlp.c_proj", "ffn.down", width, hidden)
        part |= hf.norm(inventory, f"{place}ln_1", norm, "mixer_norm", hidden)
        part |= hf.norm(inventory, f"{place}ln_2", norm, "ffn_norm", hidden)
        mixer = Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, rope=None, bias=frozenset("qkvo"))
        ffn = MLP(width, activation, frozenset({"up", "down"}))
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm), part))
    config.expect("n_positions", positions.shape[0])
    tensors = {"embedding": embedding, "positions": positions, "output": output}
    tensors |= hf.norm(inventory, f"{prefix}ln_f", norm, "output_norm", hidden)
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=norm,
        context=positions.shape[0],
        keys=("vocab_size", "n_embd", "n_layer"),
        fields={"positions": positions.shape[0]},
    )


def _attention(inventory: Inventory, prefix: str, hidden: int) -> LayerTensors:
    both = _projection(inventory, f"{prefix}c_attn", "qkv", hidden, 3 * hidden)
    part = _projection(inventory, f"{prefix}c_proj", "attn.o", hidden, hidden)
    for n, name in enumerate("qkv"):
        rows = range(n * hidden, (n + 1) * hidden)
        part |= {f"attn.{name}": take(both["qkv"], rows), f"attn.{name}_bias": take(both["qkv_bias"], rows)}
    return part


def _projection(inventory: Inventory, name: str, role: str, inputs: int, outputs: int) -> LayerTensors:
    """A projection, stored (inputs, outputs), and its bias."""
    weight = Transposed(inventory.take(f"{name}.weight", inputs, outputs))
    return {role: weight, f"{role}_bias": inventory.take(f"{name}.bias", outputs)}


_NATIVE = Expected(target="gpt2")
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, _NATIVE),
    "erf": ({"activation_function": "gelu", "tie_word_embeddings": False, "n_inner": 96}, _NATIVE),
    "odd-heads": ({"n_embd": 60}, _NATIVE),
    "relu": ({"activation_function": "relu"}, Expected(target="gpt2", rewrites=("ReLU as GELU",))),
    "scaled-by-layer": (
        {"scale_attn_by_inverse_layer_idx": True},
        Expected(refused="scale_attn_by_inverse_layer_idx is True", oracle=False),
    ),
}
"""Keys of each variant's config.json, and what it shows."""
HIDDEN, LAYERS, VOCAB, CONTEXT = 64, 3, 288, 128


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint in the published layout."""
    sizes = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCAB}
    config: dict[str, Any] = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **sizes,
    }
    config |= {"bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True, **VARIANTS[variant][0]}
    hidden: int = config["n_embd"]
    width = 96 if "n_inner" in config else 4 * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, hidden),
        "transformer.wpe.weight": (CONTEXT, hidden),
    }
    shapes |= {f"transformer.ln_f.{name}": (hidden,) for name in ("weight", "bias")}
    shapes |= {} if config.get("tie_word_embeddings", True) else {"lm_head.weight": (VOCAB, hidden)}
    for n in range(LAYERS):
        place = f"transformer.h.{n}."
        shapes |= {f"{place}{norm}.{name}": (hidden,) for norm in ("ln_1", "ln_2") for name in ("weight", "bias")}
        pairs = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden)}
        pairs |= {"mlp.c_fc": (hidden, width), "mlp.c_proj": (width, hidden)}
        shapes |= {f"{place}{name}.weight": shape for name, shape in pairs.items()}
        shapes |= {f"{place}{name}.bias": shape[1:] for name, shape in pairs.items()}
    tensors = random_tensors(_for_noise(shapes), seed, gain={"wpe": 4.0})
    write_checkpoint(folder, config, {name: tensors[name.replace("ln_", "norm_")] for name in shapes})
    write_tiny_tokenizer(folder, VOCAB)


def _for_noise(shapes: Shapes) -> Shapes:
    """The shapes under names by which `random_tensors` knows norms."""
    return {name.replace("ln_", "norm_"): shape for name, shape in shapes.items()}


FAMILY = Family(
    name="gpt2",
    title="GPT-2",
    model_types=("gpt2",),
    matches=matches,
    build=build,
    preferred_targets=("gpt2",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
