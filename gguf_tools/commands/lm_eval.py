"""`tinyq lm-eval`: the command of lm-evaluation-harness, with a GGUF as the model."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from gguf_tools.commands.common import examples, quiet_option, threads_option, timeout_option
from gguf_tools.commands.engine_options import engine_options
from gguf_tools.commands.sources import whole_source
from gguf_tools.errors import InputError, OutputError, TinyqError
from gguf_tools.evaluation.harness_installed import require_harness
from gguf_tools.formats.scratch import working_folder
from gguf_tools.formats.temporary_folder import temporary_folder
from gguf_tools.machine import MOST_COUNT
from gguf_tools.runtime.process import headers_to_run
from gguf_tools.text import one_line, shortened

LONGEST = 300
"""Most characters of the harness's own error message."""


def _harness_help(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        require_harness()
        _parsed(["--help"])
        context.exit()


@click.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "lm-eval model.gguf --tasks arc_easy,hellaswag --limit 200",
        "lm-eval model.gguf --tasks mmlu --output_path results --log_samples",
    ),
)
@click.argument("model", metavar="FILE.gguf", type=whole_source())
@click.argument("options", nargs=-1, required=True, metavar="--tasks TASK… [HARNESS OPTIONS]", type=click.UNPROCESSED)
@engine_options
@click.option(
    "--context", type=click.IntRange(1, MOST_COUNT), help="Context length in tokens; by default the training context."
)
@timeout_option
@threads_option
@click.option(
    "--harness-help",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_harness_help,
    help="Show the harness's own options and exit.",
)
@quiet_option
def lm_eval(
    model: Path,
    options: tuple[str, ...],
    kv_type: str,
    flash_attn: bool,
    gpu_layers: int,
    context: int | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Run tasks of lm-evaluation-harness on FILE.gguf, in a llama.cpp process, with the file's own tokenizer.

    This is the harness's `lm-eval run` with this model: every option of it can be given, such as --tasks, --num_fewshot, --limit,
    --apply_chat_template, --output_path and --log_samples. tinyq compare reads what the last two write.

    Needs lm-evaluation-harness (pip install lm_eval). The harness downloads the tasks' data from the Hugging Face hub.
    """
    require_harness()
    settings = {"kv_type": kv_type, "flash_attn": flash_attn, "gpu_layers": gpu_layers}
    settings |= {"threads": threads} if threads is not None else {}
    settings |= {"max_length": context} if context is not None else {}
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    headers_to_run(model)  # refuses what is no GGUF, before the harness reads its thousands of tasks
    arguments = _parsed(options)
    if arguments is None:  # the harness has shown its help
        return
    if arguments.model is not None:
        raise click.UsageError("--model cannot be given: the model is FILE.gguf, run by tinyq")
    if not (arguments.tasks or arguments.config):
        raise click.UsageError("no tasks are given; give --tasks TASK…, such as --tasks arc_easy")
    if "pretrained" in (arguments.model_args or {}):
        raise click.UsageError("--model_args cannot have pretrained: the model is FILE.gguf")
    arguments.model = "tinyq"
    arguments.model_args = {"pretrained": str(model), **settings, **(arguments.model_args or {})}
    output = Path(arguments.output_path) if arguments.output_path else None
    if output is None:
        _execute(arguments)
        return
    _check_folder(output)
    with working_folder("tinyq-lm-eval") as work:
        # Not under a name that the user gives: "..", for one, leads out of the folder.
        named = output.suffix == ".json"
        arguments.output_path = str(work / (output.name if named else "results"))
        with saved(output):
            _execute(arguments)
        _publish(work if named else work / "results", output.parent if named else output, output)


@contextlib.contextmanager
def saved(output: Path) -> Iterator[None]:
    """Raise OutputError at the end if the harness could not write some of its results, which it only logs."""
    said: list[str] = []

    def passes(record: logging.LogRecord) -> bool:
        lost = record.getMessage().startswith("Could not save")
        said.extend([record.getMessage()] if lost else [])
        return not lost

    logger = logging.getLogger("lm_eval.loggers.evaluation_tracker")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
    if said:
        raise OutputError(
            f"{output}: lm-evaluation-harness could not write all of its results ({said[0]}); is {temporary_folder()} full? "
            "nothing was left behind"
        )


def _check_folder(output: Path) -> None:
    """Raise OutputError if the harness's results, which get new names each time, cannot be written to `output`.

    A path that ends in .json stands for names that begin so, in its folder.
    """
    folder = output.parent if output.suffix == ".json" else output
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise OutputError(f"{output}: {existing} is a file, but a folder is written; give --output_path another name")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"{output}: the folder {existing} is not writable; give --output_path another folder")


def _publish(work: Path, place: Path, output: Path) -> None:
    """Move what the harness has written below `work` to `place`, all or nothing; `output` is --output_path for errors."""
    from gguf_tools.formats.output import atomic_outputs

    files = sorted(path for path in work.rglob("*") if path.is_file())
    if not any(file.suffix == ".json" for file in files):  # the harness only logs that it could not write them
        raise OutputError(f"{output}: lm-evaluation-harness could not write its results; is {temporary_folder()} full?")
    targets = [place / file.relative_to(work) for file in files]
    try:
        for folder in dict.fromkeys(target.parent for target in targets):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: the folder cannot be created ({error.strerror})") from error
    sizes = [file.stat().st_size for file in files]
    with atomic_outputs(list(zip(targets, sizes, strict=True))) as streams:
        for file, stream in zip(files, streams, strict=True):
            with file.open("rb") as source:
                shutil.copyfileobj(source, stream)


def _execute(arguments: Any) -> None:
    """Run the harness. Raises InputError with the harness's message if it fails, TinyqError as our model class raises it."""
    from lm_eval import evaluator
    from lm_eval.utils import setup_logging

    import gguf_tools.evaluation.harness  # noqa: F401  (registers the model class)

    setup_logging(logging.WARNING)
    if not in_repository():
        # The harness records the commit of the current folder; outside of a repository git prints an error on that.
        setattr(evaluator, "get_git_commit_hash", lambda: None)  # noqa: B010
    try:
        arguments.func(arguments)
    except TinyqError:
        raise
    except Exception as error:  # whatever a task, its data or the harness raises
        said = shortened(one_line(str(error)), LONGEST)
        raise InputError(
            f"lm-evaluation-harness stopped: {type(error).__name__}{': ' if said else ''}{said}"
            " (TINYQ_DEBUG=1 shows where)"
        ) from error


def in_repository() -> bool:
    """Whether the current folder lies in a git repository."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return False
    return any((folder / ".git").exists() for folder in (here, *here.parents))


def _parsed(options: Sequence[str]) -> Any:
    """The arguments of `lm-eval run`, by the harness's own parser. Raises click.UsageError with its message."""
    from lm_eval._cli import HarnessCLI

    said = io.StringIO()
    try:
        with _arguments(["lm-eval", "run", *options]), contextlib.redirect_stderr(said):
            return HarnessCLI().parse_args()
    except SystemExit as error:
        if not error.code:
            return None
        lines = said.getvalue().strip().splitlines() or ["the harness refuses its options"]
        raise click.UsageError(lines[-1].partition("error: ")[2] or lines[-1]) from error


@contextlib.contextmanager
def _arguments(given: list[str]) -> Iterator[None]:
    """Let `sys.argv`, which the harness's parser reads, be `given`."""
    before, sys.argv = sys.argv, given
    try:
        yield
    finally:
        sys.argv = before
