"""`tinyq convert`: convert a checkpoint to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gguf_tools.commands.adapter_options import lora_option
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    nonfinite_option,
    output_options,
    refuse_given,
    stage_bars,
    table_options,
    timeout_option,
    write_report,
)
from gguf_tools.commands.completion import completer, recipe_types
from gguf_tools.commands.source_options import source_options
from gguf_tools.commands.sources import download_option, streamed_source
from gguf_tools.commands.surgery_options import WithSurgery, given_options, given_recipe
from gguf_tools.commands.type_options import type_options
from gguf_tools.commands.values import FilePath


@click.command(
    cls=WithSurgery,
    epilog=examples(
        "convert hf/ out.gguf --type q8_0",
        "convert Qwen/Qwen3-0.6B out.gguf",
        "convert best.pt out.gguf --tokenizer qwen3/ --swap 12:13",
        "convert hf/ out.gguf --lora adapter/@0.5",
        "convert adapter/ adapter.gguf --base hf/",
    ),
)
@click.argument("source", type=streamed_source())
@click.argument("out", type=FilePath())
@click.option(
    "--type",
    "type_name",
    default="auto",
    metavar="TYPE",
    shell_complete=completer(lambda: ["auto", *recipe_types()]),
    show_default=True,
    help="auto (the smallest exact type), or f32 f16 bf16 q8_0 q6_k q5_k_m q4_k_m …, in either case.",
)
@type_options
@lora_option("SOURCE first")
@click.option(
    "--base",
    type=streamed_source(),
    metavar="BASE",
    help="SOURCE is a LoRA adapter (a folder that PEFT saved) of the checkpoint BASE; write it as a GGUF for llama.cpp's --lora.",
)
@source_options
@click.option(
    "--calibration",
    type=FilePath(),
    metavar="FILE",
    help="Calibration text for --allow-approximate (default: a built-in one), --target-bpw and --target-size (default: generated "
    "by the model).",
)
@click.option(
    "--prove",
    is_flag=True,
    help="Before the file appears, compare llama.cpp's logits on a short prompt with the torch reference's, and the reference's "
    "with the oracle's (--oracle).",
)
@click.option(
    "--oracle",
    metavar="WHAT",
    help="The source's own code for --prove, as in `tinyq eval`; by default transformers, if it supports the source.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@download_option
@table_options
@timeout_option
@nonfinite_option
@output_options
def convert(
    source: Path,
    out: Path,
    type_name: str,
    tensor_types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    pure: bool,
    imatrix: Path | None,
    target_bpw: float | None,
    target_size: str | None,
    sensitivity: Path | None,
    base: Path | None,
    lora: tuple[str, ...],
    tokenizer: Path | None,
    target: str | None,
    add_bos: bool | None,
    drop_tokens: bool,
    context_length: int | None,
    allow_approximate: bool,
    calibration: Path | None,
    text_only: bool,
    prove: bool,
    oracle: str | None,
    as_family: str | None,
    describe: Path | None,
    dry_run: bool,
    allow_nonfinite: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Convert the checkpoint SOURCE to OUT, a GGUF that stock llama.cpp runs.

    SOURCE is a folder in Hugging Face layout, or a torch state dict: a file, or a folder that contains one. ORG/NAME[@REVISION]
    is a repository on the hub, whose weights are streamed (see --download).

    Before the weights are read, llama.cpp and the source's tokenizer tokenize a probe text, and the token ids must be equal.
    Layer surgery is applied during conversion, in the order of its options.
    """
    if base is not None:
        _refuse_other_options()
        _convert_adapter(
            source,
            out,
            base=base,
            type=type_name,
            target=target,
            text_only=text_only,
            as_family=as_family,
            describe=describe,
            dry_run=dry_run,
            force=force,
            threads=threads,
            json_path=json_path,
            quiet=quiet,
        )
        return
    from gguf_tools import convert as run

    check_outputs({"--json": json_path}, force=force, outputs={} if dry_run else {"OUT": out})
    with stage_bars(quiet, out.name) as progress:
        result = run(
            source,
            out,
            lora=lora,
            type=type_name,
            tensor_types=tensor_types,
            output_type=output_type,
            embedding_type=embedding_type,
            pure=pure,
            imatrix=imatrix,
            target_bpw=target_bpw,
            target_size=target_size,
            sensitivity=sensitivity,
            tokenizer=tokenizer,
            target=target,
            add_bos=add_bos,
            drop_tokens=drop_tokens,
            context_length=context_length,
            prove=prove,
            oracle=oracle,
            allow_approximate=allow_approximate,
            calibration=calibration,
            text_only=text_only,
            as_family=as_family,
            describe=describe,
            surgery=given_recipe(),
            dry_run=dry_run,
            allow_nonfinite=allow_nonfinite,
            force=force,
            threads=threads,
            progress=progress,
        )
    write_report(result, json_path, force=force, shown=dry_run or not quiet)


WITH_BASE = frozenset(
    {
        *("source", "out", "base", "type_name", "target", "text_only", "as_family", "describe", "dry_run", "force"),
        *("threads", "json_path", "quiet", "wide", "layout", "download"),
    }
)
"""The parameters that the conversion of an adapter has."""


def _refuse_other_options() -> None:
    """Raise click.UsageError for an option that the conversion of an adapter does not have."""
    names = {param.name or "" for param in click.get_current_context().command.params}
    refuse_given(names - WITH_BASE, "and --base exclude each other: an adapter has no such option")
    if given_options():
        raise click.UsageError("layer surgery and --base exclude each other: operate on the base, or merge with --lora")


def _convert_adapter(
    adapter: Path, out: Path, *, dry_run: bool, force: bool, json_path: str | None, quiet: bool, **options: Any
) -> None:
    """`tinyq convert ADAPTER OUT --base BASE`."""
    from gguf_tools import convert_adapter as run

    check_outputs({"--json": json_path}, force=force, outputs={} if dry_run else {"OUT": out})
    with stage_bars(quiet, out.name) as progress:
        result = run(adapter, out, dry_run=dry_run, force=force, progress=progress, **options)
    write_report(result, json_path, force=force, shown=dry_run or not quiet)
