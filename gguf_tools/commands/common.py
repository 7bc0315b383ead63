"""Options, progress bars and formats that the commands share."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from gguf_tools.errors import OutputError
from gguf_tools.progress import ByteProgress, StageProgress
from gguf_tools.runtime.silence import DEFAULT_SECONDS, silence_limit
from gguf_tools.text import for_terminal, human_bytes, json_escapes

BYTE_STAGES = ("reading", "writing", "quantizing")
"""Stages of the API that count bytes (or weights)."""

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option(
    "--json", "json_path", metavar="FILE", help="Write the report as JSON to FILE, or to stdout with -."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bars and no summary.")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="Threads to use; all cores by default.")
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=DEFAULT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    expose_value=False,
    callback=lambda context, _, seconds: context.with_resource(silence_limit(seconds or None)),
    help="End llama.cpp's process after so long without a sign of work; 0 waits for ever.",
)
force_option = click.option("--force", is_flag=True, help="Overwrite an output that exists.")


nonfinite_option = click.option(
    "--allow-nonfinite",
    is_flag=True,
    help="Keep weights that are NaN or infinite, or too large for F16, as such where their type can hold them.",
)


def output_options(command: F) -> F:
    """Adds what every command has that writes a file: force, threads, json_path and quiet."""
    for option in (quiet_option, json_option, threads_option, force_option):
        command = option(command)
    return command


def show(text: str, *, err: bool = False) -> None:
    """Print a report or a sentence. What comes from a file may hold anything: it is escaped, and long lines are cut."""
    click.echo(for_terminal(text), err=err)


class Result(Protocol):
    """What a function of the API returns."""

    def as_dict(self) -> dict[str, Any]:
        """The report of --json."""


def write_report(result: Result, json_path: str | None, *, force: bool, shown: bool = True) -> None:
    """The result as JSON where it is asked for, and as text if `shown`, unless the JSON takes stdout."""
    write_json(result.as_dict(), json_path, force=force)
    if shown and json_path != "-":
        show(str(result))


def write_json(report: Mapping[str, Any], path: str | None, *, force: bool = False) -> None:
    """The report as JSON to a file, or to stdout for "-"; nothing without a path."""
    if path is None:
        return
    text = json_escapes(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
    write_text(text, path, "--json", force=force)


def write_text(text: str, path: str | None, option: str, *, force: bool = False) -> None:
    """A report's text to a file, or to stdout for "-"; nothing without a path. `option` gave the path."""
    if path is None:
        return
    if path in STDOUT:
        click.echo(text if option == "--json" else for_terminal(text, None), nl=False)
        return
    from gguf_tools.formats.output import atomic_output

    # A file's name may hold bytes that are no UTF-8; so they become escapes that JSON knows.
    data = text.encode("utf-8", errors="backslashreplace")
    target = Path(path)
    if _is_stream(target):
        try:
            with target.open("ab", buffering=0) as stream:
                stream.write(data)
        except OSError as error:
            raise OutputError(
                f"{path}: could not be written ({error.strerror}); give {option} a path that can be"
            ) from error
        return
    with atomic_output(target, force=force) as stream:
        stream.write(data)


STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
"""Opened anew by its name, a stdout that is a file would be written from its start."""
_STREAMS = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")


def _is_stream(path: Path) -> bool:
    """Whether a path is no file that a new one could replace: an open stream by its name, a pipe, a device."""
    return bool(_STREAMS.fullmatch(str(path))) or (path.exists() and not path.is_file() and not path.is_dir())


def check_outputs(
    reports: Mapping[str, str | Path | None],
    *,
    force: bool,
    outputs: Mapping[str, Path | None] | None = None,
    folders: Collection[str] = (),
) -> None:
    """Refuse, before any work, what the running command may not write (`formats.output.check_outputs`).

    `reports` may be streams (-, /dev/stdout, a pipe); `outputs` may not. Inputs are all other parameters that name something
    that exists, with the files that they stand for.
    """
    from gguf_tools.formats.gguf.split import is_part_name
    from gguf_tools.formats.output import check_outputs as check
    from gguf_tools.sources.inputs import source_files

    outputs = outputs or {}
    files = {option: Path(path) for option, path in reports.items() if path is not None and str(path) != "-"}
    files = {option: path for option, path in files.items() if not _is_stream(path)}
    inputs = [file for path in _given_paths() for file in source_files(path)]
    check({**outputs, **files}, inputs, force=force, folders=folders)
    for option, path in files.items():
        for other in outputs.values():
            if other and is_part_name(path, other) and path.parent.resolve() == other.parent.resolve():
                raise OutputError(f"{path}: is what a part of {other} may be called; give {option} another name")


WRITTEN = ("out", "save_recipe", "json_path", "csv_path", "markdown")
"""The parameters, of all commands, that name what is written."""


def _given_paths() -> Iterator[Path]:
    """Whatever exists of what the running command was given to read."""
    from gguf_tools.commands.surgery_options import given_options

    context = click.get_current_context()
    values = [value for name, value in context.params.items() if name not in WRITTEN]
    for value in [*values, [text for _, text in given_options()]]:
        for one in value if isinstance(value, list | tuple) else [value]:
            # A text that happens to be a file's name, too, is better spared.
            if isinstance(one, str | Path) and os.path.exists(one):
                yield Path(one)


@contextlib.contextmanager
def progress_bar(total: int, label: str, quiet: bool) -> Iterator[ByteProgress]:
    """A bar on stderr that counts bytes and shows the time left, where stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    done = 0

    def shown(_: object) -> str:
        return f"{human_bytes(done)} of {human_bytes(total)}"

    with click.progressbar(length=total, label=label, file=sys.stderr, item_show_func=shown) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count, done)

        yield advance


@contextlib.contextmanager
def stage_bars(quiet: bool) -> Iterator[StageProgress | None]:
    """What shows which stage is how far on stderr, where that is a terminal: a bar for bytes, a line for all else."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.close()


class _Bars:
    """One stage after the other: BYTE_STAGES as a bar with the time left, others as a line."""

    def __init__(self) -> None:
        self.stage, self.done = "", 0
        self.advance: ByteProgress | None = None
        self.open = contextlib.ExitStack()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show `done` of `total` of a stage: a bar where they are bytes, else a count on one line."""
        if stage != self.stage:
            self.close()
            self.stage, self.done = stage, 0
            if stage in BYTE_STAGES:
                self.advance = self.open.enter_context(progress_bar(total, stage, quiet=False))
            else:
                self.open.callback(_write, "\r\033[K")
        if self.advance is None:
            _write(f"\r\033[K{stage} {done} of {total}")
        else:
            self.advance(done - self.done)
        self.done = done

    def close(self) -> None:
        """End the bar or the line."""
        self.open.close()
        self.stage, self.advance = "", None


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
