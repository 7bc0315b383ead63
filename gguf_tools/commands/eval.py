"""`tinyq eval`: a GGUF by llama.cpp against the torch reference."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from gguf_tools.commands.common import human_bytes, json_option, quiet_option, threads_option, write_json
from gguf_tools.errors import InputError, ThresholdError


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), metavar="SOURCE", help="The checkpoint to compare with.")
@click.option(
    "--suite", type=click.Choice(["fidelity"]), default="fidelity", show_default=True, help="What to measure."
)
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Prompts, one a line, or JSONL.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="A longer text for the perplexity.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=100, show_default=True, help="Tokens to generate a prompt."
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
@click.option("--min-top1", type=float, help="Exit with 1 if fewer positions agree on the likeliest token (0 to 1).")
@click.option("--max-nmse", type=float, help="Exit with 1 if the logits' NMSE is larger.")
@click.option("--max-kl", type=float, help="Exit with 1 if the mean KL divergence is larger, nats.")
@click.option("--min-greedy", type=float, help="Exit with 1 if fewer greedy texts are equal (0 to 1).")
@threads_option
@json_option
@quiet_option
def evaluate(
    model: Path,
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
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Run MODEL greedily by llama.cpp, in a process of its own, and score it against the torch reference.

    The reference is the checkpoint given, else the one recorded in the file or lying beside it if it is unchanged, else
    it is rebuilt from the file's own tensors, and then only the engine is compared.
    """
    from gguf_tools.evaluate.prompts import load_prompts
    from gguf_tools.evaluate.report import check_thresholds, format_report
    from gguf_tools.evaluate.run import evaluate_file
    from gguf_tools.evaluate.runtime import RuntimeOptions
    from gguf_tools.evaluate.source import find_reference
    from surgery.model import operate_text

    options = RuntimeOptions(kv_type, flash_attn, gpu_layers, threads, context)
    chosen = load_prompts(prompts) if prompts else None
    passage = _read_text(text) if text else None
    source = find_reference(model, reference, operate_text)
    with stage_bars(quiet) as progress:
        result = evaluate_file(
            model,
            source,
            options,
            dtype=dtype,
            prompts=chosen,
            text=passage,
            n_generate=tokens,
            speed=not no_speed,
            progress=progress,
        )
    write_json(result.as_dict(), json_path)
    if not quiet and json_path != "-":
        facts = result.model
        click.echo(
            f"{facts.path}: {facts.arch}, {facts.type}, {facts.layers} layers, {facts.bpw:.2f} bits per weight, "
            f"{human_bytes(facts.bytes)}\n{source.note}\n"
        )
        click.echo(format_report(result.fidelity, result.speed))
    bounds = {"min_top1": min_top1, "max_nmse": max_nmse, "max_kl": max_kl, "min_greedy": min_greedy}
    short = check_thresholds(result.fidelity, bounds)
    if short:
        raise ThresholdError(f"{model}: " + "; ".join(short))


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); give --text a text file") from error


@contextlib.contextmanager
def stage_bars(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """One line on stderr that says which stage is how far, where stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return

    def show(stage: str, done: int, total: int) -> None:
        sys.stderr.write(f"\r\033[K{stage} {done} of {total}")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
