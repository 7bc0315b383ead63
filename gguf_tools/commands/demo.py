"""`tinyq demo`: the whole way on a bundled model, in one table."""

from __future__ import annotations

import contextlib
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.bundled import MODELS, bundled_model
from gguf_tools.commands.common import human_bytes, json_option, table, write_json

if TYPE_CHECKING:
    from gguf_tools.evaluate.run import Evaluation

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
HEAD = ("type", "size", "bits/weight", "NMSE", "KL mean", "top-1", "greedy exact", "prompt tok/s", "generate tok/s")
STORY = "Once upon"
STORY_TOKENS = 100
COLUMN = 54


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="hybrid", show_default=True, help="Which bundled model.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Keep the files in DIR.")
@json_option
def demo(model: str, out: Path | None, json_path: str | None) -> None:
    """Convert a bundled checkpoint to five types, run each by llama.cpp, and compare it with the torch reference."""
    from gguf_tools.convert import Request, execute, prepare
    from gguf_tools.evaluate.run import evaluate_file
    from gguf_tools.evaluate.runtime import RuntimeOptions
    from gguf_tools.evaluate.source import find_reference
    from gguf_tools.prove import prove_vocabulary
    from gguf_tools.reference import Reference

    source = bundled_model(model)
    results: dict[str, Evaluation] = {}
    with _folder(out) as folder:
        files = {name: folder / f"{model}-{name}.gguf" for name in TYPES}
        for name, path in files.items():
            click.echo(f"converting and evaluating {path.name}", err=True)
            execute(prepare(Request(source, name)), path, force=True, prove=prove_vocabulary)
            if not results:
                found = find_reference(path, source)
                reference = Reference(found.model)
            results[name] = evaluate_file(path, found, RuntimeOptions(), reference=reference)
        stories = _stories(files["f32"], reference, RuntimeOptions())
    spec = found.model.spec
    quiet = json_path == "-"
    if not quiet:
        click.echo(f"{model}: {found.model.family}, layers {spec.pattern}, {found.model.parameters:,} parameters")
        click.echo(
            f"{results['f32'].fidelity.metrics.n_tokens} positions of "
            f"{results['f32'].fidelity.metrics.n_prompts} prompts, each continued by 100 tokens\n"
        )
        click.echo(table(HEAD, [_row(name, result) for name, result in results.items()]))
        click.echo("\n" + _side_by_side(*stories))
        if out:
            click.echo(f"\nthe files are in {out}")
    write_json({name: result.as_dict() for name, result in results.items()}, json_path)


def _row(name: str, result: Evaluation) -> tuple[str, ...]:
    metrics, speed = result.fidelity.metrics, result.speed
    return (
        name,
        human_bytes(result.model.bytes),
        f"{result.model.bpw:.2f}",
        f"{metrics.nmse:.1e}",
        f"{metrics.kl_mean:.1e}",
        f"{metrics.top1_agreement:.4f}",
        f"{result.fidelity.greedy_exact_match:.0%}",
        f"{speed.prompt_tok_s:,.0f}" if speed else "",
        f"{speed.generate_tok_s:,.0f}" if speed else "",
    )


def _stories(path: Path, reference: Any, options: Any) -> tuple[str, str]:
    """The greedy story by llama.cpp and by torch, as text."""
    from gguf_tools.evaluate.fidelity import greedy_with_draft
    from gguf_tools.evaluate.runtime import Runtime

    with Runtime(path, options) as runtime:
        prompt = runtime.tokenize(STORY, add_special=True)
        (ours,) = runtime.greedy([prompt], STORY_TOKENS)
        theirs = greedy_with_draft(reference, prompt, STORY_TOKENS, ours.tokens)
        return STORY + runtime.detokenize(ours.tokens), STORY + runtime.detokenize(theirs)


def _side_by_side(left: str, right: str) -> str:
    """Two texts wrapped into columns."""
    columns = [
        [line for part in text.splitlines() for line in textwrap.wrap(part, COLUMN) or [""]] for text in (left, right)
    ]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    lines = [f"{'llama.cpp, F32':<{COLUMN}}  │ torch", f"{'─' * COLUMN}──┼─{'─' * COLUMN}"]
    return "\n".join([*lines, *(f"{a:<{COLUMN}}  │ {b}".rstrip() for a, b in zip(*padded, strict=True))])


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="tinyq-demo-") as folder:
        yield Path(folder)
