"""The hub's cache on the disk, which huggingface_hub shares: where a commit's files lie, and files that are added to it.

Source: "Understand caching" of huggingface_hub's documentation: `models--ORG--NAME` has `blobs/ETAG`, `refs/REVISION` with a
commit's hash, and `snapshots/COMMIT/PATH`, links to the blobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from gguf_tools.sources.hub.client import HubError
from gguf_tools.sources.hub.file import HubFile
from gguf_tools.sources.hub.names import HubName
from gguf_tools.sources.hub.window import in_order
from gguf_tools.text import human_bytes

PART = ".tinyq-part"
"""How the name of a blob ends that is not complete."""
PIECE = 1 << 20


def cache_folder() -> Path:
    """The cache (HF_HUB_CACHE, or `hub` in HF_HOME), made if it does not exist. Raises HubError."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HubError(
            f"{folder}: the hub's cache cannot be written ({error.strerror}); set HF_HOME to a folder that can"
        ) from error
    return folder


def _storage(name: HubName) -> Path:
    return cache_folder() / f"models--{name.repository.replace('/', '--')}"


def snapshot(name: HubName, commit: str) -> Path:
    """The folder of a commit's files in the cache."""
    return _storage(name) / "snapshots" / commit


def cached_commit(name: HubName) -> str | None:
    """The commit that the cache has for a name's revision; None if it has none."""
    if name.is_commit:
        return name.revision if snapshot(name, name.revision).is_dir() else None
    try:
        commit = (_storage(name) / "refs" / name.revision).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if snapshot(name, commit).is_dir() else None


def record_revision(name: HubName, commit: str) -> None:
    """Let the cache know the commit of a branch or tag, for a run without a connection; not one that cannot be written."""
    path = _storage(name) / "refs" / name.revision
    with contextlib.suppress(OSError):
        if name.revision == commit or (path.exists() and path.read_text("ascii") == commit):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        new.write_text(commit, "ascii")
        new.replace(path)


def store(file: HubFile, progress: Callable[[int], None] = lambda _: None) -> None:
    """Download a file into the cache, going on where an earlier download of it ended.

    `progress` receives numbers of bytes, those that are there already too. Raises HubError if the file cannot be downloaded
    or is not what the hub says it is, or the disk has no room.
    """
    from huggingface_hub.utils import WeakFileLock

    file.resolve()
    storage = _storage(file.name)
    blob = storage / "blobs" / str(file.etag)
    lock = storage.parent / ".locks" / storage.name / f"{file.etag}.lock"
    try:
        for folder in (blob.parent, lock.parent, file.local.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                progress(file.size)
            else:
                _complete(file, blob.with_name(blob.name + PART), progress)
                os.replace(blob.with_name(blob.name + PART), blob)
            _link(blob, file.local)
    except OSError as error:
        raise HubError(
            f"{error.filename or storage}: could not be written ({error.strerror}); free some space, or set HF_HOME to a folder "
            "on another disk"
        ) from error


def _complete(file: HubFile, part: Path, progress: Callable[[int], None]) -> None:
    """Append what is missing of a file to `part`, and check the whole. Raises OSError and HubError."""
    digest = hashlib.sha256()
    with part.open("ab+") as stream:
        have = stream.tell()
        if have > file.size:
            stream.truncate(0)
            have = 0
        free = shutil.disk_usage(part.parent).free
        if free < file.size - have:
            raise HubError(
                f"{part.parent}: {file.name} needs {human_bytes(file.size - have)} more, the disk has {human_bytes(free)}; "
                "free some space, or set HF_HOME to a folder on another disk"
            )
        stream.seek(0)
        while data := stream.read(PIECE):
            digest.update(data)
        progress(have)
        for piece in in_order(file, have):
            stream.write(piece)
            stream.flush()
            digest.update(piece)
            progress(len(piece))
        os.fsync(stream.fileno())
    if file.sha256 not in (None, digest.hexdigest()):
        part.unlink()
        raise HubError(
            f"{file.name}: what was downloaded has SHA-256 {digest.hexdigest()}, expected {file.sha256}; run the command again"
        )


def _link(blob: Path, place: Path) -> None:
    """Put a blob at its place in the snapshot: as a link, or itself where the disk has no links."""
    with contextlib.suppress(FileNotFoundError):
        place.unlink()
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:
        os.replace(blob, place)
