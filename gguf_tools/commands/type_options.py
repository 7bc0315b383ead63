"""The options that change which type each tensor gets, shared by `tinyq convert` and `tinyq quantize`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_tools.commands.common import F
from gguf_tools.errors import InputError

if TYPE_CHECKING:
    from gguf_tools.allocation.choose import SizeTarget
    from quant.recipes import TypeOptions

_OPTIONS = (
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="REGEX=TYPE",
        help="Type of tensors in whose name REGEX is found; repeatable, the last that matches wins.",
    ),
    click.option("--output-type", metavar="TYPE", help="Type of output.weight."),
    click.option("--embedding-type", metavar="TYPE", help="Type of the token embedding."),
    click.option("--pure", is_flag=True, help="The same type for all tensors that are quantized."),
    click.option(
        "--imatrix",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Importance matrix (see `tinyq imatrix`), GGUF or old .dat.",
    ),
    click.option(
        "--target-bpw",
        type=click.FloatRange(min=0, min_open=True),
        metavar="BITS",
        help="Instead of a type: choose types by measuring each tensor, for this many bits per weight.",
    ),
    click.option("--target-size", metavar="SIZE", help="The same for a file of at most SIZE, such as 500M or 2GiB."),
)


def type_options(command: F) -> F:
    """Adds the options to a command, which gets tensor_types, output_type, embedding_type, pure, imatrix, target_bpw and
    target_size."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parsed_options(
    tensor_types: tuple[str, ...], output_type: str | None, embedding_type: str | None, pure: bool
) -> TypeOptions:
    """The options as the recipes take them. Raises InputError for a bad regex or a type that cannot be written."""
    from quant.recipes import Override, TypeOptions, writable_type

    return TypeOptions(
        pure=pure,
        output_type=writable_type(output_type) if output_type else None,
        embedding_type=writable_type(embedding_type) if embedding_type else None,
        overrides=tuple(Override.parse(text) for text in tensor_types),
    )


def parsed_target(target_bpw: float | None, target_size: str | None, calibration: Path | None) -> SizeTarget | None:
    """The size that was asked for, if any. Raises InputError where two were."""
    from gguf_tools.allocation.choose import SizeTarget

    if target_bpw is None and target_size is None:
        return None
    if target_bpw is not None and target_size is not None:
        raise InputError("--target-bpw and --target-size are two sizes; give one of them")
    size = parse_size(target_size, "--target-size") if target_size is not None else None
    return SizeTarget(target_bpw, size, calibration)


_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) *(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


def parse_size(text: str, option: str) -> int:
    """Bytes from a size such as 500M, 1.5G or 2GiB (units of 1000; with an i of 1024). Raises InputError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or (match["binary"] and not match["unit"]):
        raise InputError(f"{option} {text!r} is not a size; expected such as 500M, 1.5G or 2GiB")
    power = " KMGT".index(match["unit"].upper() or " ")
    size = int(float(match["number"]) * (1024 if match["binary"] else 1000) ** power)
    if size < 1:
        raise InputError(f"{option} {text!r} is less than a byte")
    return size
