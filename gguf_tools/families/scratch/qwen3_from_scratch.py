"""The from-scratch Qwen3 for TinyStories (ideaweaver-ai/qwen3-from-scratch): a state dict without a config.

Sizes follow from the shapes, the rest from the published code: half-split (NeoX) rope on all dimensions with theta 10000;
epsilon 1e-6; embeddings multiplied by √hidden.
"""

from __future__ import annotations

from pathlib import Path

from gguf_tools.errors import CheckpointError
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_state_dict, write_tiny_tokenizer
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, GatedMLP, Layer, LayerSpec, LayerTensors, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint

NORM = Norm(1e-6)
THETA = 10000.0
CONTEXT = 32768
PROJECTIONS = {"q": "W_query", "k": "W_key", "v": "W_value", "o": "out_proj"}


def matches(checkpoint: Checkpoint) -> bool:
    """Tensors named `tok_emb` and `W_query`, with q_norm."""
    names = checkpoint.tensors
    return (
        "tok_emb.weight" in names
        and "blocks.0.attention.W_query.weight" in names
        and ("blocks.0.attention.q_norm.weight" in names)
    )


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    config.assume("max_position_embeddings", CONTEXT, "as the published code does; --context-length overrides it")
    embedding = inventory.take("tok_emb.weight", None, None)
    vocab, hidden = embedding.shape
    tensors = {
        "embedding": embedding,
        "output_norm": inventory.take("final_norm.weight", hidden),
        "output": inventory.take("out_head.weight", vocab, hidden),
    }
    layers = []
    for n in range(layer_count(inventory, "blocks.")):
        prefix = f"blocks.{n}."
        mixer, part = _attention(inventory, f"{prefix}attention.", hidden)
        gate = inventory.take(f"{prefix}feed_forward.gate_proj.weight", None, hidden)
        width = gate.shape[0]
        part |= {
            "ffn.gate": gate,
            "ffn.up": inventory.take(f"{prefix}feed_forward.up_proj.weight", width, hidden),
            "ffn.down": inventory.take(f"{prefix}feed_forward.down_proj.weight", hidden, width),
            "mixer_norm": inventory.take(f"{prefix}norm1.weight", hidden),
            "ffn_norm": inventory.take(f"{prefix}norm2.weight", hidden),
        }
        layers.append(Layer(LayerSpec(mixer, GatedMLP(width), NORM, NORM), part))
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=NORM,
        context=config.integer("max_position_embeddings"),
        keys=("vocab_size", "emb_dim", "n_layers"),
        fields={"embedding_scale": hidden**0.5},
    )


def _attention(inventory: Inventory, prefix: str, hidden: int) -> tuple[Attention, LayerTensors]:
    """Attention from W_query (heads * head_dim, hidden), W_key and W_value (kv_heads * head_dim, hidden).

    head_dim is the length of q_norm.
    """
    q_norm = inventory.take(f"{prefix}q_norm.weight", None)
    dim = q_norm.shape[0]
    q_rows, k_rows = (inventory.shape(f"{prefix}{PROJECTIONS[name]}.weight")[0] for name in ("q", "k"))
    heads, kv_heads = q_rows // dim, k_rows // dim
    if q_rows % dim or k_rows % dim or heads % kv_heads or dim % 2:
        raise CheckpointError(
            f"{inventory.path}: {prefix}W_query and W_key have {q_rows} and {k_rows} rows, which do not divide into heads "
            f"of {dim} (the length of q_norm) in equal groups"
        )
    rows = {"q": q_rows, "k": k_rows, "v": k_rows}
    part = {
        f"attn.{name}": inventory.take(f"{prefix}{PROJECTIONS[name]}.weight", count, hidden)
        for name, count in rows.items()
    }
    part |= {
        "attn.o": inventory.take(f"{prefix}{PROJECTIONS['o']}.weight", hidden, q_rows),
        "attn.q_norm": q_norm,
        "attn.k_norm": inventory.take(f"{prefix}k_norm.weight", dim),
    }
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=Rope(THETA, dim), qk_norm=NORM), part


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint with tokenizer files, which the published one does not have."""
    hidden, heads, kv_heads, vocab, layers, width = 40, 4, 1, 288, 3, 56
    dim = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (vocab, hidden)}
    for n in range(layers):
        prefix = f"blocks.{n}."
        shapes |= {
            f"{prefix}attention.W_query.weight": (hidden, hidden),
            f"{prefix}attention.W_key.weight": (kv_heads * dim, hidden),
            f"{prefix}attention.W_value.weight": (kv_heads * dim, hidden),
            f"{prefix}attention.out_proj.weight": (hidden, hidden),
            f"{prefix}attention.q_norm.weight": (dim,),
            f"{prefix}attention.k_norm.weight": (dim,),
            f"{prefix}feed_forward.gate_proj.weight": (width, hidden),
            f"{prefix}feed_forward.up_proj.weight": (width, hidden),
            f"{prefix}feed_forward.down_proj.weight": (hidden, width),
            f"{prefix}norm1.weight": (hidden,),
            f"{prefix}norm2.weight": (hidden,),
        }
    shapes |= {"final_norm.weight": (hidden,), "out_head.weight": (vocab, hidden)}
    # Embeddings are small, as in the trained model, because the model multiplies them by √hidden.
    tensors = random_tensors(shapes, seed, gain={"tok_emb": 0.8})
    write_state_dict(folder / "best_model_params.pt", tensors, dtype="BF16" if variant == "bf16" else "F32")
    write_tiny_tokenizer(folder, vocab)


_EXPECTED = Expected(
    target="qwen3",
    rewrites=("embedding scale folded into the embeddings",),
    notes=("does not give max_position_embeddings",),
    oracle=False,
)
FAMILY = Family(
    name="qwen3-from-scratch",
    title="Qwen3 from scratch (TinyStories)",
    matches=matches,
    build=build,
    variants=dict.fromkeys(("plain", "bf16"), _EXPECTED),
    tiny=tiny,
)
