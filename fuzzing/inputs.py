"""Inputs that are kept in the repository, one a line as a JSON text whose characters are the bytes.

`corpus/` has, of the inputs that campaigns kept, those that are small and reach most; `cases/` has inputs that fell once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent
MOST_BYTES = 4_000
"""Of a target's corpus."""


def corpus_file(name: str) -> Path:
    """Where the corpus of a target lies."""
    return FOLDER / "corpus" / f"{name}.jsonl"


def cases(name: str) -> list[bytes]:
    """The inputs on which a target fell once."""
    return _read(FOLDER / "cases" / f"{name}.jsonl")


def kept(name: str) -> list[bytes]:
    """The corpus of a target and its cases."""
    return [*_read(corpus_file(name)), *cases(name)]


def _read(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [str(json.loads(line)).encode("latin-1") for line in path.read_text("ascii").splitlines()]


def write(path: Path, inputs: Iterable[bytes]) -> None:
    """Write inputs to a file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(data.decode("latin-1")) + "\n" for data in inputs), "ascii")


def keep(name: str, reached: Iterable[bytes]) -> None:
    """Keep the smallest inputs of a set, of MOST_BYTES in all, as the corpus of a target; an empty set changes nothing."""
    chosen, left = [], MOST_BYTES
    for data in sorted(set(reached), key=lambda data: (len(data), data)):
        left -= len(data)
        if left < 0:
            break
        chosen.append(data)
    if chosen:
        write(corpus_file(name), chosen)
