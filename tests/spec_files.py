"""Files made of a Model alone, without a tokenizer, which llama.cpp runs on token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.gguf.header import string
from gguf_tools.formats.gguf.writer import layout, write_gguf
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.base import Lowered
from quant.types import F32


def write_lowered(lowered: Lowered, path: Path) -> Path:
    """A lowered model as an F32 file at `path`, without a vocabulary."""
    metadata = {
        "general.architecture": string(lowered.architecture),
        **lowered.metadata,
        "tokenizer.ggml.model": string("none"),
    }
    where = layout((out.name, out.tensor.shape, F32) for out in lowered.tensors)
    pieces = ((out.name, out.tensor.array().reshape(-1).view(np.uint8)) for out in lowered.tensors)
    with path.open("wb") as stream:
        write_gguf(stream, metadata, where, pieces, lambda _: None)
    return path


def run(path: Path, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """llama.cpp's logits of every position."""
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        return runtime.logits(prompts)
