"""Builds a Model from its layers: `assemble` for the Hugging Face layout, `finished` for any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gguf_tools.families import hf
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.model.spec import Layer, Model, ModelSpec, Norm
from gguf_tools.sources.beside import front_matter, generation_defaults
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor

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
    scales: Mapping[str, float] = {},
    swiglu: bool = True,
) -> Model:
    """A Model from tensors named `model.layers.N.…`; the model adds `offset` to its stored norm weights.

    `scales` are further fields of the spec, such as embedding_scale. With `swiglu`, hidden_act must be SiLU; without it, the
    family reads hidden_act itself. Raises CheckpointError for missing, leftover or misshapen tensors and for config values
    that cannot be used.
    """
    tensors, tied = hf.embeddings(inventory, config)
    vocab, hidden = tensors["embedding"].shape
    norm = Norm(config.number("rms_norm_eps"), offset)
    count = layer_count(inventory, "model.layers.")
    config.expect("num_hidden_layers", count)
    layers = []
    for n in range(count):
        prefix = f"model.layers.{n}."
        bare = layer(prefix, hidden, norm)
        mixer_norm = inventory.take(f"{prefix}input_layernorm.weight", hidden)
        ffn_norm = inventory.take(f"{prefix}post_attention_layernorm.weight", hidden)
        layers.append(Layer(bare.spec, {**bare.tensors, "mixer_norm": mixer_norm, "ffn_norm": ffn_norm}))
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
        **scales,
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
