"""The hub's cache on the disk, which huggingface_hub shares: where a commit's files lie, and files that are added to it.

Source: "Understand caching" of huggingface_hub's documentation: `models--ORG--NAME` has `blobs/ETAG`, `refs/REVISION` with a
commit's hash, and `snapshots/COMMIT/PATH`, links to the blobs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gguf_tools.sources.hub.client import TOLD, HubError
from gguf_tools.sources.hub.file import HubFile
from gguf_tools.sources.hub.names import COMMIT, HubName
from gguf_tools.sources.hub.window import in_order
from gguf_tools.text import human_bytes

PART = ".tinyq-part"
"""How the name of a blob ends that is not complete."""
PIECE = 1 << 20


def cache_folder() -> Path:
    """The cache (HF_HUB_CACHE, or `hub` in HF_HOME), made if it does not exist. Raises HubError."""
    folder = _place()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HubError(
            f"{folder}: the hub's cache cannot be written ({error.strerror}); set HF_HOME to a folder that can"
        ) from error
    return folder


def _place() -> Path:
    """Where the cache is, whether it exists or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _storage(name: HubName) -> Path:
    return _place() / f"models--{name.repository.replace('/', '--')}"


def snapshot(name: HubName, commit: str) -> Path:
    """The folder of a commit's files in the cache."""
    return _storage(name) / "snapshots" / commit


def cached_commit(name: HubName) -> str | None:
    """The commit that the cache has for a name's revision; None if it has none."""
    if name.is_commit:
        return name.revision if snapshot(name, name.revision).is_dir() else None
    commit = _recorded(_storage(name) / "refs" / name.revision)
    return commit if commit and snapshot(name, commit).is_dir() else None


def _recorded(path: Path) -> str | None:
    """The commit's hash in a file of `refs`; None if it cannot be read or has none."""
    try:
        with _regular(path, os.O_RDONLY) as stream:
            text = stream.read(100).decode("ascii").strip()
    except (OSError, ValueError):
        return None
    return text if COMMIT.fullmatch(text) else None


def _regular(path: Path, flags: int) -> BinaryIO:
    """Open a regular file, through no link. Raises OSError for anything else."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file; remove it", str(path))
    return os.fdopen(descriptor, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "r+b")


def record_revision(name: HubName, commit: str) -> None:
    """Let the cache know the commit of a branch or tag, for a run without a connection; not one that cannot be written."""
    path = _storage(name) / "refs" / name.revision
    with contextlib.suppress(OSError):
        if name.revision == commit or _recorded(path) == commit:
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
    file.resolve()
    cache_folder()
    storage = _storage(file.name)
    blob = storage / "blobs" / str(file.etag)
    lock = storage.parent / ".locks" / storage.name / f"{file.etag}.lock"
    try:
        for folder in (blob.parent, lock.parent, file.local.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(lock, file):
            if blob.exists():
                progress(file.size)
            else:
                _complete(file, blob.with_name(blob.name + PART), progress)
                os.replace(blob.with_name(blob.name + PART), blob)
            _link(blob, file.local)
    except OSError as error:
        way = "free some space, or set HF_HOME to a folder on another disk"
        if error.errno in (errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.EEXIST, errno.ENOTDIR):
            way = "remove what is in the way, or set HF_HOME to another folder"
        where = f"{error.filename or storage}: could not be written"
        raise HubError(f"{where} ({error.strerror or error}); {way}") from error


@contextlib.contextmanager
def _locked(lock: Path, file: HubFile) -> Iterator[None]:
    """Hold the lock that huggingface_hub takes too while it downloads the same content; a long wait for it is announced."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(lock.lstat().st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(lock))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=TOLD))
        except Timeout:
            warnings.warn(f"{file.name}: another process holds {lock}; waiting for its download", stacklevel=2)
            stack.enter_context(WeakFileLock(lock))
        yield


def _complete(file: HubFile, part: Path, progress: Callable[[int], None]) -> None:
    """Append what is missing of a file to `part`, and check the whole. Raises OSError and HubError."""
    digest, expected = _digest(file)
    with _regular(part, os.O_RDWR | os.O_CREAT) as stream:
        have = stream.seek(0, os.SEEK_END)
        if have > file.size:
            stream.truncate(0)
            have = stream.seek(0)
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
    if expected not in (None, digest.hexdigest()):
        part.unlink()
        kind = "SHA-256" if expected == file.sha256 else "git object id"
        raise HubError(
            f"{file.name}: what was downloaded has {kind} {digest.hexdigest()}, expected {expected}; run the command again"
        )


def _digest(file: HubFile) -> tuple[Any, str | None]:
    """What computes a file's digest, begun, and the digest that the hub states: of a file in LFS its SHA-256, else its git id."""
    if file.sha256 is None and file.etag == file.listed.oid and COMMIT.fullmatch(str(file.etag)):
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False), file.etag
    return hashlib.sha256(), file.sha256


def _link(blob: Path, place: Path) -> None:
    """Put a blob at its place in the snapshot: as a link, or itself where the disk has no links."""
    with contextlib.suppress(FileNotFoundError):
        place.unlink()
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:
        os.replace(blob, place)
