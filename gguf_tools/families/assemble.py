"""Putting a model in Hugging Face layout together from its layers, and reading what lies beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gguf_tools.checkpoint import Checkpoint, read_json
from gguf_tools.families import hf
from gguf_tools.families.base import Config, Inventory, layer_count
from gguf_tools.spec import Card, LayerSpec, Model, ModelSpec, Norm

LayerBuilder = Callable[[str, int, Norm], tuple[LayerSpec, hf.Part]]
"""(prefix of the layer's tensors, hidden size, norm) → the layer without its two norms' tensors."""


def assemble(
    checkpoint: Checkpoint,
    inventory: Inventory,
    config: Config,
    family: str,
    layer: LayerBuilder,
    *,
    offset: float = 0.0,
) -> Model:
    """A Model from `model.layers.N.…`; `offset` is what the family adds to its norm weights."""
    tensors, tied = hf.embeddings(inventory, config)
    vocab, hidden = tensors["embedding"].shape
    norm = Norm(config.number("rms_norm_eps"), offset)
    count = layer_count(inventory, "model.layers.")
    config.expect("num_hidden_layers", count)
    layers = []
    for n in range(count):
        prefix = f"model.layers.{n}."
        spec, part = layer(prefix, hidden, norm)
        part["mixer_norm"] = inventory.take(f"{prefix}input_layernorm.weight", hidden)
        part["ffn_norm"] = inventory.take(f"{prefix}post_attention_layernorm.weight", hidden)
        tensors |= {f"layers.{n}.{name}": tensor for name, tensor in part.items()}
        layers.append(spec)
    inventory.finish()
    activation = config.values.get("hidden_act", "silu")
    if activation != "silu":
        raise config.wrong("hidden_act", activation, "silu")
    spec_whole = ModelSpec(vocab, hidden, config.integer("max_position_embeddings"), tuple(layers), norm, tied)
    return Model(
        spec_whole,
        tensors,
        family,
        tuple(config.notes),
        model_card(checkpoint.folder),
        generation_defaults(checkpoint.folder),
    )


def generation_defaults(folder: Path) -> Mapping[str, Any]:
    """generation_config.json where there is one."""
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def model_card(folder: Path) -> Card:
    """What README.md's front matter says; an empty card where there is none or it cannot be read."""
    path = folder / "README.md"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return Card()
    parts = text.split("---\n", 2)
    if not text.startswith("---\n") or len(parts) < 3:
        return Card()
    try:
        front = yaml.safe_load(parts[1])
    except (yaml.YAMLError, RecursionError):
        return Card()
    if not isinstance(front, dict):
        return Card()

    def text_of(key: str) -> str | None:
        value = front.get(key)
        return value if isinstance(value, str) else None

    def texts_of(key: str) -> tuple[str, ...]:
        value = front.get(key)
        items = value if isinstance(value, list) else [value]
        return tuple(item for item in items if isinstance(item, str))

    return Card(
        name=text_of("model_name"),
        license=text_of("license"),
        license_name=text_of("license_name"),
        license_link=text_of("license_link"),
        base_models=texts_of("base_model"),
        datasets=texts_of("datasets"),
        tags=texts_of("tags"),
        languages=texts_of("language"),
    )
