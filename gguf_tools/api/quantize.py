"""The public function `quantize`."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.api.checked import checked
from gguf_tools.api.options import (
    TensorTypes,
    at_least,
    byte_count,
    counted,
    optional_path,
    size_target,
    type_options,
)
from gguf_tools.api.results.quantization import QuantizeResult
from gguf_tools.errors import InputError
from gguf_tools.formats.output import check_outputs
from gguf_tools.formats.watch import Watch
from gguf_tools.machine import MOST_THREADS
from gguf_tools.progress import StageProgress
from gguf_tools.quantization.plan import QuantizeRequest, prepare
from gguf_tools.quantization.write import check_room, execute
from gguf_tools.sources.hub import Reading, local_source
from gguf_tools.sources.inputs import source_files


@checked
def quantize(
    source: str | Path,
    out: str | Path,
    type: str | None = None,
    *,
    tensor_types: TensorTypes = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
    imatrix: str | Path | None = None,
    target_bpw: float | None = None,
    target_size: str | int | None = None,
    sensitivity: str | Path | None = None,
    calibration: str | Path | None = None,
    allow_requantize: bool = False,
    allow_nonfinite: bool = False,
    keep_split: bool = False,
    split_max_size: str | int | None = None,
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: StageProgress | None = None,
) -> QuantizeResult:
    """Quantize a GGUF (any shard of a split one), byte for byte as llama.cpp does: `tinyq quantize`.

    Give `type` (such as `q8_0` or `q4_k_m`), or a size for which each tensor's type is selected by measured sensitivity:
    `target_bpw` (bits per weight) or `target_size` (bytes, or a string such as `500M`); `sensitivity` is
    a JSON report that has one (of an earlier run with a size, or of `tinyq trace --budget`). `tensor_types` is that of `convert`;
    `keep_split` writes the same shards as the source, `split_max_size` limits the bytes of tensor data per shard.
    `allow_nonfinite` keeps NaN and infinity in F32, F16 and BF16, which otherwise raise an error.

    `progress` is called with (stage, done, total). With `dry_run` nothing is written.

    Raises InputError or CheckpointError if source, type or importance matrix are broken or do not fit, OutputError if `out`
    exists without `force`, is the source, or cannot be written.
    """
    out = Path(out)
    at_least("--threads", threads, 1, MOST_THREADS)
    target = size_target(target_bpw, target_size, calibration, sensitivity)
    if (type is None) == (target is None):
        raise InputError("exactly one of TYPE, --target-bpw and --target-size is expected; give one of them")
    if calibration is not None and target is None:
        raise InputError("--calibration needs --target-bpw or --target-size; give one of them")
    request = QuantizeRequest(
        source=local_source(source, Reading.WHOLE),
        type=(type or "q8_0").lower(),
        options=type_options(tensor_types, output_type, embedding_type, pure),
        imatrix=optional_path(imatrix),
        allow_requantize=allow_requantize,
        keep_split=keep_split,
        split_max_size=byte_count(split_max_size, "--split-max-size") if split_max_size is not None else None,
    )
    beside = [path for path in (request.imatrix, optional_path(calibration), optional_path(sensitivity)) if path]
    read = [*source_files(request.source), *beside]
    watch = Watch.over(read)
    chosen = None
    if target is None:
        plan = prepare(request)
    else:
        from gguf_tools.allocation.prepare import prepare_quantization

        # Checked before measuring, which takes time, and space in the output's folder.
        check_outputs({"OUT": out}, read, force=force or dry_run)
        plan, chosen = prepare_quantization(request, target, out, threads=threads or 0, progress=progress)
    if dry_run:
        return QuantizeResult(plan, chosen)
    if len(plan.parts) == 1:
        check_outputs({"OUT": out}, read, force=force)
    else:
        check_room(plan, out, force)
    advance = counted(progress, "quantizing", plan.report.bytes)
    done = execute(
        plan,
        out,
        force=force,
        threads=threads or 0,
        progress=advance,
        check=watch.check,
        allow_nonfinite=allow_nonfinite,
    )
    return QuantizeResult(plan, chosen, done)
