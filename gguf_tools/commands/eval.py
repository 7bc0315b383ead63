"""`tinyq eval`: GGUF files by llama.cpp, against the torch reference and as their cards would score them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gguf_tools.commands.card_options import CARD_OPTION_NAMES, card_options, parsed_weights
from gguf_tools.commands.common import (
    check_outputs,
    force_option,
    json_option,
    quiet_option,
    show,
    stage_bars,
    threads_option,
    timeout_option,
    write_json,
    write_text,
)

_FIDELITY_ONLY = ("reference", "oracle", "prompts", "dtype", "no_speed", "min_top1", "max_nmse", "max_kl", "min_greedy")
_CARD_ONLY = (*CARD_OPTION_NAMES, "min_score")


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL…", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), metavar="SOURCE", help="The checkpoint to compare with.")
@click.option(
    "--oracle",
    metavar="WHAT",
    help="Other code to hold the reference against: transformers, MODULE:FUNCTION (token ids → logits), a file of golden logits "
    "(.npz or .safetensors), or none. By default transformers on one short prompt, where it knows the source.",
)
@click.option(
    "--suite",
    type=click.Choice(["fidelity", "card", "all"]),
    default="fidelity",
    show_default=True,
    help="What to measure: against the reference, by questions, or both.",
)
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Prompts, one a line, or JSONL.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Another text for the perplexity.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Tokens by which to continue a prompt or text.",
)
@click.option(
    "--kv-type", type=click.Choice(["f32", "f16", "q8_0"]), default="f32", show_default=True, help="llama.cpp's cache."
)
@click.option("--flash-attn", is_flag=True, help="Use llama.cpp's fused attention.")
@click.option("--gpu-layers", type=int, default=0, show_default=True, help="Layers on the GPU; -1 for all.")
@click.option("--context", type=click.IntRange(min=1), help="Context length; as much as is needed by default.")
@click.option(
    "--dtype", type=click.Choice(["f32", "f64"]), default="f32", show_default=True, help="The reference's arithmetic."
)
@click.option("--no-speed", is_flag=True, help="Do not measure the speed.")
@card_options
@click.option("--min-top1", type=float, help="Exit with 1 if fewer positions agree on the likeliest token (0 to 1).")
@click.option("--max-nmse", type=float, help="Exit with 1 if the logits' NMSE is larger.")
@click.option("--max-kl", type=float, help="Exit with 1 if the mean KL divergence is larger, nats.")
@click.option("--min-greedy", type=float, help="Exit with 1 if fewer greedy texts are equal (0 to 1).")
@click.option("--min-score", type=float, help="Exit with 1 if the card's score is lower (0 to 100).")
@click.option("--csv", "csv_path", metavar="FILE", help="Write one line a model as CSV to FILE, or to stdout with -.")
@click.option("--markdown", metavar="FILE", help="Write the table as Markdown to FILE, or to stdout with -.")
@timeout_option
@threads_option
@force_option
@json_option
@quiet_option
def evaluate(
    models: tuple[Path, ...],
    reference: Path | None,
    oracle: str | None,
    suite: str,
    prompts: Path | None,
    text: Path | None,
    tokens: int,
    kv_type: Any,
    flash_attn: bool,
    gpu_layers: int,
    context: int | None,
    dtype: str,
    no_speed: bool,
    min_top1: float | None,
    max_nmse: float | None,
    max_kl: float | None,
    min_greedy: float | None,
    min_score: float | None,
    csv_path: str | None,
    markdown: str | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
    **card: Any,
) -> None:
    """Run each MODEL greedily by llama.cpp, in a process of its own, and score it.

    Suite fidelity compares it with the torch reference: the checkpoint given, else the one recorded in the file or lying
    beside it if it is unchanged, else one rebuilt from the file's own tensors, and then only the engine is compared.

    The source's own code, as transformers has it, is asked too whether the reference reads the checkpoint rightly: exit code 1
    where it does not. It is the reference itself where tinyq does not know the family, for a file that others converted.

    Suite card asks questions by the model's own chat template and gives one score of 100, its parts, and what the numbers
    allow to say. Several models are shown side by side, best first; where llama.cpp fails on one, the others go on, and the exit
    code is 3.
    """
    from gguf_tools import evaluate as run

    _check_options(suite)
    if [json_path, csv_path, markdown].count("-") > 1:
        raise click.UsageError("only one of --json, --csv and --markdown can go to stdout")
    check_outputs({"--json": json_path, "--csv": csv_path, "--markdown": markdown}, force=force)
    weights = parsed_weights(card.pop("weights"))
    with stage_bars(quiet) as progress:
        result = run(
            models,
            reference=reference,
            oracle=oracle or "auto",
            suite=suite,
            prompts=prompts,
            text=text,
            tokens=tokens,
            kv_type=kv_type,
            flash_attn=flash_attn,
            gpu_layers=gpu_layers,
            context=context,
            dtype=dtype,
            speed=not no_speed,
            weights=weights,
            threads=threads,
            progress=progress,
            **card,
        )
    if json_path is not None:
        write_json(result.as_dict(), json_path, force=force)
    if csv_path is not None:
        write_text(result.as_csv(), csv_path, "--csv", force=force)
    if markdown is not None:
        write_text(result.as_markdown(), markdown, "--markdown", force=force)
    if not quiet and "-" not in (json_path, csv_path, markdown):
        show(str(result))
    bounds = {"min_top1": min_top1, "max_nmse": max_nmse, "max_kl": max_kl, "min_greedy": min_greedy}
    result.require(**bounds, min_score=min_score)


def _check_options(suite: str) -> None:
    """Refuse an option, or a threshold, on what the suite does not measure."""
    context = click.get_current_context()
    for names, other in ((_FIDELITY_ONLY, "fidelity"), (_CARD_ONLY, "card")):
        for param in context.command.params if suite not in (other, "all") else ():
            if param.name in names and context.get_parameter_source(param.name) == ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{param.opts[0]} needs --suite {other} or all")
