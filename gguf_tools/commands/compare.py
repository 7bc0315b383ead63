"""`tinyq compare`: two runs of benchmarks, or of the card suite, item by item."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    quiet_option,
    show_report,
    table_options,
    takes_stdout,
    write_json,
)
from gguf_tools.commands.sources import whole_source
from gguf_tools.errors import ThresholdError
from gguf_tools.text import one_line


@click.command(epilog=examples("compare results/base results/q4_k_m --metric acc --fail-if-worse"))
@click.argument("a", metavar="A", type=whole_source())
@click.argument("b", metavar="B", type=whole_source())
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Compare only this task; can be repeated.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Compare only this metric; can be repeated.")
@click.option("--fail-if-worse", is_flag=True, help="Exit with 1 if B is worse in any task after the correction.")
@table_options
@force_option
@json_option
@quiet_option
def compare(
    a: Path,
    b: Path,
    tasks: tuple[str, ...],
    metrics: tuple[str, ...],
    fail_if_worse: bool,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Compare two runs of the same tasks, of any two models: what changed, and what of it is more than chance.

    A and B are folders that lm-evaluation-harness wrote with --log_samples (tinyq lm-eval or any other model), single
    samples_*.jsonl files, or reports of tinyq eval --suite card --json.

    Items are paired by the question itself. Right and wrong answers are compared by McNemar's exact test, other values by a
    paired permutation test, and the p-values are corrected for the number of tests (Holm). Choose tasks and metrics before
    looking at results: every one that is compared counts.

    """
    from gguf_tools.evaluation.comparison.paired import compare as compared
    from gguf_tools.evaluation.comparison.report import report_of
    from gguf_tools.evaluation.comparison.samples import files_of

    check_outputs({"--json": json_path}, force=force, read=[file for run in (a, b) for file in files_of(run)])
    found = compared(a, b, tasks=tasks, metrics=metrics)
    write_json(found.as_dict(), json_path, force=force)
    if not quiet and not takes_stdout(json_path):
        show_report(report_of(found))
    if fail_if_worse and found.worse:
        names = ", ".join(f"{one.task} {one.metric}" for one in found.worse)
        raise ThresholdError(one_line(f"{b}: worse than {a} in {names}"))
