"""Adapts a Hugging Face config to layer surgery: values that refer to single layers follow them.

Keys are those of transformers 5 (`configuration_*.py` of the supported families and of related ones).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.model.spec import Attention, DeltaNet, LayerSpec, Mamba2, ModelSpec, MoE, ShortConv
from surgery.algebra import Half, Stack, origins

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
LEADING_DENSE_KEYS = ("first_k_dense_replace", "num_dense_layers")
"""Keys of the number of layers without experts, which are the first."""
INNER = "text_config"
"""Key of the text model's config in a config with a vision tower."""
NOT_PER_LAYER = re.compile(
    r"architectures|.*_token_id|.*token_ids|mrope_section|auto_map|.*_modules|rope_.*|languages?"
)
"""Lists that are not per layer but may have as many entries as there are layers."""
OF_FFN = re.compile(r".*(mlp|moe|ffn|intermediate|expert|feed_forward).*")


def followed(
    config: Mapping[str, Any],
    old: ModelSpec,
    new: ModelSpec,
    stack: Stack,
    donors: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The config of the model after surgery; `donors` has the configs of the models that layers are taken from.

    Raises InputError if layers have different numbers of experts, UnsupportedError if the config can only express leading
    dense layers and others are dense.
    """
    changed = {
        key: _moved(key, {"": config, **(donors or {})}, stack, new)
        if _per_layer(key, value, len(old.layers))
        else value
        for key, value in config.items()
    }
    for key in COUNT_KEYS:
        if key in config:
            changed[key] = len(new.layers)
    # Keys of transformers, which configs of other code do not have.
    published = "model_type" in config or "num_hidden_layers" in config
    stated = config.get("layer_types")
    kinds = [_kind(layer) for layer in new.layers]
    if not (isinstance(stated, list) and len(stated) == len(old.layers)) and (
        stated or (published and len(set(kinds)) > 1)
    ):
        changed["layer_types"] = kinds
    if "no_rope_layers" in config or "no_rope_layer_interval" in config or (published and _no_rope(old)):
        # no_rope_layer_interval depends on a layer's index, so the layers must be listed.
        changed["no_rope_layers"] = [int(n not in _no_rope(new)) for n in range(len(new.layers))]
    dense = [n for n, layer in enumerate(new.layers) if not isinstance(layer.feed_forward, MoE)]
    if "mlp_only_layers" in config or "decoder_sparse_step" in config:
        # decoder_sparse_step depends on a layer's index, so moved dense layers must be listed.
        changed |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    for key in filter(config.get, LEADING_DENSE_KEYS):
        if dense != list(range(len(dense))):
            raise UnsupportedError(
                f"layer {dense[-1]} would be dense, but {key} in config.json only allows leading dense layers"
            )
        changed[key] = len(dense)
    if "moe_layer_start_index" in config:
        changed |= _span_of_experts(new)
    if "attn_layer_indices" in config:
        changed["attn_layer_indices"] = [n for n, layer in enumerate(new.layers) if isinstance(layer.mixer, Attention)]
    changed |= _expert_counts(config, old, new)
    inner = config.get(INNER)
    if isinstance(inner, dict):
        changed[INNER] = followed(
            inner, old, new, stack, {name: other.get(INNER) or {} for name, other in (donors or {}).items()}
        )
    return changed


def _span_of_experts(spec: ModelSpec) -> dict[str, int]:
    """Ernie's keys for the layers with experts. Raises UnsupportedError if these are not consecutive."""
    routed = [n for n, layer in enumerate(spec.layers) if isinstance(layer.feed_forward, MoE)]
    first, last = (routed[0], routed[-1]) if routed else (len(spec.layers), len(spec.layers))
    dense = set(range(first, last)) - set(routed)
    if dense:
        raise UnsupportedError(
            f"layer {min(dense)} would be dense between layers with experts, but moe_layer_start_index and moe_layer_end_index "
            "in config.json only allow experts in consecutive layers"
        )
    return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": 1}


def _no_rope(spec: ModelSpec) -> set[int]:
    """The numbers of the layers whose attention has no rope."""
    mixers = enumerate(layer.mixer for layer in spec.layers)
    return {n for n, mixer in mixers if isinstance(mixer, Attention) and mixer.rope is None}


def _per_layer(key: str, value: object, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and not NOT_PER_LAYER.fullmatch(key)
        and key != "mlp_only_layers"
    )


def _moved(key: str, configs: Mapping[str, Mapping[str, Any]], stack: Stack, new: ModelSpec) -> list[Any]:
    """The list under `key` for the layers of the stack; UnsupportedError where a layer's source has no such list."""
    half: Half = "ffn" if OF_FFN.fullmatch(key) else "attention"
    values: list[Any] = []
    for layer, spec in zip(stack, new.layers, strict=True):
        origin = origins(layer, half)[0]
        stated = configs[origin.source].get(key)
        if isinstance(stated, list) and origin.index < len(stated):
            values.append(stated[origin.index])
        elif key == "layer_types":
            values.append(_kind(spec))
        else:
            raise UnsupportedError(
                f"config.json of {origin.source} has no list {key} with a value for layer {origin.index}, as the model's has"
            )
    return values


def _kind(layer: LayerSpec) -> str:
    """The layer's value in `layer_types`."""
    if isinstance(layer.mixer, DeltaNet):
        return "linear_attention"
    if isinstance(layer.mixer, ShortConv):
        return "conv"
    if isinstance(layer.mixer, Mamba2):
        return "mamba"
    window = layer.mixer.window if isinstance(layer.mixer, Attention) else None
    return "full_attention" if window is None else "sliding_attention"


def _expert_counts(config: Mapping[str, Any], old: ModelSpec, new: ModelSpec) -> dict[str, int]:
    """The changed keys for the number of experts; InputError if layers would have different numbers."""

    def counts(spec: ModelSpec) -> dict[int, int]:
        moes = ((n, layer.feed_forward) for n, layer in enumerate(spec.layers))
        return {n: moe.experts for n, moe in moes if isinstance(moe, MoE)}

    found = counts(new)
    if not found or (set(found.values()) <= set(counts(old).values()) and len(set(found.values())) == 1):
        return {}
    if len(set(found.values())) > 1:
        few, many = (min(found, key=lambda n: sign * found[n]) for sign in (1, -1))
        raise InputError(
            f"layer {few} would have {found[few]} experts and layer {many} {found[many]}; a config has one count for all "
            f"layers, so drop the same number in each (drop-experts 0..{len(new.layers) - 1}:…)"
        )
    return {key: next(iter(found.values())) for key in EXPERT_KEYS if key in config}
