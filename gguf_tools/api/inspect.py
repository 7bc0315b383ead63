"""The public function `inspect`."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.formats.watch import Watch
from gguf_tools.inspection import report
from gguf_tools.inspection.result import Inspection
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.inputs import source_files


def inspect(path: str | Path) -> Inspection:
    """Describe a checkpoint or a GGUF: layers, sizes, types, tokenizer, provenance, planned conversion: `tinyq inspect`.

    No weights are read, unless config.json names a model_type that no family declares: then its logits are compared with those
    of the installed transformers. Parts of a readable source that cannot be interpreted are listed in `problems`. Raises
    CheckpointError only if nothing can be read, or if the source changes meanwhile.
    """
    watch = Watch.over(source_files(Path(path)))
    found = report.inspect(Path(path), _check_model_type)
    watch.check()
    return found


def _check_model_type(checkpoint: Checkpoint, model: Model) -> str:
    # Imported here because other checkpoints do not need the evaluation modules.
    from gguf_tools.evaluation.type_check import check_model_type

    return check_model_type(checkpoint, model)
