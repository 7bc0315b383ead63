"""The `tinyq` command: the table of commands, each imported when used, and the conversion of errors to one-line messages."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from gguf_tools import __version__, signals
from gguf_tools.errors import TinyqError, advice, exhausted
from gguf_tools.formats.opened import forget_opened
from gguf_tools.formats.temporary_folder import temporary_folder
from gguf_tools.machine import drop, prepare_for_limits, reader_gone, require_current_folder
from gguf_tools.text import expected, sentence, shortened

COMMANDS = {
    "convert": ("gguf_tools.commands.convert:convert", "Convert a checkpoint to a GGUF that stock llama.cpp runs."),
    "surgery": ("gguf_tools.commands.surgery:surgery", "Swap, blend, repeat or drop layers of a checkpoint or a GGUF."),
    "quantize": ("gguf_tools.commands.quantize:quantize", "Quantize a GGUF, byte for byte as llama.cpp does."),
    "imatrix": ("gguf_tools.commands.imatrix:imatrix", "Collect an importance matrix, for convert and quantize."),
    "describe": (
        "gguf_tools.commands.describe:describe",
        "Describe a checkpoint of a decoder that no family knows, solved from its logits.",
    ),
    "eval": (
        "gguf_tools.commands.eval:evaluate",
        "Evaluate GGUF files with llama.cpp: against the torch reference, or on questions.",
    ),
    "lm-eval": (
        "gguf_tools.commands.lm_eval:lm_eval",
        "Run the tasks of lm-evaluation-harness on a GGUF.",
    ),
    "compare": (
        "gguf_tools.commands.compare:compare",
        "Compare two benchmark runs item by item, corrected for the number of tasks.",
    ),
    "trace": (
        "gguf_tools.commands.trace:trace",
        "Find the first intermediate in which llama.cpp and the torch reference differ.",
    ),
    "verify": ("gguf_tools.commands.verify:verify", "Check a GGUF against its source, byte for byte."),
    "diff": ("gguf_tools.commands.diff:diff", "Compare two GGUF files, or a GGUF and its source."),
    "golden": ("gguf_tools.commands.golden:golden", "Write what any engine must compute for a model."),
    "check": ("gguf_tools.commands.check:check", "Hold an engine to golden values: a dump, a server or a command."),
    "card": ("gguf_tools.commands.card:card", "Write a model card, and an Ollama Modelfile, for quantized files."),
    "publish": (
        "gguf_tools.commands.publish:publish",
        "Convert to several types, measure them, and write a folder for the hub.",
    ),
    "ask": ("gguf_tools.commands.ask:ask_command", "Ask a GGUF one question, with its own chat template."),
    "chat": ("gguf_tools.commands.chat:chat", "Chat with a GGUF in the terminal."),
    "inspect": ("gguf_tools.commands.inspect:inspect_command", "Describe a checkpoint or a GGUF."),
    "edit": ("gguf_tools.commands.edit:edit", "Change metadata and tensors' names of a GGUF."),
    "split": ("gguf_tools.commands.split:split", "Split a GGUF into shards, as llama.cpp's gguf-split does."),
    "merge": ("gguf_tools.commands.merge:merge", "Merge the shards of a GGUF into one file."),
    "search": ("gguf_tools.commands.search:search", "Look for the layer surgery that scores best."),
    "demo": ("gguf_tools.commands.demo:demo", "Convert, quantize and evaluate a bundled model."),
}
"""Command name → (module:function, its line in the list of commands)."""

FAULT = 70
"""Exit code (EX_SOFTWARE of sysexits.h) for an unexpected error."""
DEBUG = "TINYQ_DEBUG"
_ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def _without_pipes() -> Iterator[None]:
    """Handle a BrokenPipeError here, since click exits with 1 on any: a help text that nobody reads (`| head`) is no error."""
    try:
        yield
    except BrokenPipeError as error:
        if not isinstance(sys.stdout, io.TextIOBase) or not reader_gone(sys.stdout.fileno()):
            raise TinyqError(f"a pipe or a connection was closed by its other end; {signals.left()}") from error
        drop(sys.stdout.fileno())
        raise click.exceptions.Exit(0) from error


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _without_pipes():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _without_pipes():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        require_current_folder()
        prepare_for_limits()
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"there is no command {name!r}; {expected(name, COMMANDS)}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Print the version and exit; with -v, which is read before it, also what encodes."""
    if not wanted:
        return
    click.echo(f"tinyq, version {__version__}")
    if ctx.params.get("verbose"):
        from quant import kernels

        click.echo(f"encoder: {kernels.describe()}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog="\b\nExamples:\n  tinyq convert hf/ out.gguf --type q8_0\n  tinyq eval out.gguf --reference hf/",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "-v", "--verbose", is_flag=True, is_eager=True, expose_value=True, help="With --version: also the encoder."
)
@click.option("--version", is_flag=True, expose_value=False, callback=_version, help="Show the version and exit.")
def tinyq(verbose: bool) -> None:
    """Convert trained decoders to GGUF for llama.cpp, and verify the result against a torch reference."""


PACKAGES = {
    "gguf": "gguf",
    "jinja2": "jinja2",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "yaml": "pyyaml",
}
"""By module, the packages that an installation may lack although tinyq requires them (`pip install --no-deps`)."""


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0 success, 1 a threshold was missed, 2 bad usage or input, 3 llama.cpp failed, 70 an internal error; 130 and
    143, as is usual, after SIGINT and SIGTERM.
    """
    try:
        _open_streams()
    except OSError as error:  # a system without /dev/null
        sys.exit(_explained(error))
    signals.raise_them()
    warnings.formatwarning = _warning_line
    for stream in (sys.stdout, sys.stderr):
        # Tables, tokens and file names contain characters that some terminal encodings lack.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with contextlib.suppress(OSError):  # what needs the folder says that there is none
            temporary_folder()
        code = run(args)
        signals.leave_at_once()
    except (KeyboardInterrupt, signals.EndedError) as error:  # between two lines of `run`
        code = _explained(error)
    if signals.received():
        signals.ignore_them()
        # CPython remembers a KeyboardInterrupt in a text that was executed, as dataclasses does, until the next such text, and
        # `python -m` then ends itself by SIGINT, whatever the exit code (run_eval_code_obj in Python/pythonrun.c).
        exec("")
    sys.exit(_drained(code))


def _open_streams() -> None:
    """Have standard streams that are closed lead to the null device.

    Otherwise a file that is opened later gets the number of such a stream, and whatever prints writes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as one line, without the place in the code."""
    return f"tinyq: warning: {message}\n"


def _drained(code: int) -> int:
    """Write out what stdout still holds, which Python would do at its end with a traceback where that fails."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout.fileno())
    except (OSError, ValueError) as error:
        code = code or _explained(error)
        with contextlib.suppress(OSError):
            drop(sys.stdout.fileno())
    return code


def run(args: list[str] | None = None) -> int:
    """Run the command line and return the exit code; every error is printed as one line on stderr."""
    signals.forget()
    forget_opened()
    try:
        result: Any = tinyq.main(args=args, prog_name="tinyq", standalone_mode=False)
    except (Exception, KeyboardInterrupt, signals.EndedError) as error:
        return _explained(error)
    return result if isinstance(result, int) else 0


def _explained(error: BaseException) -> int:
    """Print one line on why the command ended, and return its exit code."""
    if isinstance(error, click.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__  # click aborts on both Ctrl-C and any EOFError
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    # The exception of a signal that arrives while an extension module is imported may turn into another error there.
    number = signals.received()
    if number or isinstance(error, KeyboardInterrupt | click.Abort):
        return _fail(signals.sentence(number or signal.SIGINT), signals.exit_code(number or signal.SIGINT))
    lacking = exhausted(error)
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    match error:
        case TinyqError():
            return _fail(f"{error}; {lacking[1]}" if lacking else str(error), error.exit_code)
        case click.exceptions.Exit():
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "tinyq"
            return _fail(f"{error.format_message().rstrip('.')}; see {path} --help", error.exit_code)
        case click.ClickException():
            return _fail(error.format_message(), error.exit_code)
        case _ if lacking:
            return _fail(f"{where}{lacking[0]}; {signals.left()}; {lacking[1]}", TinyqError.exit_code)
        case OSError():
            return _fail(f"{where}{error.strerror or error}; {advice(error)}; {signals.left()}", TinyqError.exit_code)
        case ModuleNotFoundError(name=str(name)) if name.split(".")[0] in PACKAGES:
            package = PACKAGES[name.split(".")[0]]
            return _fail(
                f"{package} is not installed, and this command needs it; pip install {package}", TinyqError.exit_code
            )
    return _fail(
        f"internal error of tinyq: {_name_of(error)}; {signals.left()}; please report it with this line, the command "
        f"and, if possible, the input ({DEBUG}=1 shows the traceback)",
        FAULT,
    )


def _name_of(error: BaseException) -> str:
    """An error's class, its message, and the innermost line of tinyq's code in its traceback."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_ROOT)
    ]
    where = f" at {Path(frames[-1].filename).relative_to(_ROOT)}:{frames[-1].lineno}" if frames else ""
    text = shortened(str(error), 300)
    return f"{type(error).__name__}{where}" + (f" ({text})" if text else "")


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # where stderr cannot be written, the exit code alone tells
        click.echo(f"tinyq: {sentence(message)}", err=True)
    return code
