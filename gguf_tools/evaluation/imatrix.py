"""An importance matrix from a model and a text, through llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.evaluation.text_files import read_text
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from quant.imatrix import ImportanceMatrix

CHUNK = 512
"""Tokens that are read together; llama-imatrix takes as many."""


@dataclass(frozen=True, kw_only=True)
class CollectRequest:
    """What to read and how: `chunk` tokens at a time (fewer where the model's context is shorter), at most `chunks` of them.

    `process_output` counts the output matrix too, `parse_special` reads "<|…|>" in the text as one token.
    """

    model: Path
    text: Path
    chunk: int = CHUNK
    chunks: int | None = None
    process_output: bool = False
    parse_special: bool = False


def collect(
    request: CollectRequest, options: RuntimeOptions | None = None, progress: CountProgress | None = None
) -> ImportanceMatrix:
    """Run the model over the text and keep the statistics of its activations; BOS starts each chunk if the file says so.

    Raises InputError for a text that cannot be read or is empty, LlamaError where llama.cpp fails.
    """
    text = read_text(request.text)
    with Runtime(request.model, options) as runtime:
        size = min(request.chunk, runtime.context_limit)
        tokens = runtime.tokenize(text, add_special=True, parse_special=request.parse_special)
        parts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        parts = parts[: request.chunks]
        if not parts:
            raise InputError(f"{request.text}: holds no tokens; give a text such as the model will see")
        bos = runtime.info.bos
        if runtime.info.add_bos and bos is not None:
            parts = [[bos, *part[1:]] for part in parts]
        entries = runtime.activations(parts, request.process_output, progress)
    if not entries:
        raise InputError(f"{request.model}: no weight matrix was used; nothing can be counted for this architecture")
    return ImportanceMatrix(
        entries=entries, datasets=(request.text.name,), chunks=len(parts), chunk_size=size, name=str(request.model)
    )
