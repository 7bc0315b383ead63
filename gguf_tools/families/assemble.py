"""Builds a Model from its layers: `assemble` for the Hugging Face layout, `decoder` for any layout."""

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
    last: str = "model.norm",
    fields: Mapping[str, Any] = {},
    swiglu: bool = True,
) -> Model:
    """A Model from tensors named `model.layers.N.…`; the model adds `offset` to its stored norm weights.

    `norm` replaces the RMS norm that rms_norm_eps describes; `names` are the names of a layer's norms, by role, and `last` that
    of the norm before the output. `fields` are further fields of the spec, such as embedding_scale. With `swiglu`, hidden_act
    must be SiLU; without it, the family reads hidden_act itself. Raises CheckpointError for missing, leftover or misshapen
    tensors and for config values that cannot be used.
    """
    tensors, _ = hf.embeddings(inventory, config)
    hidden = tensors["embedding"].shape[1]
    norm = Norm(config.number("rms_norm_eps"), offset) if norm is None else norm
    tensors |= hf.norm(inventory, last, norm, "output_norm", hidden)
    if "lm_head.bias" in inventory:
        tensors["output_bias"] = inventory.take("lm_head.bias", tensors["embedding"].shape[0])
        fields = {**fields, "output_bias": True}
    layers = []
    for n in range(layer_count(inventory, "model.layers.")):
        prefix = f"model.layers.{n}."
        bare = layer(prefix, hidden, norm)
        own: LayerTensors = {}
        for role, name in names.items():
            own |= hf.norm(inventory, f"{prefix}{name}", getattr(bare.spec, role), role, hidden)
        layers.append(Layer(bare.spec, {**bare.tensors, **own}))
    activation = config.values.get("hidden_act", "silu")
    if swiglu and activation not in ("silu", "swish"):
        raise config.wrong("hidden_act", activation, "silu")
    return decoder(
        checkpoint,
        inventory,
        config,
        family,
        tensors,
        layers,
        norm=norm,
        context=config.integer("max_position_embeddings"),
        keys=("vocab_size", "hidden_size", "num_hidden_layers"),
        fields=fields,
    )


def decoder(
    checkpoint: Checkpoint,
    inventory: Inventory,
    config: Config,
    family: str,
    tensors: Mapping[str, Tensor | None],
    layers: Sequence[Layer],
    *,
    norm: Norm,
    context: int,
    keys: tuple[str, str, str],
    fields: Mapping[str, Any] = {},
) -> Model:
    """A Model from its layers and the `tensors` outside them, by role; where `output` is absent or None, the two ends are tied.

    `norm` is the one before the output, `context` the context length in tokens. `keys` are the config's names for the number
    of tokens, the hidden size and the number of layers: a note says where they contradict the tensors. `fields` are further
    fields of the spec. Raises CheckpointError for tensors that were not taken.
    """
    inventory.finish()
    present = {role: tensor for role, tensor in tensors.items() if tensor is not None}
    vocab, hidden = present["embedding"].shape
    for key, actual in zip(keys, (vocab, hidden, len(layers)), strict=True):
        config.expect(key, actual)
    spec = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=context,
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm,
        tied="output" not in present,
        **fields,
    )
    return finished(checkpoint, config, family, spec, present, layers)


def finished(
    checkpoint: Checkpoint,
    config: Config,
    family: str,
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    layers: Sequence[Layer],
) -> Model:
    """A Model from its spec, the tensors outside the layers, and the layers.

    Adds the config's notes, the front matter of README.md (or a note on why it cannot be read) and the defaults of
    generation_config.json.
    """
    front, notes = front_matter(checkpoint.folder)
    return Model(
        spec=spec,
        tensors=tensors,
        layer_tensors=tuple(layer.tensors for layer in layers),
        family=family,
        notes=(*config.notes, *notes),
        front_matter=front,
        generation=generation_defaults(checkpoint.folder),
    )
