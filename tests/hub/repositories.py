"""Repositories of the test hub: files, commits, branches, and who may read them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".model", ".npz", ".msgpack")
"""Files of these names are stored by LFS (the hub's default .gitattributes)."""
LFS_BYTES = 10_000_000
"""Files of at least this size are stored by LFS."""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


@dataclass(frozen=True)
class Blob:
    """The content of a file: bytes in memory, or a file on disk that is read when it is served."""

    content: bytes | Path

    @cached_property
    def size(self) -> int:
        """Its length in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content (hexadecimal): the object id of LFS."""
        return hashlib.sha256(self.read(0, self.size)).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        """SHA-1 of the content as a git blob (hexadecimal)."""
        return hashlib.sha1(b"blob %d\0" % self.size + self.read(0, self.size)).hexdigest()

    def read(self, start: int, count: int) -> bytes:
        """The `count` bytes from `start` on."""
        if isinstance(self.content, bytes):
            return self.content[start : start + count]
        with self.content.open("rb") as stream:
            stream.seek(start)
            return stream.read(count)


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit, and whether it is stored by LFS."""

    blob: Blob
    lfs: bool

    @cached_property
    def etag(self) -> str:
        """The hub's ETag: the SHA-256 of an LFS file, else the git object id."""
        return self.blob.sha256 if self.lfs else self.blob.git_oid

    def entry(self, path: str) -> dict[str, Any]:
        """The file as the tree route lists it."""
        if not self.lfs:
            return {"type": "file", "path": path, "size": self.blob.size, "oid": self.blob.git_oid}
        pointer = POINTER.format(self.blob.sha256, self.blob.size).encode()
        return {
            "type": "file",
            "path": path,
            "size": self.blob.size,
            "oid": Blob(pointer).git_oid,
            "lfs": {"oid": self.blob.sha256, "size": self.blob.size, "pointerSize": len(pointer)},
        }


Files = Mapping[str, StoredFile]
"""The files of a commit by their paths, in which folders are separated by `/`."""


def stored_as_lfs(path: str, size: int) -> bool:
    """Whether the hub stores a file of this name and size by LFS."""
    return path.endswith(LFS_SUFFIXES) or size >= LFS_BYTES


def stored(content: Path | Mapping[str, bytes | Path]) -> dict[str, StoredFile]:
    """The files of a folder, or of a mapping of paths to contents."""
    if isinstance(content, Path):
        found = sorted(path for path in content.rglob("*") if path.is_file())
        content = {path.relative_to(content).as_posix(): path for path in found}
    blobs = {path: Blob(each) for path, each in content.items()}
    return {path: StoredFile(blob, stored_as_lfs(path, blob.size)) for path, blob in blobs.items()}


@dataclass
class Repository:
    """A model repository: its commits, the branches and tags that name them, and who may read it.

    A private repository exists only for users in `readers`; the files of a gated one are served to them alone.
    """

    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, message: str = "Upload", ref: str = "main") -> str:
        """Add a commit with these files and let `ref` name it; its hash is returned."""
        listing = "".join(f"{path} {each.etag}\n" for path, each in sorted(files.items()))
        text = f"{self.name}\n{self.refs.get(ref)}\n{message}\n{listing}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.refs[ref], self.messages[sha] = files, sha, message
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a hash names."""
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None

    def info(self, sha: str, *, blobs: bool) -> dict[str, Any]:
        """The repository as api/models describes it at a commit; with sizes and object ids if `blobs`."""
        siblings: list[dict[str, Any]] = []
        for path, each in sorted(self.commits[sha].items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                entry = each.entry(path)
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if each.lfs:
                    pointer = entry["lfs"]["pointerSize"]
                    sibling["lfs"] = {"sha256": each.blob.sha256, "size": each.blob.size, "pointerSize": pointer}
            siblings.append(sibling)
        return {
            "_id": "0" * 24,
            "id": self.name,
            "modelId": self.name,
            "author": self.name.partition("/")[0],
            "sha": sha,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }

    def tree(self, sha: str, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        """The files, and the folders, under a path of a commit."""
        start = f"{under}/" if under else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, each in sorted(self.commits[sha].items()):
            if not path.startswith(start):
                continue
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = start + "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": Blob(folder.encode()).git_oid, "size": 0}
            if recursive or len(parts) == 1:
                entries[path] = each.entry(path)
        return list(entries.values())
