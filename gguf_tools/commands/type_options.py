"""The options that determine each tensor's type, shared by `tinyq convert` and `tinyq quantize`."""

from __future__ import annotations

import click

from gguf_tools.commands.common import F
from gguf_tools.commands.completion import assigned_type, completer, tensor_types
from gguf_tools.commands.values import FilePath, Number
from gguf_tools.errors import BITS

_TENSORS = (
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="REGEX=TYPE",
        shell_complete=assigned_type,
        help="Type of tensors whose name matches REGEX (anywhere in it); repeatable, the last match wins.",
    ),
    click.option(
        "--output-type", metavar="TYPE", shell_complete=completer(tensor_types), help="Type of output.weight."
    ),
    click.option(
        "--embedding-type", metavar="TYPE", shell_complete=completer(tensor_types), help="Type of the token embedding."
    ),
    click.option("--pure", is_flag=True, help="Use one type for all quantized tensors."),
    click.option(
        "--imatrix",
        type=FilePath(),
        metavar="FILE",
        help="Importance matrix (see `tinyq imatrix`), GGUF or old .dat.",
    ),
)
_SIZE = (
    click.option(
        "--target-bpw",
        type=Number(BITS),
        metavar="BITS",
        help="Select each tensor's type by measured sensitivity, for this many bits per weight; instead of a type.",
    ),
    click.option(
        "--target-size", metavar="SIZE", help="Like --target-bpw, for a file of at most SIZE, such as 500M or 2GiB."
    ),
    click.option(
        "--sensitivity",
        type=FilePath(),
        metavar="FILE",
        help="JSON report of an earlier run, or of `tinyq trace --budget`, to take the sensitivity from instead of measuring it.",
    ),
)


def type_options(command: F) -> F:
    """A decorator that adds the options; the command receives the parameters tensor_types, output_type, embedding_type, pure,
    imatrix, target_bpw, target_size and sensitivity."""
    for option in reversed((*_TENSORS, *_SIZE)):
        command = option(command)
    return command


def tensor_type_options(command: F) -> F:
    """A decorator that adds those that hold for any type: tensor_types, output_type, embedding_type, pure and imatrix."""
    for option in reversed(_TENSORS):
        command = option(command)
    return command
