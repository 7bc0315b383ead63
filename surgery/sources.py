"""The other models that a recipe takes layers from (donors): how they are named, where they lie, and their digests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.formats.gguf.source import gguf_digest
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.hub import local_source
from surgery.ops.base import DONOR

DEFAULT = "B"
"""The name of a donor that was given none."""
BASE = "A"
"""The model that is operated on, whose name no donor can have."""


@dataclass(frozen=True)
class Donor:
    """A model by the name that ops call it; `digest` is what its SHA-256 was, None where that is not known."""

    name: str
    path: Path
    digest: str | None = None

    def checked(self) -> Donor:
        """The donor with the digest that it has now, for which all its bytes are read; InputError where another was known."""
        found = source_digest(self.path)
        if self.digest not in (None, found) and not _has_digest(self.path, str(self.digest)):
            raise InputError(
                f"{self.path}: is not, or no longer, what the recipe calls {self.name} (SHA-256 {found}, expected "
                f"{self.digest}); give the right one, or accept this one with --with {self.name}={self.path}"
            )
        return Donor(self.name, self.path, found)


def parse_donor(text: str) -> Donor:
    """The donor that `--with [NAME=]PATH` declares: what stands before the first = is the name where it can be one."""
    name, equals, path = text.partition("=")
    if not (equals and re.fullmatch(DONOR, name)):
        name, path = DEFAULT, text
    if name == BASE:
        raise InputError(f"--with {text}: {BASE} is the model that is operated on; name the other one B")
    if not path:
        raise InputError(f"--with {text}: the path is missing; write it as {name}=PATH")
    return Donor(name, local_source(path))


def source_digest(path: Path) -> str:
    """The digest of a checkpoint's config and weights (`Checkpoint.digest`), or SHA-256 of a GGUF's parts."""
    if path.is_file() and is_gguf(path):
        return gguf_digest(path)
    return open_checkpoint(path).digest()


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a checkpoint has a digest in the form of older recipes; a GGUF's has one form."""
    return not is_gguf(path) and open_checkpoint(path).has_digest(digest)
