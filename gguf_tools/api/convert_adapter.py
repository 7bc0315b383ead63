"""The public function `convert_adapter`."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.api.checked import checked
from gguf_tools.api.options import adapters_of, at_least, counted, optional_path
from gguf_tools.api.results.adapter import AdapterResult
from gguf_tools.conversion.adapter import adapter_inputs, plan_adapter, write_adapter
from gguf_tools.conversion.request import AUTO, Request
from gguf_tools.errors import InputError
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.formats.output import check_outputs
from gguf_tools.formats.watch import Watch
from gguf_tools.machine import MOST_THREADS
from gguf_tools.progress import StageProgress
from gguf_tools.sources.hub import local_source


@checked
def convert_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path,
    type: str = AUTO,
    target: str | None = None,
    text_only: bool = False,
    as_family: str | None = None,
    describe: str | Path | None = None,
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: StageProgress | None = None,
) -> AdapterResult:
    """Convert a LoRA adapter to a GGUF that llama.cpp applies to its base's GGUF: `tinyq convert ADAPTER OUT --base BASE`.

    `adapter` is a folder that PEFT saved; `base` the checkpoint that it was trained on, of which only
    headers are read until its digest is taken. The file is for the architecture that `convert` selects for the base, or for
    `target`. `type` is `auto` (the smallest exact type), `f32`, `f16` or `bf16`; `text_only`, `as_family` and `describe` are as
    in `convert`. With `dry_run` nothing is written.

    Raises UnsupportedError, naming the tensor, for what llama.cpp cannot apply as an adapter (DoRA, weights saved whole …): such
    an adapter can be merged by `convert`. Other errors as those of `convert`.
    """
    out = Path(out)
    at_least("--threads", threads, 1, MOST_THREADS)
    if as_family and describe:
        raise InputError("--as and --describe exclude each other; give one of them")
    request = Request(
        source=local_source(base),
        type=type.lower(),
        target=target,
        text_only=text_only,
        as_family=as_family,
        check_type=check_model_type,
        description=optional_path(describe),
        adapters=adapters_of(Path(adapter)),
        threads=threads or 0,
    )
    read = adapter_inputs(request)
    if not dry_run:
        check_outputs({"OUT": out}, read, force=force)
    watch = Watch.over(read)
    planned = plan_adapter(request)
    if dry_run:
        return AdapterResult(planned)
    advance = counted(progress, "writing", planned.layout.data_bytes)
    size = write_adapter(planned, out, force=force, threads=request.workers, progress=advance, check=watch.check)
    return AdapterResult(planned, out, size)
