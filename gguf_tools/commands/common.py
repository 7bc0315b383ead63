"""Options, progress bars and output functions shared by the commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar, cast

import click
from click.core import ParameterSource

from gguf_tools.commands.values import Number
from gguf_tools.errors import AMOUNT, OutputError
from gguf_tools.formats.opened import was_opened
from gguf_tools.machine import MOST_THREADS, drop
from gguf_tools.progress import ByteProgress, ProgressStream, StageProgress
from gguf_tools.runtime.silence import DEFAULT_SECONDS, silence_limit
from gguf_tools.signals import left
from gguf_tools.tables import View, terminal_view
from gguf_tools.text import cut_middle, duration, for_terminal, human_bytes, json_escapes, printable

BYTE_STAGES = ("reading", "writing", "quantizing")
"""Stages of the API whose progress counts bytes (or weights)."""
SHORTEST_LEFT = 5.0
LABEL = 36
"""Most columns of a progress bar's label."""
"""Seconds from which on the time left is shown."""

F = TypeVar("F", bound=Callable[..., Any])


json_option = click.option(
    "--json", "json_path", metavar="FILE", help="Write the report as JSON to FILE (- for stdout)."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, is_eager=True, help="No progress bars and no summary.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), help="Number of threads; by default all cores."
)
timeout_option = click.option(
    "--timeout",
    type=Number(AMOUNT),
    default=DEFAULT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    expose_value=False,
    callback=lambda context, _, seconds: context.with_resource(silence_limit(seconds or None)),
    help="Kill llama.cpp's process after this long without progress; 0 never does.",
)
force_option = click.option("--force", is_flag=True, help="Overwrite an output that exists.")


nonfinite_option = click.option(
    "--allow-nonfinite",
    is_flag=True,
    help="Keep weights that are NaN, infinite or too large for F16, if the tensor's type can store them.",
)


def examples(*lines: str) -> str:
    """The end of a command's help: its command lines, each without `tinyq`."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  tinyq {line}" for line in lines)])


def output_options(command: F) -> F:
    """A decorator that adds --force, --threads, --json and --quiet to a command that writes a file."""
    for option in (quiet_option, json_option, threads_option, force_option):
        command = option(command)
    return command


_LAYOUT = "tinyq.layout"


def table_options(command: F) -> F:
    """A decorator that adds --wide and --format, which `show_report` obeys, to a command that prints tables."""
    for option in (
        click.option(
            "--format",
            "layout",
            type=click.Choice(["text", "csv", "markdown"]),
            default="text",
            show_default=True,
            expose_value=False,
            callback=_kept,
            help="Form of the report on stdout; csv has its tables only, with the values as they are.",
        ),
        click.option(
            "--wide",
            is_flag=True,
            expose_value=False,
            callback=_kept,
            help="Tables as wide as they need, not divided or shortened for the terminal's width.",
        ),
    ):
        command = option(command)
    return command


def _kept(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep the value of an option of `table_options` for `show_report`."""
    context.meta[f"{_LAYOUT}.{parameter.name}"] = value


class Printed(Protocol):
    """A report that can be printed in every form (`gguf_tools.tables.Shown`)."""

    def as_text(self, view: View = ...) -> str:
        """The report as text."""

    def as_csv(self) -> str:
        """Its tables as CSV."""

    def as_markdown(self) -> str:
        """The report as Markdown."""


class Result(Printed, Protocol):
    """The result of a function of the public API."""

    def as_dict(self) -> dict[str, Any]:
        """The report that --json writes."""


def show_report(report: Printed, colours: Mapping[str, str] | None = None) -> None:
    """Print a report to stdout in the form and width that the running command's options ask for.

    On a terminal the characters in `colours` have these colours (of `click.style`), unless NO_COLOR is set (no-color.org).
    """
    asked = click.get_current_context().meta
    layout = asked.get(f"{_LAYOUT}.layout", "text")
    if layout == "text":
        text = report.as_text(terminal_view(wide=asked.get(f"{_LAYOUT}.wide", False)))
        _echo(coloured(for_terminal(text), {} if os.environ.get("NO_COLOR") else colours or {}))
        return
    text = report.as_csv() if layout == "csv" else report.as_markdown()
    _echo(for_terminal(text, None), nl=False)


def coloured(text: str, colours: Mapping[str, str]) -> str:
    """The text with runs of these characters in their colours; `click.echo` removes them where there is no terminal."""
    runs = "|".join(f"{re.escape(character)}+" for character in colours)
    return re.sub(runs, lambda found: click.style(found[0], fg=colours[found[0][0]]), text) if runs else text


def show(text: str, *, err: bool = False) -> None:
    """Print text to stdout, or stderr. Control characters, which names read from files may contain, are escaped."""
    _echo(for_terminal(text), err=err)


def show_part(text: str, *, err: bool = False) -> None:
    """Print a part of a text that arrives in pieces, with control characters escaped as by `show`, and without a line break."""
    _echo(for_terminal(text, None), nl=False, err=err)


def _echo(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print a text. What nobody reads any more (`| head`) is dropped: the command goes on to its outputs and its exit code."""
    try:
        click.echo(text, nl=nl, err=err)
    except BrokenPipeError:
        drop((sys.stderr if err else sys.stdout).fileno())
    except OSError as error:
        stream = "stderr" if err else "stdout"
        raise OutputError(f"{stream}: could not be written ({error.strerror}); {left()}") from error


def write_report(result: Result, json_path: str | None, *, force: bool, shown: bool = True) -> None:
    """Write the result as JSON if `json_path` is given, and print it as text if `shown`, unless the JSON goes to stdout."""
    if json_path is not None:
        write_json(result.as_dict(), json_path, force=force)
    if shown and not takes_stdout(json_path):
        show_report(result)


def write_json(report: Mapping[str, Any], path: str | None, *, force: bool = False) -> None:
    """Write the report as JSON to the file `path`, or to stdout for "-"; nothing if it is None. Raises OutputError."""
    if path is None:
        return
    text = json_escapes(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
    write_text(text, path, "--json", force=force)


def write_text(text: str, path: str | None, option: str, *, force: bool = False) -> None:
    """Write a report's text to the file `path`, or to stdout for "-"; nothing if it is None.

    `option` is the option that gave the path. Raises OutputError, naming it, if the file cannot be written.
    """
    if path is None:
        return
    if path in STDOUT:
        _echo(text if option == "--json" else for_terminal(text, None), nl=False)
        return
    from gguf_tools.formats.output import atomic_output

    # File names may contain bytes that are not UTF-8; they become escapes that are valid in JSON.
    data = text.encode("utf-8", errors="backslashreplace")
    target = Path(path)
    if _is_stream(target):
        try:
            with target.open("ab", buffering=0) as stream:
                stream.write(data)
        except OSError as error:
            raise OutputError(f"{path}: could not be written ({error.strerror}); give {option} another path") from error
        return
    _refuse_read(target)
    with atomic_output(target, force=force) as stream:
        stream.write(data)


def write_bytes(data: bytes, path: str, *, force: bool = False) -> None:
    """Write a report that is no text, such as a picture, to the file `path`. Raises OutputError."""
    from gguf_tools.formats.output import atomic_output

    _refuse_read(Path(path))
    with atomic_output(Path(path), force=force) as stream:
        stream.write(data)


def _refuse_read(path: Path) -> None:
    """Raise OutputError if this command has read the file that a report would replace."""
    if was_opened(path):
        raise OutputError(f"{path}: is also an input of this command; give the report another path; {left()}")


STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
"""Names of stdout. It is not opened by name: if stdout is redirected to a file, that would overwrite the file's start."""


def takes_stdout(*paths: str | None) -> bool:
    """Whether one of these reports goes to stdout, which then holds nothing else."""
    return any(path in STDOUT for path in paths)


_STREAMS = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")


def _is_stream(path: Path) -> bool:
    """Whether `path` is an open stream by its name, a pipe or a device, which is written to rather than replaced."""
    return bool(_STREAMS.fullmatch(str(path))) or (path.exists() and not path.is_file() and not path.is_dir())


def check_outputs(
    reports: Mapping[str, str | Path | None],
    *,
    force: bool,
    outputs: Mapping[str, Path | None] | None = None,
    folders: Mapping[str, Collection[str]] = {},
    read: Collection[Path] = (),
) -> None:
    """Raise OutputError, before any work, if the running command may not write an output (`formats.output.check_outputs`).

    `reports` may be streams (-, /dev/stdout, a pipe); `outputs` may not. All other parameters that are existing paths count as
    inputs, with all files that opening them reads; so do the files `read`.
    """
    from gguf_tools.formats.gguf.split import is_part_name
    from gguf_tools.formats.output import check_outputs as check
    from gguf_tools.sources.inputs import source_files

    outputs = outputs or {}
    files = {option: Path(path) for option, path in reports.items() if path is not None and str(path) != "-"}
    files = {option: path for option, path in files.items() if not _is_stream(path)}
    inputs = [*read, *(file for path in _given_paths() for file in source_files(path))]
    check({**outputs, **files}, inputs, force=force, folders=folders)
    for option, path in files.items():
        for other in outputs.values():
            if other and is_part_name(path, other) and path.parent.resolve() == other.parent.resolve():
                raise OutputError(f"{path}: is the name of a shard of {other}; give {option} another path")


def given_parameters() -> list[click.Parameter]:
    """The running command's parameters that its command line gives, in the order of the help."""
    context = click.get_current_context()
    return [
        param
        for param in context.command.params
        if context.get_parameter_source(param.name or "") == ParameterSource.COMMANDLINE
    ]


def refuse_given(names: Collection[str], why: str) -> None:
    """Raise click.UsageError (`OPTION why`) for one of these parameters that the command line gives.

    For options that do nothing beside the others given: who gives one believes that it has an effect.
    """
    for param in given_parameters():
        if param.name in names:
            raise click.UsageError(f"{param.opts[0]} {why}")


WRITTEN = ("answers", "out", "save_recipe", "json_path", "csv_path", "markdown", "html", "png", "all_out")
"""The parameters of all commands that name outputs."""


def _given_paths() -> Iterator[Path]:
    """The existing paths among the running command's parameters, without its outputs."""
    from gguf_tools.commands.surgery_options import given_options

    context = click.get_current_context()
    values = [value for name, value in context.params.items() if name not in WRITTEN]
    for value in [*values, [text for _, text in given_options()]]:
        for one in value if isinstance(value, list | tuple) else [value]:
            # Also text parameters that happen to name a file, such as DIR@SCALE: protecting it does no harm.
            names = (one, one.rpartition("@")[0], one.partition("=")[2]) if isinstance(one, str) else (one,)
            yield from (Path(name) for name in names if isinstance(name, str | Path) and name and os.path.exists(name))


@contextlib.contextmanager
def progress_bar(total: int, label: str, quiet: bool) -> Iterator[ByteProgress]:
    """A progress bar in bytes with the remaining time, on stderr; nothing is shown if `quiet` or stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    done = 0

    def shown(_: object) -> str:
        return f"{human_bytes(done)} of {human_bytes(total)}"

    with click.progressbar(
        length=total,
        label=cut_middle(printable(label), LABEL),
        file=cast(TextIO, ProgressStream()),
        item_show_func=shown,
        width=0,
    ) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count, done)

        yield advance


@contextlib.contextmanager
def stage_bars(quiet: bool, of: str = "") -> Iterator[StageProgress | None]:
    """The progress of stages on stderr: a bar for bytes, a line for other counts; None if `quiet` or it is not a terminal.

    `of` is what they are stages of, such as a file's name, and stands before each.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bars = _Bars(f"{of}: " if of else "")
    try:
        yield bars
    finally:
        bars.close()


class _Bars:
    """Shows one stage at a time, with the remaining time: `BYTE_STAGES` as a bar, others as a line."""

    def __init__(self, start: str) -> None:
        self.start = start
        self.stage, self.done = "", 0
        self.begun = (0.0, 0)
        self.advance: ByteProgress | None = None
        self.open = contextlib.ExitStack()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show `done` of `total` for a stage: as a bar if they are bytes, else as a count on one line."""
        if stage != self.stage:
            self.close()
            self.stage, self.done, self.begun = stage, 0, (time.monotonic(), done)
            if stage in BYTE_STAGES:
                self.advance = self.open.enter_context(progress_bar(total, f"{self.start}{stage}", quiet=False))
            else:
                self.open.callback(_write, "\r\033[K")
        if self.advance is None:
            _write(f"\r\033[K{self._line(stage, done, total)}")
        else:
            self.advance(done - self.done)
        self.done = done

    def _line(self, stage: str, done: int, total: int) -> str:
        """The stage, its count, percent and time left, in one line of the terminal: the stage's start gives way."""
        share = f" ({done / total:.0%})" if total else ""
        end = f" {done} of {total}{share}{self._left(done, total)}"
        room = shutil.get_terminal_size().columns - 1 - len(end)
        return cut_middle(printable(f"{self.start}{stage}"), max(room, 12)) + end

    def _left(self, done: int, total: int) -> str:
        """The time that is left if the rest goes as fast, once that is known and more than some seconds."""
        since, first = self.begun
        if done <= first:
            return ""
        seconds = (time.monotonic() - since) / (done - first) * (total - done)
        return f", about {duration(seconds)} left" if seconds >= SHORTEST_LEFT else ""

    def close(self) -> None:
        """End the bar or the line."""
        self.open.close()
        self.stage, self.advance = "", None


def _write(text: str) -> None:
    ProgressStream().write(text)
