"""A small model, texts, and the command line with which the tests of the search call `tinyq search`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tests.tiny_gguf import write_dense

ROOT = Path(__file__).resolve().parents[3]
LAYERS = 4
WORDS = ("the", "river", "stone", "and", "bread", "old", "clock", "ran", "night", "seven")


def environment(**more: str) -> dict[str, str]:
    """The variables of a child process that runs this code from another folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def text(path: Path, passages: int, seed: int) -> Path:
    """A file of passages of ten words."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, 10)) + "." for _ in range(passages)]
    path.write_text("\n\n".join(lines) + "\n", "utf-8")
    return path


def search_line(folder: Path, *more: object) -> list[str]:
    """The arguments of a search by bits per byte on a model of four layers, which is made in the folder if need be."""
    model = folder / "model.gguf"
    if not model.exists():
        write_dense(model, layers=LAYERS)
        text(folder / "chosen.txt", 6, seed=1)
        text(folder / "held_out.txt", 6, seed=2)
    line = ["search", model, "--objective", "perplexity", "--text", folder / "chosen.txt"]
    line += ["--held-out-text", folder / "held_out.txt", "--top", 3, "--threads", 1, *more]
    return [str(part) for part in line]
