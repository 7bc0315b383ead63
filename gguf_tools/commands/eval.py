"""`tinyq eval`: run GGUF files with llama.cpp; compare them with the torch reference, and score them on questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.adapter_options import lora_option
from gguf_tools.commands.card_options import CARD_OPTION_NAMES, card_options, parsed_weights
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    quiet_option,
    refuse_given,
    show_report,
    stage_bars,
    table_options,
    takes_stdout,
    threads_option,
    timeout_option,
    write_json,
    write_text,
)
from gguf_tools.commands.engine_options import engine_options
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath, Number
from gguf_tools.errors import AMOUNT, SCORE, SHARE, ThresholdError
from gguf_tools.machine import MOST_COUNT
from gguf_tools.tables import Lines, Report

if TYPE_CHECKING:
    from gguf_tools.api.results.evaluation import EvaluateResult

EXACT_TYPE, EXACT_NMSE = "f32", 1e-9
"""Files of this type are exact up to this NMSE of the logits; for others the first bad point is looked for."""
_FIDELITY_ONLY = (
    "reference",
    "lora",
    "oracle",
    "prompts",
    "dtype",
    "no_speed",
    "min_top1",
    "max_nmse",
    "max_kl",
    "min_greedy",
)
_CARD_ONLY = (*CARD_OPTION_NAMES, "min_score", "show_answers", "answers")


@click.command(
    "eval",
    epilog=examples("eval out.gguf --reference hf/ --min-top1 0.97", "eval a.gguf b.gguf --suite card --show-answers"),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…", type=whole_source())
@click.option("--reference", type=whole_source(), metavar="SOURCE", help="Checkpoint to compare with.")
@lora_option("the checkpoint of --reference")
@click.option(
    "--oracle",
    metavar="WHAT",
    help="Independent code to check the torch reference against: transformers, MODULE:FUNCTION (token ids → logits), a file of "
    "golden logits (.npz or .safetensors), or none. By default transformers on one short prompt, if it supports the source.",
)
@click.option(
    "--suite",
    type=click.Choice(["fidelity", "card", "all"]),
    default="fidelity",
    show_default=True,
    help="What to measure: fidelity to the reference, answers to questions (card), or both.",
)
@click.option("--prompts", type=FilePath(), metavar="FILE", help="Prompts, one per line, or JSON Lines.")
@click.option("--text", type=FilePath(), metavar="FILE", help="Text for the perplexity.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Number of tokens to generate after each prompt or text.",
)
@engine_options
@click.option(
    "--context",
    type=click.IntRange(1, MOST_COUNT),
    help="Context length in tokens, by default as long as needed; --text is compared in pieces of this length (else of 512).",
)
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f64"]),
    default="f32",
    show_default=True,
    help="Precision of the torch reference.",
)
@click.option("--no-speed", is_flag=True, help="Do not measure speed.")
@card_options
@click.option("--min-top1", type=Number(SHARE), help="Exit with 1 if the top-1 agreement is lower (0 to 1).")
@click.option("--max-nmse", type=Number(AMOUNT), help="Exit with 1 if the NMSE of the logits is higher.")
@click.option("--max-kl", type=Number(AMOUNT), help="Exit with 1 if the mean KL divergence (in nats) is higher.")
@click.option(
    "--min-greedy", type=Number(SHARE), help="Exit with 1 if the share of equal greedy texts is lower (0 to 1)."
)
@click.option("--min-score", type=Number(SCORE), help="Exit with 1 if the card score is lower (0 to 100).")
@click.option("--show-answers", is_flag=True, help="Card suite: print each question, answer and verdict, and why.")
@click.option(
    "--answers",
    metavar="FILE",
    help="Card suite: write the answers as JSON Lines to FILE (- for stdout), one record for each question and mode.",
)
@click.option("--csv", "csv_path", metavar="FILE", help="Write CSV, one row per model, to FILE (- for stdout).")
@click.option("--markdown", metavar="FILE", help="Write the table as Markdown to FILE (- for stdout).")
@table_options
@timeout_option
@threads_option
@force_option
@json_option
@quiet_option
def evaluate(
    models: tuple[Path, ...],
    reference: Path | None,
    lora: tuple[str, ...],
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
    show_answers: bool,
    answers: str | None,
    csv_path: str | None,
    markdown: str | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
    **card: Any,
) -> None:
    """Run each MODEL with llama.cpp, in a child process, and score it.

    Suite fidelity compares it with the torch reference. The reference is built from the checkpoint given by --reference, else
    from the one recorded in the file or in its folder, if unchanged, else from the file's own tensors; in the last case only the
    engine is compared, not the conversion.

    The reference itself is checked against the source's own code in transformers (see --oracle); the exit code is 1 if they
    differ. If an F32 file misses a threshold, the first intermediate that is wrong is named, as tinyq trace finds it. For a file
    converted by others, of a family that tinyq does not know, transformers is the reference.

    Suite card asks questions with the model's own chat template and reports a score from 0 to 100, its components, and whether
    differences are significant. Several models are listed best first; if llama.cpp fails on one, the others are still
    evaluated, and the exit code is 3.
    """
    from gguf_tools import evaluate as run
    from gguf_tools.evaluation.card.listing import as_lines

    _check_options(suite)
    reports = {"--json": json_path, "--csv": csv_path, "--markdown": markdown, "--answers": answers}
    if sum(map(takes_stdout, reports.values())) > 1:
        raise click.UsageError("only one of --json, --csv, --markdown and --answers can go to stdout")
    check_outputs(reports, force=force)
    weights = parsed_weights(card.pop("weights"))
    with stage_bars(quiet, models[0].name if len(models) == 1 else "") as progress:
        result = run(
            models,
            reference=reference,
            lora=lora,
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
    if answers is not None:
        write_text(as_lines(result.answers()), answers, "--answers", force=force)
    if not quiet and not takes_stdout(*reports.values()):
        show_report(result)
    if show_answers and not takes_stdout(*reports.values()):
        answered = result.answers_report().blocks()
        show_report(Report(answered if quiet else [Lines(), *answered]))
    bounds = {"min_top1": min_top1, "max_nmse": max_nmse, "max_kl": max_kl, "min_greedy": min_greedy}
    try:
        result.require(**bounds, min_score=min_score)
    except ThresholdError as error:
        raise ThresholdError(f"{error}{_first_bad(result, reference, threads)}") from error


def _first_bad(result: EvaluateResult, reference: Path | None, threads: int | None) -> str:
    """Where the F32 files that are not exact part from the reference, in words for the end of an error."""
    from gguf_tools.evaluation.trace.run import first_bad
    from surgery.donors import operate_recorded

    said = []
    for score in result.scores:
        fidelity = score.evaluation.fidelity if score.evaluation else None
        if fidelity and score.model.type == EXACT_TYPE and fidelity.metrics.nmse > EXACT_NMSE:
            found = first_bad(Path(score.model.path), reference, operate_recorded, threads)
            said += [found] if found else []
    return f"; {'; '.join(said)}" if said else ""


def _check_options(suite: str) -> None:
    """Raise click.UsageError for an option or threshold of a suite that is not run."""
    for names, other in ((_FIDELITY_ONLY, "fidelity"), (_CARD_ONLY, "card")):
        if suite not in (other, "all"):
            refuse_given(names, f"needs --suite {other} or all")
