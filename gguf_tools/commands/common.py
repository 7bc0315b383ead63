"""Options, progress bars and formats that the commands share."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

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


def output_options(command: F) -> F:
    """Adds what every command has that writes a file: force, threads, json_path and quiet."""
    for option in (quiet_option, json_option, threads_option, force_option):
        command = option(command)
    return command


def show(text: str, *, err: bool = False) -> None:
    """Print a report or a sentence. What comes from a file may hold anything: it is escaped, and long lines are cut."""
    click.echo(for_terminal(text), err=err)


def write_json(report: Mapping[str, Any], path: str | None) -> None:
    """The report as JSON to a file, or to stdout for "-"; nothing without a path."""
    if path is None:
        return
    write_text(json_escapes(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)) + "\n", path, "--json")


def write_text(text: str, path: str | None, option: str) -> None:
    """A report's text to a file, or to stdout for "-"; nothing without a path. `option` gave the path."""
    if path is None:
        return
    if path == "-":
        click.echo(text if option == "--json" else for_terminal(text, None), nl=False)
        return
    from gguf_tools.formats.output import atomic_output

    # A file's name may hold bytes that are no UTF-8; so they become escapes that JSON knows.
    data = text.encode("utf-8", errors="backslashreplace")
    target = Path(path)
    try:
        if target.is_symlink() or (target.exists() and not target.is_file()):
            target.write_bytes(data)  # /dev/stdout and pipes, which a new file must not replace
            return
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror}); give {option} a path that can be"
        ) from error
    with atomic_output(target, force=True) as stream:
        stream.write(data)


def check_outputs(outputs: Mapping[str, str | Path | None], inputs: Sequence[Path]) -> None:
    """Refuse, before anything is measured, outputs by option that cannot be written or would replace a file in use."""
    used: dict[Path, str] = {path.resolve(): "is what the command reads" for path in inputs}
    for option, output in outputs.items():
        path = Path(output or "-")
        if str(path) == "-":
            continue
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; give {option} the name of a file")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
        if path.exists() and not path.is_file():
            continue
        if path.resolve() in used:
            raise OutputError(f"{path}: {used[path.resolve()]}; give {option} another name")
        used[path.resolve()] = f"is what {option} writes"


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
