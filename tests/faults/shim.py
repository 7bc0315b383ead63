"""Faults at a chosen file operation, by a small library that is loaded before all others (`shim.c`)."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

READ, ROOM, CHANGE, LACK, PROCESS, THREAD = 1, 2, 4, 8, 16, 32
"""Kinds of operations: reading; what needs room on the disk; other changes of a folder; what simple file systems lack; new
processes; new threads."""
STATE = 4096
_SOURCE = Path(__file__).with_name("shim.c")


@dataclass(frozen=True, kw_only=True)
class Shim:
    """What happens at which operation on which paths; `at` 0 only counts."""

    library: Path
    under: str
    """The path, or its beginning."""
    kinds: int
    at: int = 0
    do: str = "none"
    value: int = 0
    source: Path | None = None
    """The file for `rewrite` and `replace`."""

    def environment(self, state: ShimState) -> dict[str, str]:
        """The environment variables that load and set it."""
        return {
            "LD_PRELOAD": str(self.library),
            "FAULT_UNDER": self.under,
            "FAULT_OPS": str(self.kinds),
            "FAULT_AT": str(self.at),
            "FAULT_DO": self.do,
            "FAULT_VALUE": str(self.value),
            "FAULT_STATE": str(state.file),
            **({"FAULT_LOG": str(state.log)} if not self.at else {}),
            **({"FAULT_WITH": str(self.source)} if self.source else {}),
        }


class ShimState:
    """What the library tells: how far it counted, whether and where the fault came."""

    def __init__(self, path: Path) -> None:
        """Files that begin with `path`, made anew."""
        self.file, self.log = path.with_name(path.name + ".state"), path.with_name(path.name + ".log")
        self.file.write_bytes(bytes(STATE))
        self.log.write_bytes(b"")

    def read(self) -> tuple[bool, str]:
        """Whether the fault came to pass, and at which operation on which path."""
        data = self.file.read_bytes()
        _, fired = struct.unpack_from("@ll", data)
        return bool(fired), data[struct.calcsize("@ll") :].split(b"\0")[0].decode("utf-8", "replace")

    def steps(self) -> list[tuple[int, str]]:
        """Kind and path of every operation, where the shim only counted."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [(int(kind), path) for kind, _, path in (line.split(" ", 2) for line in lines)]


def why_not() -> str:
    """Why the library cannot be made here; empty where it can."""
    if not sys.platform.startswith("linux"):
        return "LD_PRELOAD and /proc are Linux's"
    return "" if shutil.which("cc") else "there is no C compiler (cc)"


def build(folder: Path) -> Path:
    """The library, compiled into `folder`."""
    path = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(path), str(_SOURCE), "-ldl"], check=True)
    return path
