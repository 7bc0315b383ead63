"""The section of a model card on memory: what llama.cpp reserves, and what a GPU with all layers would hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.runtime.interface import Memory
from gguf_tools.tables import Column, Table
from gguf_tools.text import human_bytes

INPUTS = ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
"""Tensors of the input layer, which llama.cpp keeps in RAM whatever is offloaded (`llm_tensor_info_mapping`, `dev_input`)."""
OUTPUT, EMBEDDING = "output.weight", INPUTS[0]

_COLUMNS = (
    Column("File", left=True, key=True),
    Column("Weights", human_bytes),
    Column("Cache", human_bytes),
    Column("Compute", human_bytes),
    Column("Memory", human_bytes),
    Column("VRAM, all layers offloaded", human_bytes),
)


def offloaded_bytes(path: Path) -> int:
    """Bytes of the tensors that llama.cpp puts on the GPU if all layers are offloaded.

    These are all but the input layer's; an embedding that is also the output is there too, in a second copy.
    """
    sizes = {entry.name: entry.nbytes for part in read_parts(path) for entry in part.tensors}
    second = sizes.get(EMBEDDING, 0) if OUTPUT not in sizes else 0
    return sum(size for name, size in sizes.items() if name not in INPUTS) + second


def memory_section(files: Sequence[tuple[str, Memory, int]]) -> str:
    """The section for files as (label, what llama.cpp reserves, `offloaded_bytes`)."""
    rows = [
        (label, memory.weights, memory.cache, memory.compute, memory.total, offloaded + memory.cache)
        for label, memory, offloaded in files
    ]
    lengths = " or ".join(f"{length:,}" for length in sorted({memory.context for _, memory, _ in files}))
    told = (
        f"For {lengths} tokens. Weights, cache and compute buffers are what llama.cpp reports to reserve in RAM with its default "
        "settings; memory is their sum. VRAM is computed, not measured: the cache, and the tensors that llama.cpp offloads (all "
        "but the input embedding, of which a model with tied embeddings needs a second copy)."
        " The GPU's compute buffers come on top."
    )
    return f"## Memory\n\n{Table(_COLUMNS, rows).markdown()}\n\n{told}\n"
