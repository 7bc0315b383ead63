"""nanoGPT (karpathy/nanoGPT) and its forks: `ckpt.pt` with `model_args`.

GPT-2's modules with nn.Linear's layout, (out, in): `attn.c_attn` holds the rows of q, then k, then v. With bias=False neither
the projections nor the layer norms have biases. The GELU is the exact one (nn.GELU()); build-nanogpt, whose `GPTConfig` has five
fields and is pickled as an object, has the approximation by tanh, and so has minGPT, for which a config.json beside the weights
says so with activation_function "gelu_new".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_state_dict, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.spec import MLP, Attention, Layer, LayerSpec, LayerTensors, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import TIE
from gguf_tools.tensors.views import take

BUILD_NANOGPT = {"n_layer", "n_head", "n_embd", "block_size", "vocab_size"}
"""The fields of build-nanogpt's `GPTConfig`."""
CONTEXT_KEYS = {"max_position_embeddings", "max_seq_len"}
KEYS = BUILD_NANOGPT | CONTEXT_KEYS | {"bias", "dropout", "activation_function", "layer_norm_epsilon", TIE}
"""nanoGPT's `GPTConfig`, what a config.json may state besides, and the context length that the user may give."""
EPSILON = 1e-5
"""Of torch's layer norm, which nanoGPT does not change."""


def matches(checkpoint: Checkpoint) -> bool:
    """Learned positions, and q, k and v in one matrix with three times as many rows as columns."""
    names = checkpoint.tensors
    qkv = names.get("transformer.h.0.attn.c_attn.weight")
    return (
        "transformer.wpe.weight" in names
        and qkv is not None
        and len(qkv.shape) == 2
        and qkv.shape[0] == 3 * qkv.shape[1]
    )


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for a key that nanoGPT's `GPTConfig` does not have."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint)
    config.refuse_unknown(KEYS, "nanoGPT's GPTConfig")
    if config.values.keys() - CONTEXT_KEYS == BUILD_NANOGPT:
        why = 'as build-nanogpt does, whose config has these fields alone; "gelu" is the one of nanoGPT'
        config.assume("activation_function", "gelu_new", why)
    config.assume("activation_function", "gelu", 'as nanoGPT does; "gelu_new" is the one of minGPT and build-nanogpt')
    config.assume("layer_norm_epsilon", EPSILON, "as torch's layer norm does")
    embedding, output = embedding_and_output(
        inventory, config, "transformer.wte.weight", "lm_head.weight", by_values=True
    )
    hidden = embedding.shape[1]
    positions = inventory.take("transformer.wpe.weight", None, hidden)
    heads = config.integer("n_head")
    if hidden % heads:
        raise CheckpointError(f"{config.path}: n_head is {heads}, which does not divide the hidden size {hidden}")
    norm = Norm(config.number("layer_norm_epsilon"), centred=True, bias="transformer.ln_f.bias" in inventory)
    activation = hf.activation(config, "activation_function")
    layers = []
    for n in range(layer_count(inventory, "transformer.h.")):
        prefix = f"transformer.h.{n}."
        qkv, biases = _projection(inventory, f"{prefix}attn.c_attn", "qkv", hidden, 3 * hidden)
        part: LayerTensors = {}
        for row, name in enumerate("qkv"):
            rows = range(row * hidden, (row + 1) * hidden)
            part |= {f"attn.{name}{end}": take(qkv[f"qkv{end}"], rows) for end in (("", "_bias") if biases else ("",))}
        back, back_bias = _projection(inventory, f"{prefix}attn.c_proj", "attn.o", hidden, hidden)
        width = inventory.shape(f"{prefix}mlp.c_fc.weight")[0]
        up, up_bias = _projection(inventory, f"{prefix}mlp.c_fc", "ffn.up", hidden, width)
        down, down_bias = _projection(inventory, f"{prefix}mlp.c_proj", "ffn.down", width, hidden)
        part |= back | up | down
        for role, name in (("mixer_norm", "ln_1"), ("ffn_norm", "ln_2")):
            part |= hf.norm(inventory, f"{prefix}{name}", norm, role, hidden)
        mixer = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=hidden // heads,
            rope=None,
            bias=frozenset(("qkv" if biases else "") + ("o" if back_bias else "")),
        )
        ffn_bias = frozenset(name for name, there in (("up", up_bias), ("down", down_bias)) if there)
        layers.append(Layer(LayerSpec(mixer, MLP(width, activation, ffn_bias), norm, norm), part))
    config.expect("block_size", positions.shape[0])
    tensors = {"embedding": embedding, "positions": positions, "output": output}
    tensors |= hf.norm(inventory, "transformer.ln_f", norm, "output_norm", hidden)
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


def _projection(inventory: Inventory, name: str, role: str, inputs: int, outputs: int) -> tuple[LayerTensors, bool]:
    """A projection, (outputs, inputs), with its bias if it has one, and whether it has."""
    part: LayerTensors = {role: inventory.take(f"{name}.weight", outputs, inputs)}
    biased = f"{name}.bias" in inventory
    return part | ({f"{role}_bias": inventory.take(f"{name}.bias", outputs)} if biased else {}), biased


HIDDEN, HEADS, LAYERS, VOCAB, CONTEXT = 64, 4, 3, 288, 96
_NOTES = ("wrapper prefixes", "also holds config", "layer_norm_epsilon", "activation_function", "repeats the embedding")
_NANOGPT = Expected(target="gpt2", notes=_NOTES, oracle=False)
VARIANTS: Mapping[str, Expected] = {
    "plain": _NANOGPT,
    "no bias": _NANOGPT,
    "build-nanogpt": Expected(
        target="gpt2",
        notes=(
            "also holds step, val_loss",
            "activation_function: gelu_new",
            "layer_norm_epsilon",
            "repeats the embedding",
        ),
        oracle=False,
    ),
    "minGPT": Expected(target="gpt2", notes=("layer_norm_epsilon", "3 buffers"), oracle=False),
}


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The config of build-nanogpt, which is pickled as it is."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint as nanoGPT's train.py saves it, or minGPT's bare state dict with a config.json."""
    mingpt, bias = variant == "minGPT", variant != "no bias"
    args = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": HIDDEN, "block_size": CONTEXT, "vocab_size": VOCAB}
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, HIDDEN), "transformer.wpe.weight": (CONTEXT, HIDDEN)
    }  # fmt: skip
    linear = {"attn.c_attn": (3 * HIDDEN, HIDDEN), "attn.c_proj": (HIDDEN, HIDDEN)}
    linear |= {"mlp.c_fc": (4 * HIDDEN, HIDDEN), "mlp.c_proj": (HIDDEN, 4 * HIDDEN)}
    norms = [f"transformer.h.{n}.{name}" for n in range(LAYERS) for name in ("norm_1", "norm_2")]
    for name in (*norms, "transformer.norm_f"):
        shapes |= {f"{name}.weight": (HIDDEN,)} | ({f"{name}.bias": (HIDDEN,)} if bias else {})
    for n in range(LAYERS):
        for name, shape in linear.items():
            shapes[f"transformer.h.{n}.{name}.weight"] = shape
            shapes |= {f"transformer.h.{n}.{name}.bias": shape[:1]} if bias else {}
    if mingpt:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    drawn = random_tensors(shapes, seed, gain={"wpe": 4.0, "wte": 1.0})
    tensors = {name.replace("norm_", "ln_"): values for name, values in drawn.items()}
    if mingpt:
        mask = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.float32))
        tensors |= {f"transformer.h.{n}.attn.bias": mask for n in range(LAYERS)}
        config = {**args, "activation_function": "gelu_new"}
        write_state_dict(folder / "model.pt", tensors, config=config)
    else:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    wrapped: dict[str, Any]
    if variant == "build-nanogpt":
        wrapped = {"config": GPTConfig(**args), "step": 19072, "val_loss": 3.05}
        write_state_dict(folder / "model_19072.pt", tensors, wrapped=wrapped)
    elif not mingpt:
        wrapped = {"model_args": {**args, "bias": bias, "dropout": 0.0}, "config": {"learning_rate": 6e-4}}
        names = {f"_orig_mod.{name}": values for name, values in tensors.items()}
        write_state_dict(folder / "ckpt.pt", names, wrapped=wrapped)
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="nanogpt",
    title="nanoGPT, build-nanogpt, minGPT",
    matches=matches,
    build=build,
    preferred_targets=("gpt2",),
    variants=VARIANTS,
    tiny=tiny,
)
