"""Symbolic links in a folder that came from a stranger: which of them may be followed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gguf_tools.errors import CheckpointError


def refuse_links_out(folder: Path, files: Iterable[Path]) -> None:
    """Raise CheckpointError for a file that is, by a symbolic link, outside its folder.

    The layout of Hugging Face's cache is allowed: `MODEL/snapshots/REVISION/file` links to `MODEL/blobs/HASH`.
    """
    home = os.path.realpath(folder)
    for path in files:
        real = os.path.realpath(path)
        if os.path.commonpath((home, real)) != home and not _is_blob(home, real):
            raise CheckpointError(
                f"{path}: is a symbolic link to {real}, outside the folder; copy that file into the folder"
            )


def _is_blob(home: str, real: str) -> bool:
    above = Path(home).parents
    snapshots = next((parent for parent in (Path(home), *above) if parent.parent.name == "snapshots"), None)
    return snapshots is not None and Path(real).parent == snapshots.parent.parent / "blobs"
