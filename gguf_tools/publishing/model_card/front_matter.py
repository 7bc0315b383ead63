"""A model card's front matter: the YAML block that the hub reads.

Source: the hub's documentation of model cards (`modelcard.md` of huggingface/hub-docs) for the keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from gguf_tools.conversion.general_metadata import HUB_PAGES
from gguf_tools.formats.gguf import keys
from gguf_tools.publishing.model_card.accepted import accepted
from gguf_tools.publishing.model_card.facts import CardFacts
from gguf_tools.text import one_line

_DATASET = re.compile(r"general\.dataset\.\d+\.repo_url")


def front_matter(facts: CardFacts) -> str:
    """The YAML block with its `---` lines; keys without a known value, or with one that the hub refuses, are omitted."""
    kept, _ = checked_front_matter(facts)
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def checked_front_matter(facts: CardFacts) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of the YAML block, and a sentence on each value of the source that the hub would refuse."""
    general = facts.metadata
    values: dict[str, Any] = {
        "license": _text(general, "license"),
        "license_name": _text(general, "license.name"),
        "license_link": _text(general, "license.link"),
        "language": _list(general, "languages"),
        "base_model": list(facts.base_models) if len(facts.base_models) != 1 else facts.base_models[0],
        "base_model_relation": _relation(facts),
        "datasets": _datasets(general),
        "model_name": one_line(facts.name),
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "quantized_by": facts.quantized_by,
        "tags": _tags(facts),
    }
    return accepted(values)


def _relation(facts: CardFacts) -> str | None:
    """Whether the base model was only quantized, not changed by surgery or adapters."""
    changed = facts.operated or any(keys.ADAPTERS in file.provenance for file in facts.files)
    return "quantized" if facts.base_models and not changed else None


def _datasets(general: Mapping[str, Any]) -> list[str]:
    """The ids of the data sets that were recorded with their owners."""
    urls = [value for key, value in general.items() if _DATASET.fullmatch(key) and isinstance(value, str)]
    return [url.removeprefix(HUB_PAGES).removeprefix("datasets/") for url in urls if url.startswith(HUB_PAGES)]


def _tags(facts: CardFacts) -> list[str]:
    architecture = facts.files[0].measured.model.arch
    own = ["gguf", architecture, *(["layer-surgery"] if facts.operated else []), "tinyq"]
    return list(dict.fromkeys([*own, *_list(facts.metadata, "tags")]))


def _text(general: Mapping[str, Any], key: str) -> str | None:
    value = general.get(f"general.{key}")
    return one_line(value) if isinstance(value, str) else None


def _list(general: Mapping[str, Any], key: str) -> list[str]:
    value = general.get(f"general.{key}")
    items = value if isinstance(value, tuple) else ()
    return [text for item in items if isinstance(item, str) and (text := one_line(item))]
