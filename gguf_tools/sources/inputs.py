"""Which files a source consists of, and which of them may be read: what a command must not overwrite, and what must not change
meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf.split import sibling_parts

WEIGHTS = re.compile(r".+\.(safetensors|bin|pt|pth|ckpt)")
BESIDE = re.compile(
    r"(config|params|generation_config|tokenizer|special_tokens|added_tokens|chat_template|vocab|merges|README|tinyq-recipe|.+\.index)"
    r".*\.(json|jinja|txt|model|md|toml)"
)
"""Files beside the weights that say what they are."""
TEMPLATES = "additional_chat_templates"


def source_files(path: Path) -> tuple[Path, ...]:
    """The files that opening `path` may read, and the folder itself where it is one.

    Of a folder weights, config, tokenizer, card and recipe; of a GGUF all parts; of another file of weights also what lies
    beside it. Files of other kinds, such as a GGUF made before in the same folder, are not of the source.
    """
    if path.is_dir():
        return (path, *_of_folder(path, weights=True))
    if path.suffix == ".gguf":
        return sibling_parts(path)
    return (path, *(beside_files(path) if WEIGHTS.fullmatch(path.name) else ()))


def beside_files(path: Path) -> list[Path]:
    """The files that say what the weights of a folder, or of a file, are."""
    return described_by(path if path.is_dir() else path.parent)


def described_by(folder: Path) -> list[Path]:
    """Config, tokenizer, card and the like in a folder; none where there is no such folder."""
    return _of_folder(folder, weights=False)


def _of_folder(folder: Path, *, weights: bool) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
        more = sorted(os.listdir(folder / TEMPLATES)) if TEMPLATES in names else []
    except OSError:  # reading the source says what is wrong
        return []
    found = [folder / name for name in names if BESIDE.fullmatch(name) or (weights and WEIGHTS.fullmatch(name))]
    return [*found, *(folder / TEMPLATES / name for name in more)]


def refuse_links_out(folder: Path, files: Iterable[Path]) -> None:
    """Raise CheckpointError for a file that leads out of its checkpoint's folder through a symbolic link.

    Allowed is what Hugging Face's cache does: `MODEL/snapshots/REVISION/file` leads to `MODEL/blobs/HASH`.
    """
    home = os.path.realpath(folder)
    for path in files:
        real = os.path.realpath(path)
        if os.path.commonpath((home, real)) != home and not _is_blob(home, real):
            raise CheckpointError(
                f"{path}: is a symbolic link that leads out of the folder, to {real}; copy that file into the folder"
            )


def _is_blob(home: str, real: str) -> bool:
    above = Path(home).parents
    snapshots = next((parent for parent in (Path(home), *above) if parent.parent.name == "snapshots"), None)
    return snapshots is not None and Path(real).parent == snapshots.parent.parent / "blobs"
