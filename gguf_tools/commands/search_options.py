"""The options of `tinyq search`: what is tried, what it is measured by, and where the study is kept."""

from __future__ import annotations

import re

import click

from gguf_tools.commands.common import F
from gguf_tools.commands.values import FilePath, Text
from gguf_tools.errors import InputError
from gguf_tools.machine import MOST_COUNT

MOST_BLOCK = 512
"""Largest block; llama.cpp holds no more layers."""

_SEARCH = (
    click.option(
        "--strategy",
        type=click.Choice(["single", "blocks", "compose", "sample"]),
        multiple=True,
        help="single: every deletion, duplication, swap and interpolation of near layers. blocks: every repeated or deleted "
        "block. compose: the best so far with one op more, round by round. sample: drawn by Optuna's TPE. Repeatable; by default "
        "single and compose.",
    ),
    click.option(
        "--objective",
        multiple=True,
        metavar="WHAT",
        help="card (score of --questions), perplexity (bits per byte), kl (to --teacher, or to SOURCE), speed (of generating, "
        "as a multiple of SOURCE's; after another), or MODULE:FUNCTION, called with the path of a GGUF, larger is better. "
        "Repeatable; by default card.",
    ),
    click.option(
        "--budget", type=click.IntRange(min=1), default=250, show_default=True, help="Most candidates that are tried."
    ),
    click.option(
        "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Candidates that are confirmed."
    ),
    click.option(
        "--beam", type=click.IntRange(min=1), default=4, show_default=True, help="compose: recipes extended a round."
    ),
    click.option(
        "--seed", type=click.IntRange(0, MOST_COUNT), default=0, show_default=True, help="sample: seed of the sampler."
    ),
    click.option("--layers", metavar="I..J", help="Layers that ops may name; by default all."),
    click.option("--allow", multiple=True, metavar="OP", help="Try only this op; repeatable."),
    click.option("--forbid", multiple=True, metavar="OP", help="Do not try this op; repeatable."),
    click.option(
        "--reach",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        help="Largest distance of layers that are interpolated, merged or swapped.",
    ),
    click.option("--alpha", default="0.5", show_default=True, metavar="A,…", help="Weights of interpolations."),
    click.option("--factor", default="0.9,1.1", show_default=True, metavar="F,…", help="Factors of scaled layers."),
    click.option("--size", default="2..512", show_default=True, metavar="I..J", help="blocks: sizes of blocks."),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="blocks: distance between two blocks.",
    ),
    click.option(
        "--times",
        type=click.IntRange(min=2, max=16),
        default=2,
        show_default=True,
        help="How often a repeated block runs.",
    ),
    click.option(
        "--rival",
        multiple=True,
        metavar="TYPE",
        help="Also measure SOURCE quantized to this type, which any deletion has to beat; repeatable.",
    ),
    click.option("--teacher", type=FilePath(), metavar="FILE", help="kl: a larger GGUF with the same tokenizer."),
    click.option("--text", type=FilePath(), metavar="FILE", help="Text; every second passage is held out."),
    click.option("--held-out-text", type=FilePath(), metavar="FILE", help="Text that confirms instead."),
    click.option(
        "--device",
        type=Text(),
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="Where torch scores texts: cpu, or cuda.",
    ),
    click.option("--no-pruning", is_flag=True, help="Measure every candidate on the objective."),
)
_STORAGE = (
    click.option(
        "--workers",
        type=click.IntRange(min=1, max=256),
        default=1,
        show_default=True,
        help="Processes that share the work.",
    ),
    click.option(
        "--storage",
        type=Text(),
        metavar="URL",
        help="Where the study is kept: a file (SQLite), or a URL such as postgresql://host/base, which many machines may share. "
        "By default SOURCE's name with .search.db, in the current folder.",
    ),
    click.option(
        "--study", type=Text(), metavar="NAME", help="Name of the study in the storage; by default SOURCE's name."
    ),
    click.option("--html", metavar="FILE", help="Write the report as one self-contained HTML page to FILE."),
)


def search_options(command: F) -> F:
    """A decorator that adds the options of what is tried and measured."""
    for option in reversed(_SEARCH):
        command = option(command)
    return command


def storage_options(command: F) -> F:
    """A decorator that adds the options of the study."""
    for option in reversed(_STORAGE):
        command = option(command)
    return command


def parsed_layers(text: str | None) -> tuple[int, int] | None:
    """`I..J` of --layers, or None."""
    return None if text is None else _range("--layers", text)


def parsed_sizes(text: str) -> tuple[int, int]:
    """`I..J` of --size, each at least 1."""
    first, last = _range("--size", text)
    if first < 1:
        raise InputError(f"--size {text}: a block has one layer at least; give a range such as 2..8")
    return first, min(last, MOST_BLOCK)


def _range(option: str, text: str) -> tuple[int, int]:
    """`I..J`, or one number; InputError for anything else."""
    found = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", text.strip())
    if found is None:
        raise InputError(f"{option} {text}: is no range; expected one such as 2..8")
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    if last < first:
        raise InputError(f"{option} {text}: is descending; expected {last}..{first}")
    return first, last


def parsed_numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers separated by commas, from 0 to 1 for --alpha; InputError for anything else."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{option} {text}: is no list of numbers; expected one such as 0.3,0.5") from None
    most = 1.0 if option == "--alpha" else 16.0
    wrong = next((value for value in found if not 0 < value <= most), None)
    if wrong is not None:
        raise InputError(f"{option} {text}: {wrong:g} is out of range; expected numbers above 0, at most {most:g}")
    return found
