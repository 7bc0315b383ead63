"""Gemma3Model of "Build a Large Language Model From Scratch" (rasbt/LLMs-from-scratch, ch05/12_gemma3): bare state dicts.

Gemma 3's arithmetic (embeddings times √hidden, norms around mixer and feed-forward with weights stored minus 1, a gate of GELUs
by tanh, two ropes) under the book's names, with an output projection of its own. What no shape tells has the values of the book's
GEMMA3_CONFIG_270M; a config.json beside the file may hold another `cfg`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.families.scratch import rasbt
from gguf_tools.families.tiny.writing import random_tensors, write_state_dict, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import TIE

KEYS = {
    "vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "hidden_dim", "head_dim", "qk_norm", "n_kv_groups",
    "rope_local_base", "rope_base", "sliding_window", "layer_types", "dtype", "query_pre_attn_scalar",
    "max_position_embeddings", "max_seq_len", TIE,
}  # fmt: skip
"""The book's `cfg`, and the context length that the user may give."""
DEFAULTS = {"rope_local_base": 10000.0, "rope_base": 1000000.0, "sliding_window": 512}
LAYERS_OF_BOOK, EVERY = 18, 6
"""The book's model has 18 layers, of which every sixth has full attention."""
HELD = "as the book's GEMMA3_CONFIG_270M has; config.json beside the file gives another"
NORM = Norm(1e-6, 1.0)
NORMS = {
    "mixer_norm": "input_layernorm", "mixer_post_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def matches(checkpoint: Checkpoint) -> bool:
    """`blocks` with the book's names of projections, and Gemma's four norms."""
    marks = ("att.W_query.weight", "ff.fc3.weight", *(f"{name}.scale" for name in NORMS.values()))
    return all(f"blocks.0.{name}" in checkpoint.tensors for name in marks)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for a key that the book's `cfg` does not have."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    config.refuse_unknown(KEYS, "the book's cfg of Gemma 3")
    context = "context_length" if config.values.get("max_position_embeddings") is None else "max_position_embeddings"
    for key, value in {**DEFAULTS, context: 32768}.items():
        config.assume(key, value, HELD)
    embedding, output = embedding_and_output(inventory, config, "tok_emb.weight", "out_head.weight", by_values=True)
    hidden = embedding.shape[1]
    count = layer_count(inventory, "blocks.")
    kinds = _kinds(config, count)
    layers = [
        _layer(inventory, config, f"blocks.{n}.", hidden, local=kinds[n] != "full_attention") for n in range(count)
    ]
    final = inventory.take("final_norm.scale", hidden)
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        {"embedding": embedding, "output": output, "output_norm": final},
        layers,
        norm=NORM,
        context=config.integer(context),
        keys=("vocab_size", "emb_dim", "n_layers"),
        fields={"embedding_scale": hidden**0.5},
    )


def _kinds(config: Config, count: int) -> list[Any]:
    """The layers' kinds: stated, or those of the book's model where there are as many layers."""
    if config.values.get("layer_types") is None:
        if count != LAYERS_OF_BOOK:
            raise CheckpointError(
                f"{config.path}: layer_types is missing, and no shape tells which layers have a sliding window; write the "
                "model's cfg into config.json beside the weights"
            )
        pattern = ["full_attention" if n % EVERY == EVERY - 1 else "sliding_attention" for n in range(count)]
        config.values = {**config.values, "layer_types": pattern}
        config.note(f"{config.path.name} does not give layer_types: every sixth layer has full attention, {HELD}")
    kinds = config.values["layer_types"]
    usual = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in usual for kind in kinds):
        raise config.wrong("layer_types", kinds, f"a list of {count}, each {' or '.join(usual)}")
    return kinds


def _layer(inventory: Inventory, config: Config, prefix: str, hidden: int, *, local: bool) -> Layer:
    """One layer between its four norms; `local` ones have a sliding window and a rope of their own."""
    key = "rope_local_base" if local else "rope_base"
    theta = config.positive(key)
    mixer, part = rasbt.attention(inventory, config, f"{prefix}att.", hidden, NORM, lambda dim: Rope(theta, dim))
    config.assume("query_pre_attn_scalar", mixer.head_dim, "the size of a head, as in the book's model")
    scalar = config.positive("query_pre_attn_scalar")
    mixer = replace(mixer, scale=scalar**-0.5, window=config.integer("sliding_window") if local else None)
    ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}ff.", hidden, activation="gelu_tanh", names=rasbt.MLP)
    config.expect("hidden_dim", ffn.width)
    part |= ffn_part | {role: inventory.take(f"{prefix}{name}.scale", hidden) for role, name in NORMS.items()}
    return Layer(LayerSpec(mixer, ffn, NORM, NORM, mixer_post_norm=NORM, ffn_post_norm=NORM), part)


HIDDEN, HEADS, KV_HEADS, DIM, WIDTH, VOCAB, LAYERS = 64, 4, 2, 32, 96, 288, 3
_CONFIG: Mapping[str, Any] = {
    "context_length": 96, "sliding_window": 8, "rope_base": 1000000.0, "rope_local_base": 10000.0, "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "n_heads": HEADS, "qk_norm": True,
}  # fmt: skip
_FEW = {"rope_local_base": "10000.0", "rope_base": "1000000.0", "sliding_window": "512", "context_length": "32768"}
CONFIGS: Mapping[str, Mapping[str, Any] | None] = {"with a config": _CONFIG, "no config, tied": None}
VARIANTS: Mapping[str, Expected] = {
    "with a config": Expected(target="gemma3", oracle=False),
    "no config, tied": Expected(
        target="gemma3",
        notes=(
            *(f"does not give {key}: {value} is assumed" for key, value in _FEW.items()),
            "every sixth layer has full attention",
            "does not give query_pre_attn_scalar: 32 is assumed",
            "repeats the embedding",
        ),
        oracle=False,
    ),
}


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint, with a config.json or as bare as the book saves it."""
    rows = {"W_query": HEADS * DIM, "W_key": KV_HEADS * DIM, "W_value": KV_HEADS * DIM}
    mlp = {"fc1": (WIDTH, HIDDEN), "fc2": (WIDTH, HIDDEN), "fc3": (HIDDEN, WIDTH)}
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (VOCAB, HIDDEN)}
    for n in range(LAYERS if CONFIGS[variant] else LAYERS_OF_BOOK):
        prefix = f"blocks.{n}."
        shapes |= {f"{prefix}att.{name}.weight": (count, HIDDEN) for name, count in rows.items()}
        shapes[f"{prefix}att.out_proj.weight"] = (HIDDEN, HEADS * DIM)
        shapes |= {f"{prefix}att.{name}_norm.scale": (DIM,) for name in "qk"}
        shapes |= {f"{prefix}{name}.scale": (HIDDEN,) for name in NORMS.values()}
        shapes |= {f"{prefix}ff.{name}.weight": shape for name, shape in mlp.items()}
    shapes |= {"final_norm.scale": (HIDDEN,), "out_head.weight": (VOCAB, HIDDEN)}
    tensors = random_tensors(shapes, seed, norm_centre=0.2, gain={"tok_emb": 1.0})
    if variant.endswith("tied"):
        tensors["out_head.weight"] = tensors["tok_emb.weight"]
    write_state_dict(folder / "model.pth", tensors, config=CONFIGS[variant])
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="rasbt-gemma3",
    title="LLMs from scratch (Gemma 3)",
    matches=matches,
    build=build,
    preferred_targets=("gemma3",),
    variants=VARIANTS,
    tiny=tiny,
)
