"""Files in a checkpoint's folder other than weights and config: the README's front matter, and the generation defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.text_file import Kind, read_text
from gguf_tools.model.spec import FrontMatter
from gguf_tools.sources.checkpoint import read_json

MOST_FRONT_MATTER = 512 << 10
"""Most characters of front matter: more than the longest known (lists of benchmark results); parsing takes seconds at most."""


def generation_defaults(folder: Path) -> Mapping[str, Any]:
    """The content of generation_config.json, empty if there is none. Raises CheckpointError if it is broken."""
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def front_matter(folder: Path) -> FrontMatter:
    """The front matter of README.md; empty if there is none or it cannot be read.

    The YAML is parsed to nodes but no objects are constructed: only strings and lists of strings under the known keys are read.
    So tags, dates, aliases and merge keys, a few lines of which can expand to gigabytes, have no effect.
    """
    try:
        text = read_text(folder / "README.md", Kind.CARD)
    except CheckpointError:
        return FrontMatter()
    parts = text.replace("\r\n", "\n").split("---\n", 2)
    if parts[0] or len(parts) < 3 or len(parts[1]) > MOST_FRONT_MATTER:
        return FrontMatter()
    try:
        root = yaml.compose(parts[1], Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return FrontMatter()
    if not isinstance(root, yaml.MappingNode):
        return FrontMatter()
    front = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}

    def text_of(key: str) -> str | None:
        return _text(front.get(key))

    def texts_of(key: str) -> tuple[str, ...]:
        value = front.get(key)
        items = map(_text, value.value if isinstance(value, yaml.SequenceNode) else [value])
        return tuple(item for item in items if item is not None)

    return FrontMatter(
        name=text_of("model_name"),
        license=text_of("license"),
        license_name=text_of("license_name"),
        license_link=text_of("license_link"),
        base_models=texts_of("base_model"),
        datasets=texts_of("datasets"),
        tags=texts_of("tags"),
        languages=texts_of("language"),
    )


def _text(node: object) -> str | None:
    """The value of a YAML string node; None for numbers, dates, booleans and non-scalars."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        return None
    return str(node.value)
