"""The request of a conversion, from the arguments that `convert` and `publish` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.api.options import Donors, TensorTypes, adapters_of, at_least, optional_path, recipe_of, type_options
from gguf_tools.conversion.request import AUTO, Request
from gguf_tools.errors import InputError
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.formats.watch import Watch
from gguf_tools.machine import MOST_COUNT, MOST_THREADS
from gguf_tools.sources.adapters.adapter import adapter_files
from gguf_tools.sources.hub import Reading, local_source
from gguf_tools.sources.inputs import source_files
from surgery.conversion import operation_of
from surgery.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """A conversion's request, the paths that carrying it out may read, and their states before anything was read."""

    request: Request
    read: tuple[Path, ...]
    watch: Watch


def conversion_request(
    source: str | Path,
    check: Callable[[Sequence[Path]], None],
    *,
    lora: str | Path | Iterable[str | Path] = (),
    type: str = AUTO,
    tensor_types: TensorTypes = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
    imatrix: str | Path | None = None,
    sensitivity: str | Path | None = None,
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
    threads: int | None = None,
) -> Asked:
    """The request, for the arguments of `convert`. Raises InputError, naming the option, if one is not valid.

    `check` is called with the paths that will be read, before any is, to check the outputs. With `dry_run` the donors of
    `surgery` are not read for their digests. `sensitivity` is only listed as read.
    """
    at_least("--context-length", context_length, 1, MOST_COUNT)
    at_least("--threads", threads, 1, MOST_THREADS)
    if as_family and describe:
        raise InputError("--as and --describe exclude each other; give one of them")
    source, tokenizer = local_source(source), tokenizer and local_source(tokenizer, Reading.BESIDE)
    recipe = None if surgery is None else recipe_of(surgery, donors)
    others = [donor.path for donor in recipe.donors] if recipe else []
    folders = [Path(source), *([Path(tokenizer)] if tokenizer else []), *others]
    beside = [Path(path) for path in (imatrix, calibration, sensitivity, describe) if path]
    adapters = adapters_of(lora)
    beside += [file for adapter in adapters for file in adapter_files(adapter.path)]
    read = (*(file for folder in folders for file in source_files(folder)), *beside)
    check(read)
    watch = Watch.over(read)
    request = Request(
        source=Path(source),
        type=type.lower(),
        tokenizer=optional_path(tokenizer),
        target=target,
        add_bos=add_bos,
        drop_tokens=drop_tokens,
        threads=threads or 0,
        text_only=text_only,
        as_family=as_family,
        check_type=check_model_type,
        operation=operation_of(recipe, Path(source), optional_path(tokenizer), digests=not dry_run) if recipe else None,
        context_length=context_length,
        description=optional_path(describe),
        adapters=adapters,
        allow_approximate=allow_approximate,
        allow_nonfinite=allow_nonfinite,
        calibration=optional_path(calibration),
        options=type_options(tensor_types, output_type, embedding_type, pure),
        imatrix=optional_path(imatrix),
    )
    return Asked(request, read, watch)
