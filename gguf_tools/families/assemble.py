"""Builds a Model from its layers: `assemble` for the Hugging Face layout, `finished` for any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gguf_tools.families import hf
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.model.spec import Layer, LayerTensors, Model, ModelSpec, Norm
from gguf_tools.sources.beside import front_matter, generation_defaults
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor

NORM_NAMES = {"mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
LayerBuilder = Callable[[str, int, Norm], Layer]
"""(prefix of the layer's tensors, hidden size, norm) → the layer, without the tensors of its two norms."""


def assemble(
    checkpoint: Checkpoint,
    inventory: Inventory,
    config: ClassConfig,
    family: str,
    layer: LayerBuilder,
    *,
    offset: float = 0.0,
    norm: Norm | None = None,
    names: Mapping[str, str] = NORM_NAMES,
    fields: Mapping[str, Any] = {},
    swiglu: bool = True,
) -> Model:
    """A Model from tensors named `model.layers.N.…`; the model adds `offset` to its stored norm weights.

    `norm` replaces the RMS norm that rms_norm_eps describes; `names` are the names of a layer's norms, by role. `fields` are
    further fields of the spec, such as embedding_scale. With `swiglu`, hidden_act must be SiLU; without it, the family reads
    hidden_act itself. Raises CheckpointError for missing, leftover or misshapen tensors and for config values that cannot be
    used.
    """
    tensors, tied = hf.embeddings(inventory, config)
    vocab, hidden = tensors["embedding"].shape
    norm = Norm(config.number("rms_norm_eps"), offset) if norm is None else norm
    tensors |= hf.norm(inventory, "model.norm", norm, "output_norm", hidden)
    count = layer_count(inventory, "model.layers.")
    config.expect("num_hidden_layers", count)
    layers = []
    for n in range(count):
        prefix = f"model.layers.{n}."
        bare = layer(prefix, hidden, norm)
        own: LayerTensors = {}
        for role, name in names.items():
            own |= hf.norm(inventory, f"{prefix}{name}", getattr(bare.spec, role), role, hidden)
        layers.append(Layer(bare.spec, {**bare.tensors, **own}))
    inventory.finish()
    activation = config.values.get("hidden_act", "silu")
    if swiglu and activation not in ("silu", "swish"):
        raise config.wrong("hidden_act", activation, "silu")
    spec = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=config.integer("max_position_embeddings"),
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm,
        tied=tied,
        **fields,
    )
    return finished(checkpoint, config, family, spec, tensors, layers)


def finished(
    checkpoint: Checkpoint,
    config: Config,
    family: str,
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    layers: Sequence[Layer],
) -> Model:
    """A Model from its spec, the tensors outside the layers, and the layers.

    Adds the config's notes, the front matter of README.md and the defaults of generation_config.json.
    """
    return Model(
        spec=spec,
        tensors=tensors,
        layer_tensors=tuple(layer.tensors for layer in layers),
        family=family,
        notes=tuple(config.notes),
        front_matter=front_matter(checkpoint.folder),
        generation=generation_defaults(checkpoint.folder),
    )
