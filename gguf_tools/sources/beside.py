"""What lies beside a checkpoint's weights: the README's front matter and the generation defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gguf_tools.model.spec import FrontMatter
from gguf_tools.sources.checkpoint import read_json


def generation_defaults(folder: Path) -> Mapping[str, Any]:
    """generation_config.json where there is one."""
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def front_matter(folder: Path) -> FrontMatter:
    """What README.md's front matter says; an empty one where there is none or it cannot be read."""
    path = folder / "README.md"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return FrontMatter()
    parts = text.split("---\n", 2)
    if not text.startswith("---\n") or len(parts) < 3:
        return FrontMatter()
    try:
        front = yaml.safe_load(parts[1])
    except (yaml.YAMLError, RecursionError):
        return FrontMatter()
    if not isinstance(front, dict):
        return FrontMatter()

    def text_of(key: str) -> str | None:
        value = front.get(key)
        return value if isinstance(value, str) else None

    def texts_of(key: str) -> tuple[str, ...]:
        value = front.get(key)
        items = value if isinstance(value, list) else [value]
        return tuple(item for item in items if isinstance(item, str))

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
