"""The public function `publish`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from gguf_tools.api.checked import checked
from gguf_tools.api.options import Donors, TensorTypes, at_least, card_options, counted, one_of, refuse_card_options
from gguf_tools.api.request import conversion_request
from gguf_tools.api.results.publication import PublishResult
from gguf_tools.conversion.plan import Conversion, Opened, open_source, prepare
from gguf_tools.conversion.request import AUTO, Request
from gguf_tools.errors import InputError
from gguf_tools.evaluation.vocabulary import prove_vocabulary
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.formats.output import check_outputs
from gguf_tools.machine import MOST_COUNT
from gguf_tools.progress import StageProgress
from gguf_tools.publishing.folder import CHECKSUMS, checked_files, is_published, require_own
from gguf_tools.publishing.names import base_models_of, check_names
from gguf_tools.publishing.plan import plan_publication
from gguf_tools.publishing.upload import check_repository, look, refuse_replacing, upload
from gguf_tools.runtime.child import PURPOSE
from gguf_tools.runtime.process import KVType, RuntimeOptions
from gguf_tools.sources.hub import Reading, cached_name, local_source
from quant.installed import require_llama_cpp
from quant.recipes import recipe
from surgery.recipe import Recipe

if TYPE_CHECKING:
    from gguf_tools.evaluation.reference_source import ReferenceSource

TYPES = ("q8_0", "q6_k", "q4_k_m")
SUITES = ("none", "fidelity", "card", "all")


@checked
def publish(
    source: str | Path,
    out: str | Path | None = None,
    *,
    to: str | None = None,
    private: bool = False,
    types: str | Sequence[str] = TYPES,
    name: str | None = None,
    suite: str = "all",
    base_model: str | None = None,
    quantized_by: str | None = None,
    context: int | None = None,
    kv_type: str = "f32",
    flash_attn: bool = False,
    gpu_layers: int = 0,
    questions: str | Path = "general",
    repeat_set: int = 1,
    held_out: str | Path | None = None,
    weights: Mapping[str, float] | None = None,
    thinking: bool = False,
    answer_tokens: int = 128,
    think_tokens: int = 1024,
    tensor_types: TensorTypes = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
    imatrix: str | Path | None = None,
    lora: str | Path | Iterable[str | Path] = (),
    tokenizer: str | Path | None = None,
    target: str | None = None,
    add_bos: bool | None = None,
    drop_tokens: bool = False,
    context_length: int | None = None,
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
) -> PublishResult:
    """Convert a checkpoint to several types, measure them, and write a folder that is ready for the hub: `tinyq publish`.

    The checkpoint is read once for all `types` (names, or text with commas). The folder `out` gets the GGUF files, named by
    `name` and type, a model card with one table of all of them, a Modelfile for each, and SHA256SUMS; it appears when all is
    complete. `suite` says what is measured: `fidelity` compares each file with the torch reference, which is run once, on the
    same positions; `card` asks questions (options `questions` to `think_tokens`); `all` does both, `none` neither. `context` is
    the length in tokens for which memory is stated. `base_model` and `quantized_by` go into the card's front matter, in which
    values that the hub refuses are left out; the result's `notes` say which. With `force` a folder of an earlier run is replaced.
    The other arguments are those of `convert` and `evaluate`.

    `to` is a repository OWNER/NAME on the hub, to which the folder (by default NAME) is uploaded when it is complete, in one
    commit; it is created if it does not exist (`private` or not). That it can be written is checked before any work. Files in it
    that would be replaced are an error without `force`; others stay. `source` may also be a folder that `publish` wrote: then it
    is only uploaded, and an interrupted upload goes on.

    `progress` is called with (stage, done, total). With `dry_run` nothing is written.

    Raises the errors of `convert` and `evaluate`; OutputError if `out` exists without `force`, or holds other files.
    """
    if to is not None:
        check_repository(to)
    if is_published(Path(source)):
        return _upload_again(Path(source), out, to, private, force, dry_run, progress)
    if out is None and to is None:
        raise InputError(
            "publish needs a folder to write (--out DIR), a repository to upload to (--to OWNER/NAME), or both"
        )
    out = Path(out) if out is not None else Path(str(to).rpartition("/")[2])
    source = local_source(source, Reading.WHOLE)
    if source.is_file() and is_gguf(source):
        raise InputError(
            f"{source}: is a GGUF; publish makes all types from a checkpoint; quantize a GGUF with `tinyq quantize`, and "
            "describe the files with `tinyq card`"
        )
    one_of("--suite", suite, SUITES)
    if suite not in ("card", "all"):
        refuse_card_options((questions, repeat_set, held_out, weights, thinking, answer_tokens, think_tokens))
    if private and to is None:
        raise InputError("--private is for the repository of --to; give --to OWNER/NAME")
    if calibration is not None and not allow_approximate:
        raise InputError("--calibration needs --allow-approximate; add it")
    one_of("--kv-type", kv_type, get_args(KVType))
    at_least("--context", context, 1, MOST_COUNT)
    wanted = _types(types)

    def check(read: Sequence[Path]) -> None:
        if not dry_run:
            check_outputs({"--out": out}, read, force=force, folders={"--out": (CHECKSUMS,)})
            require_own(out)

    asked = conversion_request(
        source,
        check,
        type=wanted[0],
        tensor_types=tensor_types,
        output_type=output_type,
        embedding_type=embedding_type,
        pure=pure,
        imatrix=imatrix,
        lora=lora,
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
    card = card_options(
        questions=questions,
        repeat_set=repeat_set,
        held_out=held_out,
        weights=weights,
        thinking=thinking,
        answer_tokens=answer_tokens,
        think_tokens=think_tokens,
    )
    opened = open_source(asked.request)
    check_names(base_model, quantized_by)
    remote = None if to is None else look(to)
    conversions = _conversions(asked.request, opened, wanted, progress)
    metadata = conversions[0].metadata
    base_models = (base_model,) if base_model else base_models_of(asked.request.source, metadata)
    plan = plan_publication(
        conversions,
        stem=name or str(metadata["general.name"].value),
        repository=to,
        base_models=base_models,
        source=_named(asked.request.source, base_models),
        quantized_by=quantized_by,
        imatrix=asked.request.imatrix,
    )
    replaced = remote.others(plan.published_names) if remote else ()
    if dry_run:
        return PublishResult(plan, out, replaced=replaced)
    if remote:
        refuse_replacing(remote, replaced, force=force)
    require_llama_cpp(PURPOSE)
    # torch, which the reference runs on, takes seconds to load.
    from gguf_tools.publishing.measure import Suites
    from gguf_tools.publishing.write import write_publication
    from surgery.told import tell_surgery

    suites = Suites(
        reference=_reference(asked.request, opened) if suite in ("fidelity", "all") else None,
        card=card if suite in ("card", "all") else None,
        context=context,
    )
    options = RuntimeOptions(
        kv_type=cast(KVType, kv_type), flash_attn=flash_attn, gpu_layers=gpu_layers, threads=threads
    )
    made = write_publication(
        plan,
        out,
        suites,
        options,
        tell_surgery,
        force=force,
        threads=asked.request.workers,
        allow_nonfinite=allow_nonfinite,
        prove_header=prove_vocabulary,
        check=asked.watch.check,
        writing=counted(progress, "writing", sum(one.layout.data_bytes for one in plan.conversions)),
        progress=progress,
    )
    uploaded = None
    if to is not None:
        uploaded = upload(out, tuple(made.digests), to, private=private, force=force, progress=progress)
    return PublishResult(plan, out, made, uploaded)


def _upload_again(
    folder: Path,
    out: str | Path | None,
    to: str | None,
    private: bool,
    force: bool,
    dry_run: bool,
    progress: StageProgress | None,
) -> PublishResult:
    """Upload a folder that was written before, if its files are still those of its checksums."""
    if to is None or out is not None:
        raise InputError(
            f"{folder}: was written by `tinyq publish`; give --to OWNER/NAME, and no --out, to upload it, or another SOURCE"
        )
    names = tuple(checked_files(folder))
    remote = look(to)
    replaced = remote.others(names, folder)
    if dry_run:
        return PublishResult(None, folder, replaced=replaced)
    refuse_replacing(remote, replaced, force=force)
    uploaded = upload(folder, names, to, private=private, force=force, progress=progress)
    return PublishResult(None, folder, uploaded=uploaded)


def _types(types: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the types, in lower case; InputError if there are none, or one twice or unknown."""
    parts = [part for text in ([types] if isinstance(types, str) else types) for part in text.split(",")]
    names = [part.strip().lower() for part in parts if part.strip()]
    if not names:
        raise InputError(f"--types is {types!r}; expected types such as {','.join(TYPES)}")
    known = [AUTO if name == AUTO else recipe(name).name for name in names]
    _refuse_twice(known, names)
    return tuple(known)


def _refuse_twice(known: Sequence[str], given: Sequence[str]) -> None:
    twice = next((n for n, name in enumerate(known) if name in known[:n]), None)
    if twice is not None:
        raise InputError(f"--types has {known[twice]} twice ({', '.join(given)}); give each type once")


def _named(source: Path, base_models: Sequence[str]) -> str:
    """What others give as the source: the repository with the commit, else the base model if it is one, else a word."""
    name = cached_name(source)
    if name:
        return f"{name.repository}@{name.revision}"
    return base_models[0] if len(base_models) == 1 else "SOURCE"


def _conversions(
    request: Request, opened: Opened, types: Sequence[str], progress: StageProgress | None
) -> list[Conversion]:
    """The plan of each type."""
    made = []
    for name in types:
        weights = sum(tensor.size for _, tensor in opened.halvable) if name == AUTO else 0
        made.append(prepare(replace(request, type=name), opened, counted(progress, "reading", weights)))
    _refuse_twice([one.decision.name for one in made], types)
    return made


def _reference(request: Request, opened: Opened) -> ReferenceSource:
    """The checkpoint as the reference, after the surgery that the files have behind them."""
    from gguf_tools.evaluation.reference_source import ReferenceSource

    recipe_text = request.operation.text if request.operation else ""
    return ReferenceSource(
        model=opened.model,
        origin="given",
        path=request.source,
        tokenizer=opened.tokenizer,
        note="it runs the checkpoint that the files were made from" + (f", after {recipe_text}" if recipe_text else ""),
        recipe=recipe_text,
        is_source=True,
        checkpoint=opened.checkpoint,
    )
