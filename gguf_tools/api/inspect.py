"""What a checkpoint or a GGUF is."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.inspection import report
from gguf_tools.inspection.result import Inspection
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint


def inspect(path: str | Path) -> Inspection:
    """Describe a checkpoint or a GGUF: layers, sizes, types, tokenizer, provenance, and how it would convert: `tinyq inspect`.

    No weights are read, unless config.json names a model_type that no family declares: then the installed transformers is
    asked whether it computes the same. What cannot be understood of a readable source stands under `problems`; raises
    CheckpointError only where nothing can be read.
    """
    return report.inspect(Path(path), _check_model_type)


def _check_model_type(checkpoint: Checkpoint, model: Model) -> str:
    # The evaluation's modules are not needed for any other checkpoint.
    from gguf_tools.evaluation.type_check import check_model_type

    return check_model_type(checkpoint, model)
