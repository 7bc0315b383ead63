"""The options of llama.cpp's engine, shared by the commands that measure."""

from __future__ import annotations

import click

from gguf_tools.commands.common import F
from gguf_tools.machine import MOST_COUNT

gpu_layers_option = click.option(
    "--gpu-layers",
    type=click.IntRange(-1, MOST_COUNT),
    default=0,
    show_default=True,
    help="Layers on the GPU; -1 for all.",
)
_OPTIONS = (
    click.option(
        "--kv-type",
        type=click.Choice(["f32", "f16", "q8_0"]),
        default="f32",
        show_default=True,
        help="Type of llama.cpp's KV cache.",
    ),
    click.option("--flash-attn", is_flag=True, help="Use llama.cpp's flash attention."),
    gpu_layers_option,
)


def engine_options(command: F) -> F:
    """A decorator that adds the options; the command receives the parameters kv_type, flash_attn and gpu_layers."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
