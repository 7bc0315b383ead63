"""Collects an importance matrix by running a model over a text with llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.evaluation.text_files import read_text
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from quant.imatrix import ImportanceMatrix

CHUNK = 512
"""Tokens per chunk; the default of llama-imatrix."""


@dataclass(frozen=True, kw_only=True)
class CollectRequest:
    """The model, the text, and options: `chunk` tokens per chunk (fewer if the model's context is shorter), at most `chunks`.

    `process_output` includes the output matrix; `parse_special` recognises special tokens such as "<|…|>" in the text.
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
    """Run the model over the text and collect statistics of its activations; each chunk starts with BOS if the file adds it.

    Raises InputError if the text cannot be read or is empty, LlamaError if llama.cpp fails.
    """
    text = read_text(request.text)
    with Runtime(request.model, options) as runtime:
        size = min(request.chunk, runtime.context_limit)
        tokens = runtime.tokenize(text, add_special=True, parse_special=request.parse_special)
        parts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        parts = parts[: request.chunks]
        if not parts:
            raise InputError(f"{request.text}: has no tokens; give a text like those that the model will be used on")
        bos = runtime.info.bos
        if runtime.info.add_bos and bos is not None:
            parts = [[bos, *part[1:]] for part in parts]
        entries = runtime.activations(parts, request.process_output, progress)
    if not entries:
        raise InputError(
            f"{request.model}: no matrix product was observed; importance of this architecture cannot be collected"
        )
    return ImportanceMatrix(
        entries=entries, datasets=(request.text.name,), chunks=len(parts), chunk_size=size, name=str(request.model)
    )
