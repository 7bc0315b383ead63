"""The folder that a command runs in, and what is found in it before and after."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.materials import Materials, companions
from tests.faults.scenario import Scenario

TINYQ = (sys.executable, "-m", "gguf_tools")
Entry = tuple[str, ...]
"""What lies under a name: its kind, and the digest, target or number that tells it from another; with files below it, theirs."""


@dataclass(frozen=True)
class Place:
    """`in` holds inputs, `out` outputs, `tmp` is TMPDIR, `home` is HOME and where the command starts."""

    folder: Path
    program: tuple[str, ...] = TINYQ

    @classmethod
    def made(cls, folder: Path, scenario: Scenario, materials: Materials, program: tuple[str, ...] = TINYQ) -> Place:
        """A place with the scenario's inputs."""
        for name in ("in", "out", "tmp", "home"):
            (folder / name).mkdir(parents=True)
        for name in scenario.inputs:
            source = materials.path(name)
            for path in (source, *companions(source)):
                copy(path, folder / "in" / path.name)
        return cls(folder, program)

    @property
    def inputs(self) -> Path:
        """Where inputs lie."""
        return self.folder / "in"

    @property
    def outputs(self) -> Path:
        """Where outputs go."""
        return self.folder / "out"

    def arguments(self, scenario: Scenario, instead: Mapping[str, Path] = {}, *, force: bool = False) -> list[str]:
        """The arguments of a scenario, with --force if it has that; `instead` gives other paths for outputs by name."""
        line = scenario.line
        for name, path in instead.items():
            line = line.replace(f"{{out}}/{name}", shlex.quote(str(path)))
        return [*self.words(line), *(["--force"] if force and scenario.takes_force else [])]

    def words(self, line: str) -> list[str]:
        """The arguments of a line that has `{in}` and `{out}`."""
        return shlex.split(
            line.replace("{in}", shlex.quote(str(self.inputs))).replace("{out}", shlex.quote(str(self.outputs)))
        )

    def name_of(self, path: Path) -> str:
        """The name of an entry: its path in the place, without the place's own path (lm-evaluation-harness writes it)."""
        return str(path.relative_to(self.folder)).replace(self._in_names, "{work}")

    def path_of(self, name: str) -> Path:
        """The path of an entry by its name."""
        return self.folder / name.replace("{work}", self._in_names)

    @property
    def _in_names(self) -> str:
        return str(self.folder).replace("/", "__")

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.folder.parent.glob(f"{glob.escape(self.folder.name)}.*"):
            path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Snapshot:
    """The entries of a place by their path in it (`out/model.gguf`), folders below `in` and `out` as one entry each."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, place: Place, scenario: Scenario) -> Snapshot:
        """What is there now. Of files that vary only the form counts; the place's own path in a file does not."""
        paths = [path for top in ("in", "out", "tmp", "home") for path in sorted((place.folder / top).iterdir())]
        containers = [path for path in paths if path.parent == place.outputs and path.name in scenario.containers]
        for container in [path for path in containers if path.is_dir() and not path.is_symlink()]:
            paths.remove(container)
            paths += sorted(container.iterdir())
        own = spellings(place.folder)
        return cls({place.name_of(path): _entry(path, own, scenario.varies) for path in paths})


def spellings(folder: Path) -> list[bytes]:
    """A folder's path as files have it: its bytes, or in a JSON text, where each byte without a character is escaped."""
    raw = os.fsencode(folder)
    texts = [
        json.dumps(str(folder)),
        *(json.dumps(raw.decode(code, "surrogateescape"), ensure_ascii=False) for code in ("utf-8", "ascii")),
    ]
    return list(dict.fromkeys([raw, *(text[1:-1].encode("utf-8", "backslashreplace") for text in texts)]))


def _entry(path: Path, own: Collection[bytes], varies: Collection[str]) -> Entry:
    """Kind and contents of a file, a link, a device or a folder with all below it."""
    state = os.lstat(path)
    if path.parent.name in varies and stat.S_ISDIR(state.st_mode):
        # Names with dates in them, of which each run adds its own.
        return ("folder", *sorted({other.suffix for other in path.rglob("*")}))
    if stat.S_ISLNK(state.st_mode):
        return ("link", os.readlink(path))
    if stat.S_ISDIR(state.st_mode):
        below = (f"{other.name}={_entry(other, own, varies)}" for other in sorted(path.iterdir()))
        return ("folder", *below)
    if not stat.S_ISREG(state.st_mode):
        return ("device", str(state.st_rdev), str(stat.S_IFMT(state.st_mode)))
    data = path.read_bytes()
    for spelling in own:
        data = data.replace(spelling, b"{work}")
    if path.name in varies:
        with contextlib.suppress(ValueError):
            return ("file", str(_form(json.loads(data))))
    return ("file", str(len(data)), hashlib.sha256(data).hexdigest())


def _form(value: Any) -> Any:
    """A JSON value with every number and text replaced by its type."""
    if isinstance(value, dict):
        return {key: _form(item) for key, item in value.items()}
    return [_form(item) for item in value] if isinstance(value, list) else type(value).__name__
