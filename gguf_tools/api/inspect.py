"""The public function `inspect`."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.api.checked import checked
from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.remote import remote_at
from gguf_tools.formats.watch import Watch
from gguf_tools.inspection import report
from gguf_tools.inspection.result import Inspection
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.hub import Reading, local_source, shown_source
from gguf_tools.sources.inputs import source_files


@checked
def inspect(path: str | Path) -> Inspection:
    """Describe a checkpoint or a GGUF: layers, sizes, types, tokenizer, provenance, planned conversion: `tinyq inspect`.

    No weights are read, unless config.json names a model_type that no family declares: then its logits are compared with those
    of the installed transformers. Parts of a readable source that cannot be interpreted are listed in `problems`. Raises
    CheckpointError only if nothing can be read, or if the source changes meanwhile. `path` may be the name of a repository, or
    of a file in one, on the hub (ORG/NAME[@REVISION][/FILE]), of which only headers are read.
    """
    path = local_source(path, Reading.HEADERS)
    watch = Watch.over(source_files(path))
    found = report.inspect(path, _check_model_type)
    watch.check()
    return found


def _check_model_type(checkpoint: Checkpoint, model: Model) -> str:
    if any(remote_at(file) for file in checkpoint.weight_files):
        raise UnsupportedError(
            f"{shown_source(checkpoint.path)}: no family declares its model_type ({checkpoint.config.get('model_type')}); to see "
            f"whether the model computes the same as {model.family}, all weights are needed: download the repository first"
        )
    # Imported here because other checkpoints do not need the evaluation modules.
    from gguf_tools.evaluation.type_check import check_model_type

    return check_model_type(checkpoint, model)
