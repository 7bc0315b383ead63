"""Qwen3 and Llama 3 of "Build a Large Language Model From Scratch" (rasbt/LLMs-from-scratch): state dicts without a config.

`ff.fc1` is gate, `fc2` up, `fc3` down; rope is half-split. Qwen3Model (norms with `scale`) has q/k norms, an epsilon of 1e-6
and a base of 1e6; Llama3Model (norms with `weight`) has none, 1e-5 and 500000. A config.json beside the file may hold the
book's `cfg`: Llama 3 needs it, since no shape tells the number of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.reading import Config, Inventory, is_number, layer_count
from gguf_tools.families.scratch import experts
from gguf_tools.families.tiny.writing import random_tensors, write_state_dict, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.rope import Llama3Scaling, Rope
from gguf_tools.model.spec import (
    Attention,
    FeedForward,
    Layer,
    LayerSpec,
    LayerTensors,
    Model,
    Norm,
)
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import TIE

KEYS = {
    "vocab_size", "context_length", "orig_context_length", "emb_dim", "n_heads", "n_layers", "hidden_dim", "head_dim", "qk_norm",
    "n_kv_groups", "rope_base", "rope_freq", "dtype", "num_experts", "num_experts_per_tok", "moe_hidden_dim",
    "moe_intermediate_size", "max_position_embeddings", "max_seq_len", TIE,
}  # fmt: skip
"""The book's `cfg`, and the context length that the user may give."""
PROJECTIONS = {"q": "W_query", "k": "W_key", "v": "W_value"}
MLP = {"gate": "fc1", "up": "fc2", "down": "fc3"}
HELD = "as the book's code does; config.json beside the file gives another"


def matches(checkpoint: Checkpoint) -> bool:
    """`trf_blocks` with grouped-query attention and three matrices in the feed-forward."""
    names = checkpoint.tensors
    experts = "trf_blocks.0.ff.fc1.0.weight" in names
    return "trf_blocks.0.att.W_query.weight" in names and (experts or "trf_blocks.0.ff.fc3.weight" in names)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for a key that the book's `cfg` does not have."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    config.refuse_unknown(KEYS, "the book's cfg of Qwen3 and Llama 3")
    # torch.nn.RMSNorm, which Llama3Model uses, calls its weights `weight`.
    weight = "scale" if "final_norm.scale" in inventory else "weight"
    llama = weight == "weight"
    config.assume("rope_base", 500000.0 if llama else 1e6, HELD)
    context = "context_length" if config.values.get("max_position_embeddings") is None else "max_position_embeddings"
    config.assume(context, 131072 if llama else 40960, HELD)
    embedding, output = embedding_and_output(inventory, config, "tok_emb.weight", "out_head.weight", by_values=True)
    hidden = embedding.shape[1]
    norm = Norm(1e-5 if llama else 1e-6)
    layers = []
    for n in range(layer_count(inventory, "trf_blocks.")):
        prefix = f"trf_blocks.{n}."
        mixer, part = attention(inventory, config, f"{prefix}att.", hidden, norm, partial(_rope, config))
        ffn, ffn_part = _feed_forward(inventory, config, f"{prefix}ff.", hidden)
        part |= ffn_part
        part["mixer_norm"] = inventory.take(f"{prefix}norm1.{weight}", hidden)
        part["ffn_norm"] = inventory.take(f"{prefix}norm2.{weight}", hidden)
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm), part))
    final = inventory.take(f"final_norm.{weight}", hidden)
    tensors = {"embedding": embedding, "output": output, "output_norm": final}
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=norm,
        context=config.integer(context),
        keys=("vocab_size", "emb_dim", "n_layers"),
    )


def attention(
    inventory: Inventory, config: Config, prefix: str, hidden: int, norm: Norm, rope_of: Callable[[int], Rope]
) -> tuple[Attention, LayerTensors]:
    """W_query (heads * head_dim, hidden), W_key and W_value (kv_heads * head_dim, hidden), out_proj the other way.

    `rope_of` gives the rope of heads of so many dimensions.
    """
    rows = {name: inventory.shape(f"{prefix}{PROJECTIONS[name]}.weight")[0] for name in "qk"}
    normed = f"{prefix}q_norm.scale" in inventory
    dim = inventory.shape(f"{prefix}q_norm.scale", 1)[0] if normed else _head_dim(config, rows["q"])
    heads, kv_heads = rows["q"] // dim, rows["k"] // dim
    if rows["q"] % dim or rows["k"] % dim or not kv_heads or heads % kv_heads or dim % 2:
        raise CheckpointError(
            f"{inventory.path}: {prefix}W_query and W_key have {rows['q']} and {rows['k']} rows, which are not whole heads of "
            f"{dim} in whole groups; check n_heads in config.json"
        )
    for key, actual in (("n_heads", heads), ("n_kv_groups", kv_heads), ("head_dim", dim)):
        config.expect(key, actual)
    part: LayerTensors = {
        f"attn.{name}": inventory.take(f"{prefix}{module}.weight", rows["q" if name == "q" else "k"], hidden)
        for name, module in PROJECTIONS.items()
    }
    part["attn.o"] = inventory.take(f"{prefix}out_proj.weight", hidden, rows["q"])
    if normed:
        part |= {f"attn.{name}_norm": inventory.take(f"{prefix}{name}_norm.scale", dim) for name in "qk"}
    spec = Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope_of(dim), qk_norm=norm if normed else None)
    return spec, part


def _head_dim(config: Config, rows: int) -> int:
    """The size of a head by `n_heads`, which has to be stated where no q/k norm shows it."""
    if config.values.get("n_heads") is None:
        raise CheckpointError(
            f"{config.path}: n_heads is missing, and no shape tells it; write the model's cfg into config.json beside the "
            'weights, such as {"n_heads": 32}'
        )
    return rows // config.integer("n_heads") or 1


def _rope(config: Config, dim: int) -> Rope:
    """Rope by `rope_base` and `rope_freq` (Llama 3.1's scaling); the book's code multiplies the base by the ratio of contexts."""
    theta, stated = config.positive("rope_base"), config.mapping("rope_freq")
    original, context = config.values.get("orig_context_length"), config.values.get("context_length")
    if original is not None and context is not None and original != context:
        theta *= config.integer("context_length") / config.integer("orig_context_length")
        config.note(
            f"config.json has orig_context_length {original} beside context_length {context}: the base of rope becomes "
            f"{theta:g}, as the book's code computes it"
        )
    if not stated:
        return Rope(theta, dim)
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_context_length")
    for name in names:
        if not is_number(stated.get(name)) or stated[name] <= 0:
            raise config.wrong(f"rope_freq.{name}", stated.get(name), "a number above 0")
    factor, low, high, length = (stated[name] for name in names)
    return Rope(theta, dim, scaling=Llama3Scaling(float(factor), float(low), float(high), int(length)))


def _feed_forward(inventory: Inventory, config: Config, prefix: str, hidden: int) -> tuple[FeedForward, LayerTensors]:
    """fc1 (gate), fc2 (up) and fc3 (down), or a list of each beside a router."""
    if f"{prefix}gate.weight" not in inventory:
        return experts.dense(inventory, config, prefix, hidden, MLP, "hidden_dim")
    key = "num_experts_per_tok"
    names = {role: f"{name}.{{}}" for role, name in MLP.items()}
    ffn, part = experts.routed(inventory, config, prefix, hidden, names, config.integer(key), key)
    config.expect("num_experts", ffn.experts)
    return ffn, part


HIDDEN, HEADS, KV_HEADS, DIM, WIDTH, VOCAB, LAYERS, EXPERTS = 40, 4, 2, 16, 56, 288, 3, 4
_FREQ = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 64}
CONFIGS: Mapping[str, Mapping[str, Any] | None] = {
    "qwen3": None,
    "qwen3, tied": None,
    "qwen3 moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2, "rope_base": 1e6, "context_length": 96},
    "llama3": {"n_heads": HEADS, "rope_base": 500000.0, "context_length": 96, "rope_freq": _FREQ},
    "llama3, shorter context": {"n_heads": HEADS, "context_length": 96, "orig_context_length": 960},
}
_ASSUMED = ("does not give rope_base", "does not give context_length")
_QWEN3 = Expected(target="qwen3", notes=_ASSUMED, oracle=False)
_LLAMA3 = Expected(target="llama", rewrites=("rope in interleaved pairs",), oracle=False)
VARIANTS: Mapping[str, Expected] = {
    "qwen3": _QWEN3,
    "qwen3, tied": Expected(target="qwen3", notes=(*_ASSUMED, "repeats the embedding"), oracle=False),
    "qwen3 moe": Expected(target="qwen3moe", oracle=False),
    "llama3": _LLAMA3,
    "llama3, shorter context": Expected(
        target="llama", rewrites=_LLAMA3.rewrites, notes=(_ASSUMED[0], "the base of rope becomes 50000"), oracle=False
    ),
}


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint, with a tokenizer's files beside it, which the book keeps elsewhere."""
    llama = variant.startswith("llama3")
    weight = "weight" if llama else "scale"
    dim = HIDDEN // HEADS if llama else DIM
    rows = {"W_query": HEADS * dim, "W_key": KV_HEADS * dim, "W_value": KV_HEADS * dim}
    mlp = {"fc1": (WIDTH, HIDDEN), "fc2": (WIDTH, HIDDEN), "fc3": (HIDDEN, WIDTH)}
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (VOCAB, HIDDEN)}
    for n in range(LAYERS):
        prefix = f"trf_blocks.{n}."
        shapes |= {f"{prefix}att.{name}.weight": (count, HIDDEN) for name, count in rows.items()}
        shapes[f"{prefix}att.out_proj.weight"] = (HIDDEN, HEADS * dim)
        if not llama:
            shapes |= {f"{prefix}att.{name}_norm.scale": (dim,) for name in "qk"}
        shapes |= {f"{prefix}{name}.{weight}": (HIDDEN,) for name in ("norm1", "norm2")}
        if variant == "qwen3 moe":
            shapes[f"{prefix}ff.gate.weight"] = (EXPERTS, HIDDEN)
            shapes |= {f"{prefix}ff.{name}.{e}.weight": shape for name, shape in mlp.items() for e in range(EXPERTS)}
        else:
            shapes |= {f"{prefix}ff.{name}.weight": shape for name, shape in mlp.items()}
    shapes |= {f"final_norm.{weight}": (HIDDEN,), "out_head.weight": (VOCAB, HIDDEN)}
    tensors = random_tensors(shapes, seed, gain={"tok_emb": 1.0, "ff.gate": 2.0})
    if variant == "qwen3, tied":
        tensors["out_head.weight"] = tensors["tok_emb.weight"]
    write_state_dict(folder / "model.pth", tensors, config=CONFIGS[variant])
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="rasbt",
    title="LLMs from scratch (Qwen3, Llama 3)",
    matches=matches,
    build=build,
    preferred_targets=("llama", "qwen3", "qwen3moe"),
    variants=VARIANTS,
    tiny=tiny,
)
