"""`tinyq demo`: convert, quantize and evaluate a bundled model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.bundled import MODELS, bundled_model
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    quiet_option,
    show_report,
    stage_bars,
    table_options,
    takes_stdout,
    timeout_option,
    write_json,
)
from gguf_tools.commands.values import FilePath
from gguf_tools.errors import LlamaError
from gguf_tools.formats.scratch import working_folder
from gguf_tools.tables import UNKNOWN, Block, Column, Facts, Lines, Report, Table, View
from gguf_tools.text import padded, printable, wrapped

if TYPE_CHECKING:
    from gguf_tools.evaluation.run import FileScores

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
QUESTIONS = "bundled"
STORY = "Once upon"
STORY_TOKENS = 100
COLUMN = 54
STORIES = ("llama.cpp, F32", "torch")


@click.command(epilog=examples("demo --model dense"))
@click.option("--model", type=click.Choice(MODELS), default="hybrid", show_default=True, help="The bundled model.")
@click.option("--out", type=FilePath(), metavar="DIR", help="Keep the files in DIR.")
@table_options
@timeout_option
@force_option
@json_option
@quiet_option
def demo(model: str, out: Path | None, force: bool, json_path: str | None, quiet: bool) -> None:
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
        for n, (name, path) in enumerate(files.items(), 1):
            with stage_bars(quiet, f"{path.name}, {n} of {len(files)}") as progress:
                convert(source, path, type=name, force=force, progress=progress)
        with stage_bars(quiet) as progress:
            found = evaluate(
                list(files.values()), reference=source, suite="all", questions=QUESTIONS, progress=progress
            )
        if found.failed:
            raise LlamaError(found.failures)
        scores = {result.model.path: result for result in found.scores}
        results = {name: scores[str(path)] for name, path in files.items()}
        original = load_model(source)
        stories = _stories(files["f32"], Reference(original), RuntimeOptions())
    if not quiet and not takes_stdout(json_path):
        head = f"{model}: {original.family}, layers {original.spec.pattern}, {original.parameters:,} parameters"
        kept = [Lines(), Facts([("wrote", f"{len(files)} files in {out}")])] if out else []
        tables = _tables(results, len(choose(QUESTIONS).scored.questions))
        show_report(Report([Lines(head), *tables, Lines(), SideBySide(STORIES, stories), *kept]))
    write_json({name: result.as_dict() for name, result in results.items()}, json_path, force=force)


def _tables(results: Mapping[str, FileScores], questions: int) -> list[Block]:
    """The tables of both suites, one row per type, each with a line that describes it."""
    from gguf_tools.evaluation.card.report import CARD_COLUMNS, card_row
    from gguf_tools.evaluation.tables import FIDELITY_COLUMNS, SIZE_COLUMNS, fidelity_row

    compared = {name: result.evaluation for name, result in results.items() if result.evaluation}
    rows = [(name, result.model.bytes, result.model.bpw, *fidelity_row(result)) for name, result in compared.items()]
    scored = [(name, *card_row(result.card)) for name, result in results.items() if result.card]
    report = next(iter(compared.values())).fidelity
    about = (
        f"compared with torch: {report.metrics.n_tokens} positions of {report.metrics.n_prompts} prompts, each continued by "
        f"{report.n_generate} tokens"
    )
    asked = f"scored on {questions} questions, with its own chat template, greedily; out of 100"
    kind = Column("type", left=True, key=True)
    tables = (
        (about, Table((kind, *SIZE_COLUMNS, *FIDELITY_COLUMNS), rows)),
        (asked, Table((kind, *CARD_COLUMNS), scored)),
    )
    return [block for line, table in tables for block in (Lines(), Lines(line), Lines(), table)]


def _stories(path: Path, reference: Any, options: Any) -> tuple[str, str]:
    """The greedy continuations of `STORY` by llama.cpp and by the torch reference, as text."""
    from gguf_tools.evaluation.fidelity import greedy_with_draft
    from gguf_tools.runtime.process import Runtime

    with Runtime(path, options) as runtime:
        prompt = runtime.tokenize(STORY, add_special=True)
        (ours,) = runtime.greedy([prompt], STORY_TOKENS)
        theirs = greedy_with_draft(reference, prompt, STORY_TOKENS, ours.tokens)
        return STORY + runtime.detokenize(ours.tokens), STORY + runtime.detokenize(theirs)


@dataclass(frozen=True)
class SideBySide(Block):
    """Two texts in two columns, with a heading each."""

    heads: tuple[str, str]
    texts: tuple[str, str]

    def text(self, view: View = UNKNOWN) -> str:
        width = min(COLUMN, (view.width - len(" │ ")) // 2 if view.width else COLUMN)
        columns = [[line for part in text.splitlines() for line in wrapped(part, width) or [""]] for text in self.texts]
        lines = [f"{padded(self.heads[0], width)} │ {self.heads[1]}", f"{'─' * width}─┼─{'─' * width}"]
        lines += [f"{padded(a, width)} │ {b}" for a, b in zip_longest(*columns, fillvalue="")]
        return "\n".join(printable(line).rstrip() for line in lines)

    def html(self) -> str:
        return Lines(self.text(), fixed=True).html()

    def markdown(self) -> str:
        return Lines(self.text(), fixed=True).markdown()


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where the files go: the folder given, made where it is missing, or a temporary one, removed at the end."""
    if out:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with working_folder("tinyq-demo") as made:
        yield made
