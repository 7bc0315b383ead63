"""`tinyq eval`: GGUF files by llama.cpp, against the torch reference and as their cards would score them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gguf_tools.commands.card_options import CARD_OPTION_NAMES, card_options, parsed_card_options
from gguf_tools.commands.common import (
    check_outputs,
    json_option,
    quiet_option,
    stage_bars,
    threads_option,
    write_json,
    write_text,
)
from gguf_tools.errors import InputError, ThresholdError

_FIDELITY_ONLY = ("reference", "prompts", "dtype", "no_speed", "min_top1", "max_nmse", "max_kl", "min_greedy")
_CARD_ONLY = (*CARD_OPTION_NAMES, "min_score")


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL…", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), metavar="SOURCE", help="The checkpoint to compare with.")
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
@threads_option
@json_option
@quiet_option
def evaluate(
    models: tuple[Path, ...],
    reference: Path | None,
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
    json_path: str | None,
    quiet: bool,
    **card: Any,
) -> None:
    """Run each MODEL greedily by llama.cpp, in a process of its own, and score it.

    Suite fidelity compares it with the torch reference: the checkpoint given, else the one recorded in the file or lying
    beside it if it is unchanged, else one rebuilt from the file's own tensors, and then only the engine is compared.

    Suite card asks questions by the model's own chat template and gives one score of 100, its parts, and what the numbers
    allow to say. Several models are shown side by side, best first.
    """
    from gguf_tools.commands.eval_tables import csv_of, json_of, markdown_of, ordered, shortcomings, text_of
    from gguf_tools.evaluation.prompts import load_prompts
    from gguf_tools.evaluation.run import FidelityRequest, measure_files
    from gguf_tools.evaluation.text_files import read_text
    from gguf_tools.runtime.process import RuntimeOptions
    from surgery.model import operate_text

    _check_options(suite)
    if [json_path, csv_path, markdown].count("-") > 1:
        raise click.UsageError("only one of --json, --csv and --markdown can go to stdout")
    check_outputs({"--json": json_path, "--csv": csv_path, "--markdown": markdown}, models)
    twice = next((path for n, path in enumerate(models) if path in models[:n]), None)
    if twice:
        raise InputError(f"{twice}: is given twice; give each file once")
    fidelity = asked = None
    if suite != "card":
        chosen = load_prompts(prompts) if prompts else None
        passage = read_text(text) if text else None
        fidelity = FidelityRequest(
            reference=reference,
            operate=operate_text,
            dtype=dtype,
            prompts=chosen,
            text=passage,
            n_generate=tokens,
            speed=not no_speed,
        )
    if suite != "fidelity":
        asked = parsed_card_options(**card, text=text, completion_tokens=tokens)
    options = RuntimeOptions(
        kv_type=kv_type, flash_attn=flash_attn, gpu_layers=gpu_layers, threads=threads, context_length=context
    )
    with stage_bars(quiet) as progress:
        results = ordered(list(measure_files(models, options, fidelity, asked, progress)))
    if json_path is not None:
        write_json(json_of(results), json_path)
    if csv_path is not None:
        write_text(csv_of(results), csv_path, "--csv")
    if markdown is not None:
        write_text(markdown_of(results), markdown, "--markdown")
    if not quiet and "-" not in (json_path, csv_path, markdown):
        click.echo(text_of(results))
    bounds = {"min_top1": min_top1, "max_nmse": max_nmse, "max_kl": max_kl, "min_greedy": min_greedy}
    short = shortcomings(results, bounds, min_score)
    if short:
        raise ThresholdError("; ".join(short))


def _check_options(suite: str) -> None:
    """Refuse an option, or a threshold, on what the suite does not measure."""
    context = click.get_current_context()
    for names, other in ((_FIDELITY_ONLY, "fidelity"), (_CARD_ONLY, "card")):
        for param in context.command.params if suite not in (other, "all") else ():
            if param.name in names and context.get_parameter_source(param.name) == ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{param.opts[0]} needs --suite {other} or all")
