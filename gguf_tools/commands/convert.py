"""`tinyq convert`: a checkpoint into a GGUF."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import (
    check_outputs,
    nonfinite_option,
    output_options,
    stage_bars,
    timeout_option,
    write_report,
)
from gguf_tools.commands.surgery_options import WithSurgery, given_recipe
from gguf_tools.commands.type_options import type_options


@click.command(cls=WithSurgery)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "type_name",
    default="auto",
    metavar="TYPE",
    show_default=True,
    help="auto is the smallest that is exact; or f32 f16 bf16 q8_0 q6_k q5_k_m q4_k_m … in either case.",
)
@type_options
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the tokenizer, where it does not lie in SOURCE.",
)
@click.option("--target", metavar="NAME", help="Force a llama.cpp architecture instead of the cheapest exact one.")
@click.option("--add-bos/--no-add-bos", default=None, help="Override the tokenizer's add_bos setting.")
@click.option("--drop-tokens", is_flag=True, help="Leave out tokens that the embedding has no row for.")
@click.option(
    "--context-length",
    type=click.IntRange(min=1, max=(1 << 31) - 1),
    metavar="N",
    help="Longest context to record, where the checkpoint does not say or says otherwise.",
)
@click.option(
    "--allow-approximate",
    is_flag=True,
    help="Where no architecture is exact, take the nearest and say what was reached.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to fit --allow-approximate to (by default a built-in one) and to measure --target-bpw on (what the model writes).",
)
@click.option("--text-only", is_flag=True, help="Leave out a vision or audio tower beside the text model.")
@click.option(
    "--prove",
    is_flag=True,
    help="Before the file appears, compare its logits of a short prompt by llama.cpp with the torch reference, and that with the "
    "source's own code.",
)
@click.option(
    "--oracle",
    metavar="WHAT",
    help="What --prove takes for the source's own code, as in `tinyq eval`; transformers by default, where it knows the source.",
)
@click.option(
    "--as",
    "as_family",
    metavar="NAME",
    help="Compute a model_type that tinyq does not know as this family (such as llama) or model_type does.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
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
    dry_run: bool,
    allow_nonfinite: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Turn the checkpoint SOURCE into OUT, a GGUF that stock llama.cpp runs.

    SOURCE is a folder in Hugging Face layout, or a torch state dict: a file, or the only one in its folder.

    At the end a probe text is tokenized by both sides; the file appears only if they agree. Layer surgery is done on the
    way, in the order of its options.
    """
    from gguf_tools import convert as run

    check_outputs({"--json": json_path}, force=force, outputs={} if dry_run else {"OUT": out})
    with stage_bars(quiet) as progress:
        result = run(
            source,
            out,
            type=type_name,
            tensor_types=tensor_types,
            output_type=output_type,
            embedding_type=embedding_type,
            pure=pure,
            imatrix=imatrix,
            target_bpw=target_bpw,
            target_size=target_size,
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
            surgery=given_recipe(),
            dry_run=dry_run,
            allow_nonfinite=allow_nonfinite,
            force=force,
            threads=threads,
            progress=progress,
        )
    write_report(result, json_path, force=force, shown=dry_run or not quiet)
