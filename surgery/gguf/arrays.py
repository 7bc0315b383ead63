"""Metadata with a value for each layer."""

from __future__ import annotations

import re
from typing import Any

from gguf_tools.formats.gguf.header import GGUFHeader
from surgery.algebra import Half

NOT_PER_LAYER = re.compile(r"rope\.dimension_sections|target_layers|ple\..*|adapters\..*|.*\.output_labels")
"""Arrays that are not per layer but may have as many entries as there are layers."""
PER_LAYER = {
    "attention.compress_ratios": 0,
    "attention.indexer.types": 0,
    "attention.rope_pattern": 1,
    "attention.sliding_window_pattern": 0,
    "deepstack_mapping": -1,
}
"""Arrays that llama.cpp reads by a layer's index whatever their length; what it takes for the entries that lack."""
FFN_KEYS = ("feed_forward", "expert", "swiglu", "xielu", "moe_")
"""Prefixes of the keys of per-layer metadata that belongs to the feed-forward."""
UNPREFIXED = "xielu."
"""The beginning of keys that have no architecture before them."""


def per_layer(header: GGUFHeader, arch: str, trunk: int, count: int) -> dict[str, tuple[Any, ...]]:
    """The arrays with an entry for each layer: those as long as the layers or blocks, and those read by index."""
    found = {}
    for key in header.metadata:
        name = key.removeprefix(f"{arch}.")
        if (name == key and not key.startswith(UNPREFIXED)) or NOT_PER_LAYER.fullmatch(name):
            continue
        value = header.get(key)
        if not isinstance(value, tuple) or not value:
            continue
        if name in PER_LAYER and len(value) < trunk:
            value = (*value, *[type(value[0])(PER_LAYER[name])] * (trunk - len(value)))
        if len(value) in (trunk, count) or name in PER_LAYER:
            found[name] = value
    return found


def half_of_key(key: str) -> Half:
    """The half of a layer to which a key of per-layer metadata (without prefix) belongs."""
    return "ffn" if key.startswith(FFN_KEYS) else "attention"
