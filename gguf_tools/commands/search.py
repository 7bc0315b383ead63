"""`tinyq search`: look for the layer surgery that scores best; and its report, export and layer profile."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.card_options import card_options, parsed_card_options
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    quiet_option,
    refuse_given,
    show_report,
    table_options,
    takes_stdout,
    threads_option,
    timeout_option,
    write_bytes,
    write_json,
    write_report,
    write_text,
)
from gguf_tools.commands.engine_options import engine_options
from gguf_tools.commands.search_options import (
    MOST_BLOCK,
    parsed_layers,
    parsed_numbers,
    parsed_sizes,
    search_options,
    storage_options,
)
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath, Text
from gguf_tools.signals import EndedError

if TYPE_CHECKING:
    from surgery.search.report import SearchReport

MAIN = "run"
"""The action of `tinyq search SOURCE`, whose name is left out."""
STRATEGIES, OBJECTIVES = ("single", "compose"), ("card",)
"""What is searched, and measured, by default."""


class WithMain(click.Group):
    """A group in which anything that names no action is the first argument of the main one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [MAIN, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help of the main action, and the list of the others."""
        main = self.commands[MAIN]
        context = click.Context(main, info_name=ctx.info_name, parent=ctx.parent)
        main.format_usage(context, formatter)
        main.format_help_text(context, formatter)
        main.format_options(context, formatter)
        with formatter.section("Other actions"):
            others = [name for name in self.commands if name != MAIN]
            formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in others])
        main.format_epilog(context, formatter)


@click.group(cls=WithMain, invoke_without_command=False)
def search() -> None:
    """Look for the layer surgery that scores best."""


@search.command(MAIN, epilog=examples("search model.gguf --budget 250 --strategy single --strategy compose"))
@click.argument("source", metavar="SOURCE.gguf", type=whole_source())
@search_options
@storage_options
@card_options
@engine_options
@timeout_option
@threads_option
@table_options
@force_option
@json_option
@quiet_option
def run(
    source: Path,
    strategy: tuple[Any, ...],
    objective: tuple[str, ...],
    budget: int,
    top: int,
    beam: int,
    seed: int,
    layers: str | None,
    allow: tuple[str, ...],
    forbid: tuple[str, ...],
    reach: int,
    alpha: str,
    factor: str,
    size: str,
    stride: int,
    times: int,
    rival: tuple[str, ...],
    teacher: Path | None,
    text: Path | None,
    held_out_text: Path | None,
    device: str,
    no_pruning: bool,
    workers: int,
    storage: str | None,
    study: str | None,
    html: str | None,
    kv_type: Any,
    flash_attn: bool,
    gpu_layers: int,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
    **card: Any,
) -> None:
    """Try layer surgeries on SOURCE, a GGUF, and rank them by what they score.

    Candidates are measured in stages: what the update norms of the layers let expect, the KL divergence on a short text, bits per
    byte on all texts, all questions. After each stage those stop whose paired difference shows that they will not be among the
    best. The best --top are then measured on questions and texts that played no part, with Holm's correction.

    The study is kept in a database (--storage). The same command goes on with it after an interruption, and any number of
    processes that run it on one storage share the work. `tinyq search report` shows it, `tinyq search export` makes a candidate's
    file.
    """
    from gguf_tools.commands.search_live import Live
    from gguf_tools.runtime.process import RuntimeOptions
    from surgery.search.leaderboard import read_board, stored_board
    from surgery.search.report import SearchReport
    from surgery.search.run import SearchRequest, search_in_processes
    from surgery.search.storage import storage_url

    _refuse_idle(strategy or STRATEGIES, objective or OBJECTIVES)
    check_outputs({"--json": json_path, "--html": html}, force=force)
    held_out = card.pop("held_out")
    chosen = parsed_card_options(**card, held_out=held_out or "rest", text=text)
    request = SearchRequest(
        source=source,
        storage=storage_url(storage or f"{source.stem}.search.db"),
        study=study or source.stem,
        objectives=objective or OBJECTIVES,
        strategies=strategy or STRATEGIES,
        card=chosen,
        options=RuntimeOptions(threads=threads, kv_type=kv_type, flash_attn=flash_attn, gpu_layers=gpu_layers),
        budget=budget,
        keep=top,
        beam=beam,
        seed=seed,
        layers=parsed_layers(layers),
        allow=allow,
        forbid=forbid,
        reach=min(reach, MOST_BLOCK),
        alphas=parsed_numbers("--alpha", alpha),
        factors=parsed_numbers("--factor", factor),
        sizes=parsed_sizes(size),
        stride=stride,
        times=times,
        rivals=rival,
        teacher=teacher,
        own_text=text is not None,
        held_out_text=held_out_text,
        device=device,
        prune=not no_pruning,
    )
    try:
        with Live(quiet) as live:
            ledger = search_in_processes(request, live, workers)
    except (KeyboardInterrupt, EndedError):
        # What has been measured so far stands in the study.
        board = stored_board(request.storage, request.study)
        if board is not None:
            _write(SearchReport(board), json_path, html, force=force, shown=not quiet)
        raise
    _write(SearchReport(read_board(ledger)), json_path, html, force=force, shown=not quiet)


def _refuse_idle(strategies: Collection[str], objectives: Collection[str]) -> None:
    """Raise click.UsageError for an option of a strategy or an objective that is not used."""
    of_strategies = {"compose": ("beam",), "sample": ("seed",), "blocks": ("size", "stride")}
    for strategy in of_strategies.keys() - set(strategies):
        refuse_given(of_strategies[strategy], f"needs --strategy {strategy}")
    if "card" not in objectives:
        refuse_given(("weights", "thinking", "answer_tokens", "think_tokens"), "needs --objective card")


def _write(report: SearchReport, json_path: str | None, html: str | None, *, force: bool, shown: bool = True) -> None:
    """Write a report to the files that were asked for, and print it."""
    from surgery.search.page import page

    write_json(report.as_dict(), json_path, force=force)
    if html is not None:
        write_text(page(report.board), html, "--html", force=force)
    if shown and not takes_stdout(json_path, html):
        show_report(report)


@search.command("report", epilog=examples("search report model.search.db --html search.html"))
@click.argument("storage", metavar="STUDY", type=Text())
@click.option("--study", type=Text(), metavar="NAME", help="Which study, where STUDY holds several.")
@click.option("--html", metavar="FILE", help="Write the report as one self-contained HTML page to FILE.")
@click.option("--png", type=FilePath(), metavar="DIR", help="Write the pictures to DIR (needs matplotlib).")
@table_options
@force_option
@json_option
@quiet_option
def report_command(
    storage: str, study: str | None, html: str | None, png: Path | None, force: bool, json_path: str | None, quiet: bool
) -> None:
    """Show a study: the leaderboard, what was confirmed, the front of score and size, and what was pruned.

    STUDY is the file or the storage URL that tinyq search was given, or made, for it.
    """
    from surgery.search.leaderboard import read_board
    from surgery.search.ledger import Ledger
    from surgery.search.report import SearchReport
    from surgery.search.storage import storage_url

    made = {} if png is None or png.is_dir() else {"--png": png}
    check_outputs({"--json": json_path, "--html": html}, force=force, outputs=made, folders={"--png": ()})
    report = SearchReport(read_board(Ledger.open(storage_url(storage), study)))
    if png is not None:
        from surgery.search.plots import plot_paths, write_plots

        pictures = {f"--png {path.name}": path for path in plot_paths(report.board, png)}
        check_outputs({"--json": json_path, "--html": html}, force=force, outputs=pictures if png.is_dir() else None)
        write_plots(report.board, png, force=force)
    _write(report, json_path, html, force=force, shown=not quiet)


@search.command("export", epilog=examples("search export model.search.db --rank 1 champion.gguf"))
@click.argument("storage", metavar="STUDY", type=Text())
@click.argument("out", metavar="OUT.gguf", type=FilePath())
@click.option("--study", type=Text(), metavar="NAME", help="Which study, where STUDY holds several.")
@click.option("--rank", type=click.IntRange(min=1), default=1, show_default=True, help="Which candidate.")
@click.option("--source", type=FilePath(), metavar="FILE", help="The base, if it is not where it was.")
@threads_option
@force_option
@json_option
@quiet_option
def export(
    storage: str,
    out: Path,
    study: str | None,
    rank: int,
    source: Path | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Write the file of a candidate of a study, as tinyq surgery does from its recipe."""
    from gguf_tools import operate
    from surgery.search.export import chosen_recipe
    from surgery.search.ledger import Ledger
    from surgery.search.storage import storage_url

    check_outputs({"--json": json_path}, force=force, outputs={"OUT": out})
    ledger = Ledger.open(storage_url(storage), study)
    base, recipe = chosen_recipe(ledger, rank, source)
    result = operate(base, out, recipe, force=force, threads=threads)
    write_report(result, json_path, force=force, shown=not quiet)


@search.command("profile", epilog=examples("search profile model.gguf"))
@click.argument("source", metavar="SOURCE.gguf", type=whole_source())
@click.option("--text", type=FilePath(), metavar="FILE", help="Text to read; by default that of --questions.")
@click.option(
    "--questions", metavar="SET", default="general", show_default=True, help="Question set whose text is read."
)
@click.option("--png", metavar="FILE", help="Write the figures as a picture to FILE (needs matplotlib).")
@timeout_option
@threads_option
@table_options
@force_option
@json_option
@quiet_option
def profile(
    source: Path,
    text: Path | None,
    questions: str,
    png: str | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Show what each layer of SOURCE does to the residual stream while the model reads a text.

    The relative update norm ‖out − in‖ / ‖in‖ predicts best, of the measures that one pass gives, what deleting, swapping or
    duplicating a layer does; block influence is 1 − cos(in, out), the angle arccos of the cosine at the last token over π.
    """
    from gguf_tools.runtime.process import RuntimeOptions
    from surgery.search.profile import profile_of

    check_outputs({"--json": json_path, "--png": png}, force=force)
    found = profile_of(source, questions, text, RuntimeOptions(threads=threads))
    if png is not None:
        from surgery.search.plots import profile_plot

        write_bytes(profile_plot(found), png, force=force)
    write_report(found, json_path, force=force, shown=not quiet)
