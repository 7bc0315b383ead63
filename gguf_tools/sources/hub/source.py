"""What a command calls a source: a path, or a repository on the hub, which becomes a folder or a file of the hub's cache.

The small files of a repository (config, tokenizer, README) are downloaded into the cache. Its safetensors and GGUF files are
attached to their places there (`formats.remote`) and read in ranges, unless the cache has them already, or they are to be
downloaded whole. Torch state dicts, which can only be read from a file, are downloaded.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.split import all_parts
from gguf_tools.formats.remote import RemoteFile, attach, attached_in, bring
from gguf_tools.formats.temporary import MAX_NAME
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.hub.cache import cache_folder, cached_commit, record_revision, snapshot, store
from gguf_tools.sources.hub.client import (
    HubError,
    endpoint,
    is_offline,
    quiet_library,
    repeated,
    require_hub,
    unreachable,
)
from gguf_tools.sources.hub.file import HubFile, Listed
from gguf_tools.sources.hub.names import COMMIT, WEIGHTS, HubName, parse_name
from gguf_tools.sources.hub.requests import described, files_of
from gguf_tools.sources.hub.threads import for_each
from gguf_tools.sources.hub.window import Window
from gguf_tools.text import human_bytes

SMALL = re.compile(r"(additional_chat_templates/)?[^/]+\.(json|jinja|txt|model|md|toml|yaml|tiktoken|pkl)")
"""Paths of the files that describe the weights of a repository."""
SHA256 = re.compile(r"[0-9a-f]{64}")
SMALL_BYTES = 128 << 20
"""Most bytes of such a file; others of that name are left on the hub."""
MOST_SMALL, MOST_SMALL_BYTES = 1000, 2 << 30
"""Most such files of a repository, and most bytes that they have together."""
LARGEST = 1 << 50
"""Most bytes of a file that is believed."""
AT_ONCE = 8
"""Small files that are downloaded at a time."""
STATE_DICTS = (r"pytorch_model.*\.bin", r"consolidated\.\d+\.pth", r"[^/]+\.(pt|pth|bin|ckpt)")
"""Names of torch state dicts, in the order in which they are looked for."""


class Reading(Enum):
    """How much of a source on the hub is needed."""

    BESIDE = "beside"
    """Its config, tokenizer and README."""

    HEADERS = "headers"
    """The headers of its weights, and single small tensors."""
    STREAMED = "streamed"
    """All weights, once or twice, in about the order of the files."""
    WHOLE = "whole"
    """All weights, again and again or by another program: they are downloaded."""


IN_RANGES: dict[Reading, tuple[str, ...]] = {
    Reading.BESIDE: (),
    Reading.HEADERS: (".safetensors", ".gguf"),
    Reading.STREAMED: (".safetensors",),
    Reading.WHOLE: (),
}
"""The formats that are read in ranges: weights of a GGUF are read by llama.cpp too, or copied between files."""

Progress = Callable[[str, int], AbstractContextManager[ByteProgress]]
"""(what is downloaded, its bytes) → a context with a function that receives numbers of bytes as they arrive."""


def _silent(_what: str, _total: int) -> AbstractContextManager[ByteProgress]:
    return nullcontext(lambda _: None)


def local_source(source: str | Path, reading: Reading = Reading.STREAMED, progress: Progress = _silent) -> Path:
    """The path of a source: `source` itself if it exists or has not the form of a name on the hub, else its place in the cache.

    Raises HubError with what is missing (a repository, a revision, a file, a token, a licence, a connection), InputError if
    huggingface_hub is not installed.
    """
    path = Path(source)
    name = parse_name(str(source))
    if path.exists() or path.is_symlink() or name is None:
        if reading is Reading.WHOLE:
            bring([path] if path.suffix else attached_in(path))
        return path
    require_hub(str(name))
    with quiet_library():
        return _opened(name, reading, progress)


def kept_source(name: HubName) -> Path | None:
    """The folder of a name in the hub's cache; None if the cache has no weights of it. The hub is not asked."""
    try:
        require_hub(str(name))
    except InputError:
        return None
    commit = cached_commit(name)
    folder = None if commit is None else snapshot(name, commit)
    return folder if folder and any(path.suffix in WEIGHTS for path in folder.iterdir()) else None


def _opened(name: HubName, reading: Reading, progress: Progress) -> Path:
    """The place in the cache of a name, when what is needed of it is there or attached."""
    commit, listed = _listing(name)
    at_commit = replace(name, revision=commit)
    folder = snapshot(name, commit)
    if listed is None:
        return folder if reading is Reading.BESIDE else _from_cache(at_commit, folder)
    files = {each.path: each for each in listed}
    _download_small(at_commit, [each for each in files.values() if _is_small(each)])
    record_revision(name, commit)
    wanted = [] if reading is Reading.BESIDE else _weights(name, files)
    hub_files = _missing(at_commit, [files[path] for path in wanted])
    in_ranges = [file for file in hub_files if file.local.suffix in IN_RANGES[reading]]
    if in_ranges:
        window = _window(cache_folder())
        for file in in_ranges:
            attach(file.local, Attached(file, window, whole=reading is not Reading.HEADERS))
    _store_all([file for file in hub_files if file not in in_ranges], name, progress)
    return folder / name.file if name.file else folder


def _listing(name: HubName) -> tuple[str, list[Listed] | None]:
    """The commit of a name, and the files that the hub lists for it; without a connection, the commit in the cache and None."""
    kept = cached_commit(name)
    if is_offline() and kept:
        return kept, None
    try:
        info = repeated(lambda: described(name), name)
    except HubError as error:
        if kept is None or error.__cause__ is None or not unreachable(error.__cause__):
            raise
        warnings.warn(f"the hub cannot be asked about {name}; commit {kept[:12]} in its cache is read", stacklevel=2)
        return kept, None
    commit = info.get("sha")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise HubError(
            f"{name}: {endpoint()} does not name the commit; expected a hub of Hugging Face's kind; check HF_ENDPOINT"
        )
    listed = [Listed(*each) for each in files_of(info)]
    return commit, [each for each in listed if is_usable(each)]


def is_usable(file: Listed) -> bool:
    """Whether what the hub lists of a file is of the expected form, and its path lies within the repository."""
    if not isinstance(file.path, str) or not file.path.isprintable():
        return False
    parts = file.path.split("/")
    safe = "\\" not in file.path and not {"", ".", ".."} & set(parts)
    safe = safe and all(len(part.encode()) <= MAX_NAME for part in parts)
    sized = type(file.size) is int and 0 <= file.size <= LARGEST
    return safe and sized and (file.sha256 is None or SHA256.fullmatch(str(file.sha256)) is not None)


def _from_cache(name: HubName, folder: Path) -> Path:
    """The place of a name in the cache, without a connection. Raises HubError if the weights are not there."""
    place = folder / name.file if name.file else folder
    weights = [path for path in folder.iterdir() if path.suffix in WEIGHTS]
    if not (place.exists() if name.file else weights):
        raise HubError(
            f"{name}: the hub's cache has this commit without {'that file' if name.file else 'its weights'}, and the hub cannot "
            "be asked; run the command with a connection, and with --download to keep what it reads"
        )
    return place


def _is_small(file: Listed) -> bool:
    return SMALL.fullmatch(file.path) is not None and file.size <= SMALL_BYTES


def _download_small(name: HubName, files: Sequence[Listed]) -> None:
    """Download these files into the cache, those that it does not have. Raises HubError."""
    total = sum(each.size for each in files)
    if len(files) > MOST_SMALL or total > MOST_SMALL_BYTES:
        raise HubError(
            f"{name}: has {len(files):,} files of {human_bytes(total)} beside its weights, expected {MOST_SMALL:,} of "
            f"{human_bytes(MOST_SMALL_BYTES)} at most; download what you need with `hf download` and give the folder"
        )
    for_each(store, _missing(name, files), AT_ONCE)


def _missing(name: HubName, files: Sequence[Listed]) -> list[HubFile]:
    """Those of the files of a commit that the cache does not have."""
    places = [(each, snapshot(name, name.revision) / each.path) for each in files]
    return [HubFile(replace(name, file=each.path), each, place) for each, place in places if not place.exists()]


def _weights(name: HubName, files: dict[str, Listed]) -> list[str]:
    """The paths of the files of weights that a source means. Raises HubError if the repository has none that can be meant."""
    if name.file:
        if name.file not in files:
            raise HubError(f"{name}: the repository has no such file{_instead(name, files)}")
        return [part.as_posix() for part in all_parts(Path(name.file)) if part.as_posix() in files]
    if found := [path for path in files if path.endswith(".safetensors") and "/" not in path]:
        return found
    for pattern in STATE_DICTS:
        if found := [path for path in files if re.fullmatch(pattern, path)]:
            several = pattern == STATE_DICTS[-1] and len(found) > 1
            if several:
                raise HubError(f"{name}: the repository has {len(found)} torch files{_instead(name, files)}")
            return found
    raise HubError(f"{name}: the repository has no weights in its main folder{_instead(name, files)}")


def _instead(name: HubName, files: dict[str, Listed]) -> str:
    """Which files can be given instead, for the end of an error."""
    repository = str(replace(name, file=None))
    found = [path for path in sorted(files) if parse_name(f"{repository}/{path}")]
    if not found:
        return f"; it has {', '.join(sorted(files)[:6]) or 'no files'}"
    more = f" or another of {len(found)}" if len(found) > 3 else ""
    return f"; give one of its files: {', '.join(f'{repository}/{path}' for path in found[:3])}{more}"


@functools.lru_cache(maxsize=1)
def _window(folder: Path) -> Window:
    """The window of all sources that are read in ranges."""
    return Window(folder)


def _store_all(files: Sequence[HubFile], name: HubName, progress: Progress) -> None:
    """Download these files into the cache."""
    if not files:
        return
    with progress(f"downloading {name}", sum(file.size for file in files)) as advance:
        for file in files:
            store(file, advance)


class Attached:
    """A file of the hub as `formats.remote` wants it: read through a window, or downloaded whole."""

    def __init__(self, file: HubFile, window: Window, *, whole: bool) -> None:
        """With `whole` all of its tensors will be read, else only its header and some small ones."""
        self.file, self._window, self._whole = file, window, whole
        self.size, self.sha256, self.kept = file.size, file.sha256, window.most

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from byte `offset`. Raises HubError."""
        return self._window.read(self.file, offset, count)

    def download(self) -> None:
        """Store the file in the cache. Raises HubError."""
        store(self.file)

    def divide(self, tensors: Sequence[tuple[int, int]]) -> None:
        """Let the window cut the file by its tensors."""
        if self._whole:
            self._window.divide(self.file, tensors)

    def plan(self, reads: Sequence[tuple[RemoteFile, int, int]]) -> None:
        """Let the window know what is read next of files of the hub."""
        self._window.plan([(file.file, start, stop) for file, start, stop in reads if isinstance(file, Attached)])
