"""The public function `convert`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.api.checked import checked
from gguf_tools.api.options import Donors, TensorTypes, counted, size_target
from gguf_tools.api.request import conversion_request
from gguf_tools.api.results.conversion import ConvertResult
from gguf_tools.conversion.plan import Conversion, open_source, prepare
from gguf_tools.conversion.request import AUTO, Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import InputError
from gguf_tools.evaluation.vocabulary import prove_vocabulary
from gguf_tools.formats.output import check_outputs
from gguf_tools.progress import StageProgress
from gguf_tools.runtime.child import PURPOSE
from gguf_tools.sources.hub import Reading, local_source
from quant.installed import require_llama_cpp
from surgery.recipe import Recipe

if TYPE_CHECKING:
    from gguf_tools.evaluation.proof import Proof


@checked
def convert(
    source: str | Path,
    out: str | Path,
    *,
    lora: str | Path | Iterable[str | Path] = (),
    type: str = AUTO,
    tensor_types: TensorTypes = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
    imatrix: str | Path | None = None,
    target_bpw: float | None = None,
    target_size: str | int | None = None,
    sensitivity: str | Path | None = None,
    tokenizer: str | Path | None = None,
    target: str | None = None,
    add_bos: bool | None = None,
    drop_tokens: bool = False,
    context_length: int | None = None,
    prove: bool = False,
    oracle: str | None = None,
    allow_approximate: bool = False,
    allow_nonfinite: bool = False,
    calibration: str | Path | None = None,
    text_only: bool = False,
    as_family: str | None = None,
    describe: str | Path | None = None,
    surgery: str | Path | Recipe | None = None,
    donors: Donors | None = None,
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: StageProgress | None = None,
) -> ConvertResult:
    """Convert a checkpoint to a GGUF that stock llama.cpp runs: `tinyq convert`.

    `source` is a folder in Hugging Face layout, or a torch state dict: a file, or a folder that contains one, or a repository on
    the hub (ORG/NAME[@REVISION]), whose weights are streamed. `type` is
    `auto` (the smallest exact type) or one such as `f32`, `f16`, `q8_0`, `q4_k_m`; with `target_bpw` (bits per weight) or
    `target_size` (bytes, or a string such as `500M`) each tensor's type is selected by measured sensitivity instead;
    `sensitivity` is a JSON report that has one (of an earlier run with a size, or of `tinyq trace --budget`).
    `tensor_types` maps regular expressions on tensor names to types, or lists strings REGEX=TYPE; the last match wins.
    `lora` names LoRA adapters (folders that PEFT saved, or strings DIR@SCALE), which are merged into the checkpoint first.
    `surgery` is a recipe as in `operate`, with its `donors`, applied during conversion. `allow_nonfinite` keeps NaN and
    infinity in F32, F16 and BF16, which otherwise raise an error. `drop_tokens` leaves out tokens without a row in the
    embedding. `as_family` names the family or model_type to use for a model_type that tinyq does not know; without it, such a
    model is accepted only if transformers computes the same logits. `describe` is a description of the tensors, for a decoder
    that no family knows; by default a tinyq.toml beside the weights is read. Before the file appears, llama.cpp and the source's
    tokenizer tokenize a probe text, and the token ids must be equal.

    With `prove`, the torch reference is compared with the source's own code (`oracle` as in `evaluate`; by default
    transformers, if it supports the source), and, before the file appears, llama.cpp's logits on a short prompt with the
    reference's.

    `progress` is called with (stage, done, total). With `dry_run` nothing is written.

    Raises InputError or one of its subclasses (CheckpointError, UnsupportedError, TokenizerError) if the source cannot be
    converted, OutputError if `out` exists without `force` or cannot be written, LlamaError if llama.cpp rejects the file.
    """
    out = Path(out)
    source = local_source(source, Reading.WHOLE if prove else Reading.STREAMED)
    if oracle and not prove:
        raise InputError("--oracle needs --prove; add --prove")

    def check(read: Sequence[Path]) -> None:
        if not dry_run:
            check_outputs({"OUT": out}, read, force=force)

    asked = conversion_request(
        source,
        check,
        lora=lora,
        type=type,
        tensor_types=tensor_types,
        output_type=output_type,
        embedding_type=embedding_type,
        pure=pure,
        imatrix=imatrix,
        sensitivity=sensitivity,
        tokenizer=tokenizer,
        target=target,
        add_bos=add_bos,
        drop_tokens=drop_tokens,
        context_length=context_length,
        allow_approximate=allow_approximate,
        allow_nonfinite=allow_nonfinite,
        calibration=calibration,
        text_only=text_only,
        as_family=as_family,
        describe=describe,
        surgery=surgery,
        donors=donors,
        dry_run=dry_run,
        threads=threads,
    )
    request, read = asked.request, asked.read
    size = size_target(target_bpw, target_size, calibration, sensitivity)
    if calibration is not None and size is None and not allow_approximate:
        raise InputError("--calibration needs --target-bpw, --target-size or --allow-approximate; give one of them")
    chosen = None
    if size is None:
        conversion = _prepared(request, progress)
    elif request.type != AUTO:
        raise InputError("--type and a size (--target-bpw, --target-size) exclude each other; give one of them")
    else:
        from gguf_tools.allocation.prepare import prepare_conversion

        check_outputs({"OUT": out}, read, force=force or dry_run)  # measuring needs space in the output's folder
        conversion, chosen = prepare_conversion(request, size, out, progress)
    if dry_run:
        return ConvertResult(conversion, chosen)
    require_llama_cpp(PURPOSE)  # the proof at the end would fail after the work
    proof = _proof(request, conversion, oracle) if prove else None
    advance = counted(progress, "writing", conversion.layout.data_bytes)
    written = execute(
        conversion,
        out,
        force=force,
        threads=request.workers,
        progress=advance,
        prove_header=prove_vocabulary,
        prove=proof,
        check=asked.watch.check,
        allow_nonfinite=allow_nonfinite,
    )
    return ConvertResult(conversion, chosen, written, proof)


def _proof(request: Request, conversion: Conversion, oracle: str | None) -> Proof:
    # torch, which the reference runs on, takes seconds to load.
    from gguf_tools.evaluation.proof import Proof

    return Proof(request, conversion, oracle or "auto")


def _prepared(request: Request, progress: StageProgress | None) -> Conversion:
    opened = open_source(request)
    total = sum(tensor.size for _, tensor in opened.halvable) if request.type == AUTO else 0
    return prepare(request, opened, counted(progress, "reading", total))
