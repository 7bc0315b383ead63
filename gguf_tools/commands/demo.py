"""`tinyq demo`: convert, quantize and evaluate a bundled model."""

from __future__ import annotations

import contextlib
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools import signals
from gguf_tools.bundled import MODELS, bundled_model
from gguf_tools.commands.common import (
    check_outputs,
    force_option,
    json_option,
    show,
    takes_stdout,
    timeout_option,
    write_json,
)
from gguf_tools.errors import LlamaError
from gguf_tools.tables import Column, Table, terminal_view

if TYPE_CHECKING:
    from gguf_tools.evaluation.run import FileScores

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
QUESTIONS = "bundled"
STORY = "Once upon"
STORY_TOKENS = 100
COLUMN = 54


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="hybrid", show_default=True, help="The bundled model.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Keep the files in DIR.")
@timeout_option
@force_option
@json_option
def demo(model: str, out: Path | None, force: bool, json_path: str | None) -> None:
    """Convert a bundled checkpoint to five types, compare each with the torch reference, and score it with its question set."""
    from gguf_tools import convert, evaluate
    from gguf_tools.evaluation.card.questions import choose
    from gguf_tools.families.registry import load_model
    from gguf_tools.reference import Reference
    from gguf_tools.runtime.process import RuntimeOptions

    source = bundled_model(model)
    check_outputs({"--json": json_path}, force=force)
    with _folder(out) as folder:
        files = {name: folder / f"{model}-{name}.gguf" for name in TYPES}
        check_outputs({"--json": json_path}, force=force, outputs={path.name: path for path in files.values()})
        for name, path in files.items():
            show(f"converting {path.name}", err=True)
            convert(source, path, type=name, force=force)
        show("evaluating", err=True)
        found = evaluate(list(files.values()), reference=source, suite="all", questions=QUESTIONS)
        if found.failed:
            raise LlamaError(found.failures)
        scores = {result.model.path: result for result in found.scores}
        results = {name: scores[str(path)] for name, path in files.items()}
        original = load_model(source)
        stories = _stories(files["f32"], Reference(original), RuntimeOptions())
    if not takes_stdout(json_path):
        show(f"{model}: {original.family}, layers {original.spec.pattern}, {original.parameters:,} parameters\n")
        show(_tables(results, len(choose(QUESTIONS).scored.questions)))
        show("\n" + _side_by_side(*stories))
        if out:
            show(f"\nthe files are in {out}")
    write_json({name: result.as_dict() for name, result in results.items()}, json_path, force=force)


def _tables(results: Mapping[str, FileScores], questions: int) -> str:
    """The tables of both suites, one row per type, each with a line that describes it."""
    from gguf_tools.evaluation.card.report import CARD_COLUMNS, card_row
    from gguf_tools.evaluation.tables import FIDELITY_COLUMNS, SIZE_COLUMNS, fidelity_row

    compared = {name: result.evaluation for name, result in results.items() if result.evaluation}
    rows = [(name, result.model.bytes, result.model.bpw, *fidelity_row(result)) for name, result in compared.items()]
    scored = [(name, *card_row(result.card)) for name, result in results.items() if result.card]
    report = next(iter(compared.values())).fidelity
    about = (
        f"compared with the torch reference: {report.metrics.n_tokens} positions of {report.metrics.n_prompts} prompts, "
        f"each continued by {report.n_generate} tokens"
    )
    kind, view = Column("type", left=True, key=True), terminal_view()
    return "\n\n".join(
        [
            about,
            Table((kind, *SIZE_COLUMNS, *FIDELITY_COLUMNS), rows).text(view),
            f"scored on {questions} questions, with its own chat template, greedily; scores are out of 100",
            Table((kind, *CARD_COLUMNS), scored).text(view),
        ]
    )


def _stories(path: Path, reference: Any, options: Any) -> tuple[str, str]:
    """The greedy continuations of `STORY` by llama.cpp and by the torch reference, as text."""
    from gguf_tools.evaluation.fidelity import greedy_with_draft
    from gguf_tools.runtime.process import Runtime

    with Runtime(path, options) as runtime:
        prompt = runtime.tokenize(STORY, add_special=True)
        (ours,) = runtime.greedy([prompt], STORY_TOKENS)
        theirs = greedy_with_draft(reference, prompt, STORY_TOKENS, ours.tokens)
        return STORY + runtime.detokenize(ours.tokens), STORY + runtime.detokenize(theirs)


def _side_by_side(left: str, right: str) -> str:
    """Two texts wrapped to two columns of `COLUMN` characters."""
    columns = [
        [line for part in text.splitlines() for line in textwrap.wrap(part, COLUMN) or [""]] for text in (left, right)
    ]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    lines = [f"{'llama.cpp, F32':<{COLUMN}}  │ torch", f"{'─' * COLUMN}──┼─{'─' * COLUMN}"]
    return "\n".join([*lines, *(f"{a:<{COLUMN}}  │ {b}".rstrip() for a, b in zip(*padded, strict=True))])


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where the files go: the folder given, made where it is missing, or a temporary one, removed at the end."""
    if out:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with signals.held():
        made = tempfile.TemporaryDirectory(prefix="tinyq-demo-")
    try:
        yield Path(made.name)
    finally:
        with signals.held():
            made.cleanup()
