"""The public functions `split` and `merge`: a GGUF in shards, and in one file."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.api.checked import checked
from gguf_tools.api.options import at_least, byte_count, counted
from gguf_tools.api.results.editing import ReshapeResult
from gguf_tools.editing.copies import write_copies
from gguf_tools.editing.split import Reshaped, plan_merge, plan_split
from gguf_tools.formats.output import check_set
from gguf_tools.formats.watch import Watch
from gguf_tools.progress import StageProgress
from gguf_tools.sources.hub import Reading, local_source
from gguf_tools.sources.inputs import source_files


@checked
def split(
    source: str | Path,
    out: str | Path,
    *,
    max_size: str | int | None = None,
    max_tensors: int | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: StageProgress | None = None,
) -> ReshapeResult:
    """Split a GGUF into `out`-00001-of-0000N.gguf and so on, as llama.cpp's gguf-split does: `tinyq split`.

    A shard has at most `max_size` bytes of tensor data (or a string such as `2G`), or at most `max_tensors` tensors; the first
    has the metadata besides. A larger tensor has a shard of its own. `source` may be a shard of a model that is split already.

    `progress` is called with (stage, done, total). With `dry_run` nothing is written.

    Raises InputError unless exactly one limit is given, or if it gives a single shard; CheckpointError for a broken source;
    OutputError if a shard exists without `force`, is part of the source, or cannot be written.
    """
    at_least("--max-tensors", max_tensors)
    size = None if max_size is None else byte_count(max_size, "--max-size")
    source = local_source(source, Reading.WHOLE)
    watch = Watch.over(source_files(source))
    plan = plan_split(source, max_size=size, max_tensors=max_tensors)
    return _written(plan, Path(out), watch, dry_run=dry_run, force=force, progress=progress)


@checked
def merge(
    source: str | Path,
    out: str | Path,
    *,
    dry_run: bool = False,
    force: bool = False,
    progress: StageProgress | None = None,
) -> ReshapeResult:
    """Merge the shards of a GGUF, of which `source` is any, into the file `out`: `tinyq merge`.

    `progress` is called with (stage, done, total). With `dry_run` nothing is written.

    Raises InputError if the model is not split; CheckpointError if a shard is missing, misnamed, broken or of another model;
    OutputError if `out` exists without `force`, is a shard, or cannot be written.
    """
    source = local_source(source, Reading.WHOLE)
    watch = Watch.over(source_files(source))
    plan = plan_merge(source)
    return _written(plan, Path(out), watch, dry_run=dry_run, force=force, progress=progress)


def _written(
    plan: Reshaped, out: Path, watch: Watch, *, dry_run: bool, force: bool, progress: StageProgress | None
) -> ReshapeResult:
    """Carry out the plan, unless `dry_run`."""
    paths = plan.paths(out)
    if not dry_run:
        check_set(paths, [part.path for part in plan.sources], sum(file.size for file in plan.files), force=force)
        write_copies(
            plan.files,
            paths,
            force=force,
            progress=counted(progress, "writing", plan.copied_bytes),
            check=watch.check,
        )
    return ReshapeResult(plan=plan, paths=paths, written=not dry_run)
