"""The `general.*` metadata: the model's name, size, license, base models and default sampling parameters.

Source: `gguf-py/gguf/constants.py` and `metadata.py` of llama.cpp for the keys and their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf.utility import size_label

from gguf_tools.formats.gguf.header import Metadata, ValueType, array, f32, i32, string, u32
from gguf_tools.model.spec import FrontMatter, Model, MoE
from gguf_tools.sources.hub import cached_name

HUB_PAGES = "https://huggingface.co/"
"""Where the page of a repository is, by its name."""
FOLDER_NAMES_THAT_SAY_NOTHING = {"hf", "checkpoint", "model", "final", "output", "latest", "."}

SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Keys of generation_config.json → keys under general.sampling."""


def general_metadata(model: Model, folder: Path, architecture: str) -> Metadata:
    """All `general.*` keys for a model whose source is in `folder`."""
    front = model.front_matter
    values: Metadata = {
        "general.architecture": string(architecture),
        "general.type": string("model"),
        "general.name": string(front.name or _folder_name(folder)),
        "general.size_label": string(_size_label(model)),
    }
    for key in ("license", "license_name", "license_link"):
        value = getattr(front, key)
        if value:
            values["general." + key.replace("_", ".")] = string(value)
    if front.tags:
        values["general.tags"] = array(ValueType.STRING, front.tags)
    if front.languages:
        values["general.languages"] = array(ValueType.STRING, front.languages)
    return values | _ancestry(front) | _sampling(model.generation)


def _folder_name(folder: Path) -> str:
    if on_hub := cached_name(folder):
        return on_hub.repository.partition("/")[2]
    whole = folder.resolve()
    names = [whole.name, whole.parent.name]
    return next((name for name in names if name and name.lower() not in FOLDER_NAMES_THAT_SAY_NOTHING), whole.name)


def _size_label(model: Model) -> str:
    experts = [layer.feed_forward for layer in model.spec.layers if isinstance(layer.feed_forward, MoE)]
    routed = sum(3 * moe.experts * moe.width * model.spec.hidden for moe in experts)
    count = experts[0].experts if experts else 0
    return str(size_label(model.parameters, model.parameters - routed, routed // max(count, 1), count))


def _ancestry(front: FrontMatter) -> Metadata:
    """Base models and data sets, under the keys that llama.cpp's converters write."""
    values: Metadata = {}
    for kind, entries in (("base_model", front.base_models), ("dataset", front.datasets)):
        if entries:
            values[f"general.{kind}.count"] = u32(len(entries))
        for n, entry in enumerate(entries):
            organization, _, name = entry.rpartition("/")
            values[f"general.{kind}.{n}.name"] = string(re.sub(r"[-_]+", " ", name))
            if organization:
                values[f"general.{kind}.{n}.organization"] = string(re.sub(r"[-_]+", " ", organization))
                values[f"general.{kind}.{n}.repo_url"] = string(f"{HUB_PAGES}{entry}")
    return values


def _sampling(generation: Mapping[str, Any]) -> Metadata:
    """The sampling defaults of generation_config.json, under the keys from which llama.cpp's tools read their defaults."""
    values: Metadata = {}
    for key, name in SAMPLING.items():
        value = generation.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1 << 31:
            continue  # null, or not a number that a sampler could use
        values[f"general.sampling.{name}"] = i32(int(value)) if key == "top_k" else f32(value)
    return values
