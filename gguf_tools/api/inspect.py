"""What a checkpoint or a GGUF is."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.inspection import report
from gguf_tools.inspection.result import Inspection


def inspect(path: str | Path) -> Inspection:
    """Describe a checkpoint or a GGUF: layers, sizes, types, tokenizer, provenance, and how it would convert: `tinyq inspect`.

    No weights are read. What cannot be understood of a readable source stands under `problems`; raises CheckpointError
    only where nothing can be read.
    """
    return report.inspect(Path(path), check_model_type)
