"""GPTModel of "Build a Large Language Model From Scratch" (rasbt/LLMs-from-scratch, chapters 4 and 5): a bare state dict.

GPT-2's arithmetic with separate projections: layer norms with `scale` and `shift`, learned positions, the GELU by tanh, an
output projection of its own. No shape tells the number of heads: the book's `cfg` in a config.json does, else GPT-2's sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_state_dict, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.spec import MLP, Attention, Layer, LayerSpec, LayerTensors, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import TIE
from gguf_tools.tensors.base import Tensor

KEYS = {
    "vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate", "qkv_bias", "max_position_embeddings",
    "max_seq_len", TIE,
}  # fmt: skip
"""The book's `cfg`, and the context length that the user may give."""
HEADS_OF = {768: 12, 1024: 16, 1280: 20, 1600: 25}
"""The book's sizes, which are GPT-2's: hidden size → heads."""
NORM = Norm(1e-5, centred=True, bias=True)
PROJECTIONS = {"q": "W_query", "k": "W_key", "v": "W_value", "o": "out_proj"}


def matches(checkpoint: Checkpoint) -> bool:
    """`trf_blocks` beside a table of positions."""
    return {"pos_emb.weight", "trf_blocks.0.att.W_query.weight"} <= checkpoint.tensors.keys()


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for a key that the book's `cfg` does not have."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    config.refuse_unknown(KEYS, "the book's cfg of GPTModel")
    embedding, output = embedding_and_output(inventory, config, "tok_emb.weight", "out_head.weight", by_values=True)
    hidden = embedding.shape[1]
    positions = inventory.take("pos_emb.weight", None, hidden)
    heads = _heads(config, hidden)
    layers = []
    for n in range(layer_count(inventory, "trf_blocks.")):
        prefix = f"trf_blocks.{n}."
        mixer, part = _attention(inventory, f"{prefix}att.", heads, hidden)
        width = inventory.shape(f"{prefix}ff.layers.0.weight")[0]
        for role, name, shape in (("up", "0", (width, hidden)), ("down", "2", (hidden, width))):
            part[f"ffn.{role}"] = inventory.take(f"{prefix}ff.layers.{name}.weight", *shape)
            part[f"ffn.{role}_bias"] = inventory.take(f"{prefix}ff.layers.{name}.bias", shape[0])
        part |= _norm(inventory, f"{prefix}norm1", "mixer_norm", hidden)
        part |= _norm(inventory, f"{prefix}norm2", "ffn_norm", hidden)
        layers.append(Layer(LayerSpec(mixer, MLP(width, "gelu_tanh", frozenset({"up", "down"})), NORM, NORM), part))
    tensors = {"embedding": embedding, "positions": positions, "output": output}
    tensors |= _norm(inventory, "final_norm", "output_norm", hidden)
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=NORM,
        context=positions.shape[0],
        keys=("vocab_size", "emb_dim", "n_layers"),
        fields={"positions": positions.shape[0]},
    )


def _heads(config: Config, hidden: int) -> int:
    """The number of heads: stated, or the one of the book's model of this hidden size, with a note."""
    if config.values.get("n_heads") is None:
        if hidden not in HEADS_OF:
            raise CheckpointError(
                f"{config.path}: n_heads is missing, and no shape tells it; write the model's cfg into config.json beside the "
                'weights, such as {"n_heads": 12}'
            )
        config.assume("n_heads", HEADS_OF[hidden], f"as the book's model of {hidden} dimensions has")
    heads = config.integer("n_heads")
    if hidden % heads:
        raise CheckpointError(f"{config.path}: n_heads is {heads}, which does not divide the hidden size {hidden}")
    return heads


def _attention(inventory: Inventory, prefix: str, heads: int, hidden: int) -> tuple[Attention, LayerTensors]:
    """Four projections, (hidden, hidden); q, k and v have biases where qkv_bias was true, the output always has."""
    part: LayerTensors = {
        f"attn.{role}": inventory.take(f"{prefix}{name}.weight", hidden, hidden) for role, name in PROJECTIONS.items()
    }
    bias = frozenset(role for role, name in PROJECTIONS.items() if f"{prefix}{name}.bias" in inventory)
    part |= {f"attn.{role}_bias": inventory.take(f"{prefix}{PROJECTIONS[role]}.bias", hidden) for role in bias}
    return Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, rope=None, bias=bias), part


def _norm(inventory: Inventory, name: str, role: str, hidden: int) -> dict[str, Tensor]:
    """The book's layer norm: `scale` is the weight, `shift` the bias."""
    return {role: inventory.take(f"{name}.scale", hidden), f"{role}_bias": inventory.take(f"{name}.shift", hidden)}


HIDDEN, LAYERS, VOCAB, CONTEXT = 64, 3, 288, 96
_CONFIG: Mapping[str, Any] = {"n_heads": 4, "context_length": CONTEXT, "drop_rate": 0.1}
VARIANTS: Mapping[str, Mapping[str, Any]] = {"plain": {"qkv_bias": False}, "qkv bias": {"qkv_bias": True}}


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint, with the mask that the book's attention keeps as a buffer."""
    config = {**_CONFIG, **VARIANTS[variant]}
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (VOCAB, HIDDEN), "pos_emb.weight": (CONTEXT, HIDDEN)}
    for n in range(LAYERS):
        prefix = f"trf_blocks.{n}."
        for role, name in PROJECTIONS.items():
            shapes[f"{prefix}att.{name}.weight"] = (HIDDEN, HIDDEN)
            shapes |= {f"{prefix}att.{name}.bias": (HIDDEN,)} if role == "o" or config["qkv_bias"] else {}
        for name, rows, columns in (("0", 4 * HIDDEN, HIDDEN), ("2", HIDDEN, 4 * HIDDEN)):
            shapes |= {f"{prefix}ff.layers.{name}.weight": (rows, columns), f"{prefix}ff.layers.{name}.bias": (rows,)}
        shapes |= {f"{prefix}{norm}.scale": (HIDDEN,) for norm in ("norm1", "norm2")}
        shapes |= {f"{prefix}{norm}.shift.bias": (HIDDEN,) for norm in ("norm1", "norm2")}
    shapes |= {"final_norm.scale": (HIDDEN,), "final_norm.shift.bias": (HIDDEN,), "out_head.weight": (VOCAB, HIDDEN)}
    # Drawn as a bias, under a name that says so.
    drawn = random_tensors(shapes, seed, gain={"tok_emb": 1.0, "pos_emb": 0.5})
    tensors = {name.replace("shift.bias", "shift"): values for name, values in drawn.items()}
    mask = np.triu(np.ones((CONTEXT, CONTEXT), np.float32), 1)
    tensors |= {f"trf_blocks.{n}.att.mask": mask for n in range(LAYERS)}
    write_state_dict(folder / "model.pth", tensors, config=config)
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="rasbt-gpt",
    title="LLMs from scratch (GPTModel)",
    matches=matches,
    build=build,
    preferred_targets=("gpt2",),
    variants=dict.fromkeys(VARIANTS, Expected(target="gpt2", notes=("3 buffers",), oracle=False)),
    tiny=tiny,
)
