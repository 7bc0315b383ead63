"""Files in a checkpoint's folder other than weights and config: the README's front matter, and the generation defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.text_file import Kind, read_text
from gguf_tools.model.spec import FrontMatter
from gguf_tools.sources.checkpoint import read_json
from gguf_tools.text import one_line

MOST_FRONT_MATTER = 512 << 10
"""Most characters of front matter: more than the longest known (lists of benchmark results); parsing takes seconds at most."""


def generation_defaults(folder: Path) -> Mapping[str, Any]:
    """The content of generation_config.json, empty if there is none. Raises CheckpointError if it is broken."""
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def front_matter(folder: Path) -> tuple[FrontMatter, tuple[str, ...]]:
    """The front matter of README.md, empty if there is none, and a note where there is one that cannot be read.

    The YAML is parsed to nodes but no objects are constructed: only strings and lists of strings under the known keys are read.
    So tags, dates, aliases and merge keys, a few lines of which can expand to gigabytes, have no effect.
    """
    path = folder / "README.md"
    if not os.path.lexists(path):
        return FrontMatter(), ()
    try:
        front = _front_nodes(path)
    except CheckpointError as error:
        return FrontMatter(), (f"{error}; without it, no license, base model, tags or languages are stated",)

    def text_of(key: str) -> str | None:
        return _text(front.get(key))

    def texts_of(key: str) -> tuple[str, ...]:
        value = front.get(key)
        items = map(_text, value.value if isinstance(value, yaml.SequenceNode) else [value])
        return tuple(item for item in items if item is not None)

    found = FrontMatter(
        name=text_of("model_name"),
        license=text_of("license"),
        license_name=text_of("license_name"),
        license_link=text_of("license_link"),
        base_models=texts_of("base_model"),
        datasets=texts_of("datasets"),
        tags=texts_of("tags"),
        languages=texts_of("language"),
    )
    return found, ()


def _front_nodes(path: Path) -> Mapping[str, yaml.Node]:
    """The values of a README's front matter by key, empty if it has none. Raises CheckpointError if it cannot be read."""
    parts = read_text(path, Kind.CARD).replace("\r\n", "\n").split("---\n", 2)
    if parts[0] or len(parts) < 3:
        return {}
    if len(parts[1]) > MOST_FRONT_MATTER:
        raise CheckpointError(
            f"{path}: its front matter has {len(parts[1]):,} characters; expected {MOST_FRONT_MATTER:,} at most"
        )
    try:
        root = yaml.compose(parts[1], Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 2}: " if error.problem_mark else ""
        raise CheckpointError(
            f"{path}: its front matter is not valid YAML ({line}{error.problem}); correct it"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        reason = one_line(str(error))
        raise CheckpointError(f"{path}: its front matter is not valid YAML ({reason}); correct it") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: its front matter is nested too deeply; correct it") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise CheckpointError(f"{path}: its front matter has no keys; expected lines such as license: mit")
    pairs = root.value if root is not None else []
    return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}


def _text(node: object) -> str | None:
    """The value of a YAML string node; None for numbers, dates, booleans and non-scalars."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        return None
    return str(node.value)
