"""Llama in Meta's own layout: `consolidated.NN.pth`, llama2.c's `.pt` and `.bin`, torchtitan, Mistral's consolidated files.

Names of modules as in Meta's `model.py`: w1 is gate, w3 up, w2 down; wq and wk turn interleaved pairs. Of a mixture of experts
(Mixtral) the softmax runs over the selected experts. The config has the fields of `ModelArgs` (params.json, `model_args`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.families.scratch import experts
from gguf_tools.families.tiny.writing import Arrays, random_tensors, write_state_dict, write_tiny_tokenizer
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

READ = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "norm_eps", "rope_theta",
    "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_position_embeddings", "sliding_window", "moe", TIE,
}  # fmt: skip
"""Fields that the model depends on."""
UNUSED = {
    "multiple_of", "ffn_dim_multiplier", "dropout", "max_batch_size", "model_parallel_size", "depth_init", "eos_id",
    "use_flex_attn", "attn_mask_type", "flavor", "name",
}  # fmt: skip
"""Fields that only training or the choice of sizes depends on."""
PROJECTIONS = {"q": "wq", "k": "wk", "v": "wv", "o": "wo"}
MLP = {"gate": "w1", "up": "w3", "down": "w2"}


def matches(checkpoint: Checkpoint) -> bool:
    """`tok_embeddings`, and `wo` in the first layer."""
    names = checkpoint.tensors
    return "tok_embeddings.weight" in names and "layers.0.attention.wo.weight" in names


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for a field of the config that no published code of this layout has."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    _refuse_unknown(config)
    if config.values.get("vocab_size") == -1:  # the code's own default, which the tokenizer replaces
        config.values = {**config.values, "vocab_size": None}
    context = "max_seq_len" if config.values.get("max_seq_len") is not None else "max_position_embeddings"
    for key, value in (("norm_eps", 1e-5), ("rope_theta", 10000.0), (context, _context(config))):
        config.assume(key, value, "as the published code does")
    head = "lm_head.weight" if "lm_head.weight" in inventory else "output.weight"
    embedding, output = embedding_and_output(inventory, config, "tok_embeddings.weight", head, by_values=True)
    hidden = embedding.shape[1]
    norm = Norm(config.number("norm_eps"))
    layers = []
    for n in range(layer_count(inventory, "layers.")):
        prefix = f"layers.{n}."
        mixer, part = _attention(inventory, config, f"{prefix}attention.", hidden)
        ffn, ffn_part = _feed_forward(inventory, config, f"{prefix}feed_forward.", hidden)
        part |= ffn_part
        part["mixer_norm"] = inventory.take(f"{prefix}attention_norm.weight", hidden)
        part["ffn_norm"] = inventory.take(f"{prefix}ffn_norm.weight", hidden)
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm), part))
    tensors = {"embedding": embedding, "output": output, "output_norm": inventory.take("norm.weight", hidden)}
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=norm,
        context=config.integer(context),
        keys=("vocab_size", "dim", "n_layers"),
    )


def _refuse_unknown(config: Config) -> None:
    for key, value in config.values.items():
        if key not in READ | UNUSED and value not in (None, False, 0, -1, "", [], {}):
            raise UnsupportedError(
                f"{config.path}: {key} is {value!r:.60}, a field that Meta's, llama2.c's and torchtitan's Llama do not have, so "
                "that the model may compute something else; save the checkpoint without it if it does not"
            )


def _context(config: Config) -> int:
    """The context that Meta trained with, by what else params.json says: Llama 3.1, 3 and 2."""
    if config.values.get("use_scaled_rope"):
        return 131072
    theta = config.values.get("rope_theta")
    return 8192 if theta == 500000.0 else 32768 if theta == 1000000.0 else 4096


def _attention(inventory: Inventory, config: Config, prefix: str, hidden: int) -> tuple[Attention, LayerTensors]:
    """wq (heads * head_dim, hidden), wk and wv (kv_heads * head_dim, hidden), wo (hidden, heads * head_dim)."""
    # torchtitan's newest modules keep the three in one of their own.
    inner = f"{prefix}qkv_linear." if f"{prefix}qkv_linear.wq.weight" in inventory else prefix
    q_rows, k_rows = (inventory.shape(f"{inner}{name}.weight")[0] for name in ("wq", "wk"))
    heads = config.integer("n_heads")
    dim = config.integer("head_dim", hidden // heads or 1)
    kv_heads = k_rows // dim
    if heads * dim != q_rows or kv_heads * dim != k_rows or not kv_heads or heads % kv_heads or dim % 2:
        raise CheckpointError(
            f"{config.path}: n_heads {heads} and heads of {dim} do not fit {prefix}wq of {q_rows} rows and wk of {k_rows}, "
            "which have to be whole heads of even size in whole groups; give the n_heads of the training, and all shards"
        )
    config.expect("n_kv_heads", kv_heads)
    rows = {"q": q_rows, "k": k_rows, "v": k_rows}
    part: LayerTensors = {
        f"attn.{name}": inventory.take(f"{inner}{PROJECTIONS[name]}.weight", count, hidden)
        for name, count in rows.items()
    }
    part["attn.o"] = inventory.take(f"{prefix}wo.weight", hidden, q_rows)
    theta = config.number("rope_theta")
    if theta <= 0:
        raise config.wrong("rope_theta", theta, "a number above 0")
    scaling = None
    if config.flag("use_scaled_rope", False):
        config.assume("rope_scaling_factor", 8.0, "as Llama 3.1 does; Llama 3.2 has 32: put that into params.json")
        scaling = Llama3Scaling(config.number("rope_scaling_factor"), 1.0, 4.0, 8192)
    window = config.integer("sliding_window") if config.values.get("sliding_window") else None
    rope = Rope(theta, dim, "interleaved", scaling)
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, window=window), part


def _feed_forward(inventory: Inventory, config: Config, prefix: str, hidden: int) -> tuple[FeedForward, LayerTensors]:
    """w1 (gate), w3 (up) and w2 (down); of each expert, where there is a router."""
    if f"{prefix}gate.weight" not in inventory:
        return experts.dense(inventory, config, prefix, hidden, MLP, "hidden_dim")
    key, top_k = "moe.num_experts_per_tok", config.mapping("moe").get("num_experts_per_tok")
    if type(top_k) is not int or top_k < 1:
        raise config.wrong(key, top_k, "a whole number above 0")
    names = {role: f"experts.{{}}.{name}" for role, name in MLP.items()}
    return experts.routed(inventory, config, prefix, hidden, names, top_k, key)


HEADS, KV_HEADS, DIM, HIDDEN, WIDTH, VOCAB, LAYERS, EXPERTS = 4, 2, 12, 48, 64, 288, 3, 4
CONTEXT = 96
_ARGS = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": VOCAB}
_META = {**_ARGS, "multiple_of": 32, "norm_eps": 1e-5}
_LLAMA3 = {**_META, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0}
_MIXTRAL = {**_META, "head_dim": DIM, "hidden_dim": WIDTH, "moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2}}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "meta": _META,
    "llama 3, two shards": _LLAMA3,
    "llama 2, two shards": _META,
    "scaled rope": {**_LLAMA3, "use_scaled_rope": True},
    "mixtral": _MIXTRAL,
    "torchtitan": {**_LLAMA3, "max_seq_len": CONTEXT},
    "llama2.c pt": {**_ARGS, "multiple_of": 32, "max_seq_len": CONTEXT, "dropout": 0.0},
    "llama2.c bin 0": {},
    "llama2.c bin 0, untied": {},
    "llama2.c bin 1": {},
}
"""Each variant's config; a `.bin` has its own."""


_CONTEXT, _THETA = "does not give max_position_embeddings", "does not give rope_theta: 10000.0"
NOTES: Mapping[str, tuple[str, ...]] = {
    "meta": (_THETA, _CONTEXT),
    "llama 3, two shards": (_CONTEXT,),
    "llama 2, two shards": (_THETA, _CONTEXT),
    "scaled rope": (_CONTEXT, "does not give rope_scaling_factor"),
    "mixtral": (_THETA, _CONTEXT),
    **dict.fromkeys(("llama2.c bin 0", "llama2.c bin 0, untied"), ("2 buffers",)),
    "llama2.c pt": (
        "wrapper prefixes",
        "also holds config",
        "norm_eps",
        "rope_theta",
        "output.weight repeats the embedding",
    ),
}


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint in the files that each program writes."""
    config = CONFIGS[variant]
    tensors = random_tensors(_shapes(variant), seed, gain={"tok_embeddings": 1.0, "feed_forward.gate": 2.0})
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_tokenizer(folder, VOCAB)
    if variant.startswith("llama2.c bin"):
        (folder / "model.bin").write_bytes(_bin(tensors, variant))
        return
    if variant == "llama2.c pt":
        both = {**tensors, "output.weight": tensors["tok_embeddings.weight"]}
        names = {f"_orig_mod.{name}": values for name, values in both.items()}
        write_state_dict(folder / "ckpt.pt", names, wrapped={"model_args": dict(config), "config": {"batch_size": 8}})
        return
    (folder / "params.json").write_text(json.dumps(config), "utf-8")
    if variant == "torchtitan":
        write_state_dict(folder / "checkpoint.pt", tensors)
        return
    count = 2 if "two shards" in variant else 1
    for n in range(count):
        shard = {name: _share(name, values, n, count, variant) for name, values in tensors.items()}
        write_state_dict(folder / f"consolidated.{n:02}.pth", shard)


def _shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """The variant's tensors and their shapes."""
    inner = "attention.qkv_linear." if variant == "torchtitan" else "attention."
    keys = KV_HEADS * DIM
    mlp = {"w1": (WIDTH, HIDDEN), "w2": (HIDDEN, WIDTH), "w3": (WIDTH, HIDDEN)}
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (VOCAB, HIDDEN)}
    for n in range(LAYERS):
        prefix = f"layers.{n}."
        shapes |= {f"{prefix}{inner}{name}.weight": (rows, HIDDEN) for name, rows in (("wq", HIDDEN), ("wk", keys))}
        shapes |= {f"{prefix}{inner}wv.weight": (keys, HIDDEN), f"{prefix}attention.wo.weight": (HIDDEN, HIDDEN)}
        shapes |= {f"{prefix}{name}.weight": (HIDDEN,) for name in ("attention_norm", "ffn_norm")}
        if variant == "mixtral":
            shapes[f"{prefix}feed_forward.gate.weight"] = (EXPERTS, HIDDEN)
            experts = [f"{prefix}feed_forward.experts.{e}." for e in range(EXPERTS)]
            shapes |= {f"{expert}{name}.weight": shape for expert in experts for name, shape in mlp.items()}
        else:
            shapes |= {f"{prefix}feed_forward.{name}.weight": shape for name, shape in mlp.items()}
    shapes["norm.weight"] = (HIDDEN,)
    if not variant.startswith("llama2.c") or variant.endswith("untied"):
        shapes["lm_head.weight" if variant == "torchtitan" else "output.weight"] = (VOCAB, HIDDEN)
    return shapes


def _share(name: str, values: NDArray[np.float32], n: int, count: int, variant: str) -> Any:
    """What shard `n` of `count` holds of a tensor: rows, columns, or all of a norm."""
    if values.ndim == 1:
        return values
    narrow = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok_") and variant.startswith("llama 2"))
    return np.ascontiguousarray(np.split(values, count, axis=1 if narrow else 0)[n])


def _bin(tensors: Arrays, variant: str) -> bytes:
    """llama2.c's file of version 0 or 1: the header, then each kind of tensor for all layers."""
    version, tied = int("bin 1" in variant), not variant.endswith("untied")
    sizes = (HIDDEN, WIDTH, LAYERS, HEADS, KV_HEADS, VOCAB if tied or version else -VOCAB, CONTEXT)
    head = struct.pack("<7i", *sizes)
    angles = np.outer(np.arange(CONTEXT), 10000.0 ** -(np.arange(0, DIM, 2) / DIM))
    tables = [np.cos(angles), np.sin(angles)]
    attention = [f"attention.{name}" for name in ("wq", "wk", "wv", "wo")]
    mlp = [f"feed_forward.{name}" for name in ("w1", "w2", "w3")]

    def every(*names: str) -> list[Any]:
        return [tensors[f"layers.{n}.{name}.weight"] for name in names for n in range(LAYERS)]

    embedding, norm = tensors["tok_embeddings.weight"], tensors["norm.weight"]
    if version:
        head = (struct.pack("<2i", 0x616B3432, 1) + head + bytes([tied])).ljust(256, b"\0")
        order = [*every("attention_norm", "ffn_norm"), norm, embedding, *every(*attention, *mlp)]
    else:
        order = [embedding, *every("attention_norm", *attention, "ffn_norm", *mlp), norm, *tables]
    order += [] if tied else [tensors["output.weight"]]
    return head + b"".join(values.astype("<f4").tobytes() for values in order)


FAMILY = Family(
    name="meta-llama",
    title="Llama in Meta's layout, llama2.c, torchtitan",
    matches=matches,
    build=build,
    preferred_targets=("llama", "granite_swa"),
    variants={name: Expected(target="llama", notes=NOTES.get(name, ()), oracle=False) for name in CONFIGS},
    tiny=tiny,
)
