"""The files that make up a source: a command must not overwrite them, and they must not change while it runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gguf_tools.formats.gguf.split import sibling_parts

WEIGHTS = re.compile(r".+\.(safetensors|bin|pt|pth|ckpt)")
BESIDE = re.compile(
    r"(config|params|model_config|generation_config|quantize_config|quant_config|adapter_config|tokenizer|special_tokens"
    r"|added_tokens|chat_template"
    r"|vocab|merges|meta|golden|README|tinyq|.+\.index)"
    r".*\.(json|jinja|txt|model|pkl|md|toml|yaml)"
)
"""Names of files that describe the weights in their folder: config, tokenizer, README, index, surgery recipe,
description."""
TEMPLATES = "additional_chat_templates"


def source_files(path: Path) -> tuple[Path, ...]:
    """The paths that opening `path` may read; for a folder, also the folder itself.

    For a folder: weights, config, tokenizer, model card and recipe; for a GGUF: all shards; for another file of weights: the
    describing files of its folder too. Other files, such as a GGUF written to the same folder, do not belong to the source.
    """
    if path.is_dir():
        return (path, *_of_folder(path, weights=True))
    if path.suffix == ".gguf":
        return sibling_parts(path)
    return (path, *(beside_files(path) if WEIGHTS.fullmatch(path.name) else ()))


def beside_files(path: Path) -> list[Path]:
    """The files that describe the weights of a folder, or of a file of weights."""
    return described_by(path if path.is_dir() else path.parent)


def described_by(folder: Path) -> list[Path]:
    """The describing files (config, tokenizer, model card …) in a folder; none if it does not exist."""
    return _of_folder(folder, weights=False)


def _of_folder(folder: Path, *, weights: bool) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
        more = sorted(os.listdir(folder / TEMPLATES)) if TEMPLATES in names else []
    except OSError:  # opening the source reports the error
        return []
    found = [folder / name for name in names if BESIDE.fullmatch(name) or (weights and WEIGHTS.fullmatch(name))]
    return [*found, *(folder / TEMPLATES / name for name in more)]
