"""The options that say how a checkpoint is read and what is converted, shared by `tinyq convert` and `tinyq publish`."""

from __future__ import annotations

import click

from gguf_tools.commands.common import F
from gguf_tools.commands.completion import architectures, completer, families
from gguf_tools.commands.sources import described_source
from gguf_tools.commands.values import FilePath
from gguf_tools.machine import MOST_COUNT

_OPTIONS = (
    click.option(
        "--tokenizer",
        type=described_source(),
        metavar="DIR",
        help="Folder of the tokenizer, if it is not SOURCE's.",
    ),
    click.option(
        "--target",
        metavar="NAME",
        shell_complete=completer(architectures),
        help="llama.cpp architecture to use instead of the cheapest exact one.",
    ),
    click.option("--add-bos/--no-add-bos", default=None, help="Override the tokenizer's add_bos setting."),
    click.option("--drop-tokens", is_flag=True, help="Leave out tokens without a row in the embedding."),
    click.option(
        "--context-length",
        type=click.IntRange(1, MOST_COUNT),
        metavar="N",
        help="Context length to record, overriding the checkpoint's.",
    ),
    click.option(
        "--allow-approximate",
        is_flag=True,
        help="Use the nearest approximation where no architecture is exact, or one that saves many weights, and report its "
        "error.",
    ),
    click.option("--text-only", is_flag=True, help="Leave out the vision or audio tower of a multimodal model."),
    click.option(
        "--as",
        "as_family",
        metavar="NAME",
        shell_complete=completer(families),
        help="Treat an unknown model_type as this family (such as llama) or known model_type.",
    ),
    click.option(
        "--describe",
        type=FilePath(),
        metavar="FILE",
        help="A description of the tensors (`tinyq describe`), for a decoder that no family knows; by default SOURCE's "
        "tinyq.toml.",
    ),
)


def source_options(command: F) -> F:
    """A decorator that adds the options; the command receives the parameters tokenizer, target, add_bos, drop_tokens,
    context_length, allow_approximate, text_only, as_family and describe."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
