"""The folder of a publication: its names, and the list of checksums by which it is known again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from gguf_tools.errors import InputError, OutputError
from gguf_tools.formats.digest import FileDigest
from gguf_tools.formats.text_file import Kind, read_text
from gguf_tools.sources.inputs import WEIGHTS

CARD = "README.md"
CHECKSUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\x00-\x1f\x7f]+)")
_OTHERS = re.compile(r"[^\w.-]+", re.ASCII)


def tag_of(type_name: str) -> str:
    """The tag of a type in file names, by which the hub, llama.cpp and Ollama find a file: Q4_K_M."""
    return type_name.upper()


def file_stem(name: str) -> str:
    """A model's name as the beginning of file names: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"-{2,}", "-", _OTHERS.sub("-", name)).strip("-.") or "model"


def checksums_text(digests: Mapping[str, str]) -> str:
    """The list of checksums in the form of `sha256sum`; `digests` maps names to SHA-256 in hexadecimal."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def read_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by name from a folder's list. Raises InputError if there is none or it is broken."""
    path = folder / CHECKSUMS
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path, Kind.CHECKSUMS, InputError).splitlines(), 1):
        match = _LINE.fullmatch(line)
        if not match or match[2] in (".", "..", CHECKSUMS) or match[2] in found:
            raise InputError(
                f"{path}: line {number} is not a SHA-256, two spaces and the name of a file in the folder, each once; "
                "publish again"
            )
        found[match[2]] = match[1]
    if not found:
        raise InputError(f"{path}: lists no files; publish again")
    return found


def is_published(folder: Path) -> bool:
    """Whether a folder looks like one that `tinyq publish` wrote, rather than like a checkpoint."""
    if not all((folder / name).is_file() for name in (CARD, CHECKSUMS)):
        return False
    names = [path.name for path in folder.iterdir()]
    weights = any(WEIGHTS.fullmatch(name) for name in names)
    return any(name.endswith(".gguf") for name in names) and not weights and "config.json" not in names


def require_own(folder: Path) -> None:
    """Raise OutputError if replacing a folder would remove a file that its list of checksums does not have."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    listed = {CHECKSUMS, *read_checksums(folder)}
    other = next((path.name for path in sorted(folder.iterdir()) if path.name not in listed), None)
    if other is not None:
        raise OutputError(
            f"{folder}: holds {other}, which is not in its {CHECKSUMS} and would be lost; move it away or choose another folder"
        )


def checked_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of a folder's files, read and compared with its list. Raises InputError for one that differs."""
    listed = read_checksums(folder)
    for name, digest in _digests(folder, list(listed)):
        if digest != listed[name]:
            raise InputError(f"{folder / name}: is not what {CHECKSUMS} lists; publish again")
    own = FileDigest()
    own.add_file(folder / CHECKSUMS)
    return {**listed, CHECKSUMS: own.hexdigest()}


def _digests(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path}: is listed in {CHECKSUMS} but is not a file there; publish again")
        digest = FileDigest()
        digest.add_file(path)
        yield name, digest.hexdigest()
