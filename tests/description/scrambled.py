"""Checkpoints under invented names."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.safetensors import Stored, write_safetensors

SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "ri", "so", "tu", "vo", "xe", "zi")


def nonsense(names: Iterable[str], seed: int = 0) -> dict[str, str]:
    """Each name with every word replaced by an invented one, the same word by the same; numbers that count stay."""
    names = list(names)
    words = sorted({word for name in names for word in re.split(r"[._]", name) if not word.isdigit()})
    rng, taken = random.Random(seed), set[str]()
    new = {}
    for word in words:
        while (made := "".join(rng.choices(SYLLABLES, k=3))) in taken:
            pass
        taken.add(made)
        new[word] = made
    return {name: "".join(new.get(part, part) for part in re.split(r"([._])", name)) for name in names}


def write_weights(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> Path:
    """Write tensors as a safetensors file without a config."""
    stored = [
        Stored(
            name=name, dtype="F32", shape=tensors[name].shape, width=4, pieces=[tensors[name].astype("<f4").tobytes()]
        )
        for name in tensors
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, stored, {}, spaced=True)
    return path
