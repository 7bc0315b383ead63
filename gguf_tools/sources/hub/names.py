"""Names of repositories and files on the hub: `ORG/NAME[@REVISION][/FILE]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""How a file's name ends that can be given instead of a repository."""
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})"
    r"(?:@(?P<revision>refs/[^/@\s]+/[^/@\s]+|[^/@\s]+))?"
    rf"(?:/(?P<file>[^@\s]+(?:{'|'.join(map(re.escape, WEIGHTS))})))?",
    re.ASCII,
)
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")
COMMIT = re.compile(r"[0-9a-f]{40}")
"""The hash of a commit, and the id of any other object of git."""
MAIN = "main"


@dataclass(frozen=True)
class HubName:
    """A repository, and a file in it if one is named; `revision` is a branch, a tag, or a commit's hash."""

    repository: str
    revision: str = MAIN
    file: str | None = None

    def __str__(self) -> str:
        at = "" if self.revision == MAIN else f"@{self.short_revision}"
        return f"{self.repository}{at}" + (f"/{self.file}" if self.file else "")

    @property
    def short_revision(self) -> str:
        """The revision, or the first characters of a commit's hash."""
        return self.revision[:12] if self.is_commit else self.revision

    @property
    def is_commit(self) -> bool:
        """Whether the revision is the full hash of a commit."""
        return COMMIT.fullmatch(self.revision) is not None


def parse_name(text: str) -> HubName | None:
    """The name in `text`; None if it has another form, such as a path of one part, or a file's path of two.

    A revision with slashes is understood in the form refs/pr/1.
    """
    match = _NAME.fullmatch(text)
    if not match or ".." in match["repo"] or "--" in match["repo"]:
        return None
    if match["file"] is None and match["revision"] is None and text.endswith(WEIGHTS):
        return None
    if match["file"] and any(part in ("", ".", "..") for part in match["file"].split("/")):
        return None
    return HubName(match["repo"], match["revision"] or MAIN, match["file"])


def cached_name(path: Path) -> HubName | None:
    """The name, with the commit, of a path in the hub's cache (`models--ORG--NAME/snapshots/COMMIT/…`); None for others."""
    whole = path.absolute()
    for folder in (whole, *whole.parents):
        if folder.parent.name == "snapshots" and (match := _CACHED.fullmatch(folder.parent.parent.name)):
            file = whole.relative_to(folder).as_posix()
            return HubName(f"{match[1]}/{match[2]}", folder.name, None if file == "." else file)
    return None


def shown_source(path: Path) -> str:
    """A source's path for a report, or its name if it is in the hub's cache."""
    return str(cached_name(path) or path)
