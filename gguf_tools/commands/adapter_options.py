"""The option that names LoRA adapters, shared by several commands."""

from __future__ import annotations

from collections.abc import Callable

import click

from gguf_tools.commands.common import F


def lora_option(into: str) -> Callable[[F], F]:
    """A decorator that adds `--lora`; `into` is what the adapters are merged into. The command receives the parameter lora."""
    return click.option(
        "--lora",
        multiple=True,
        metavar="DIR[@SCALE]",
        help=f"LoRA adapter (a folder that PEFT saved, or ORG/NAME on the hub) to merge into {into}, its change times SCALE; "
        "repeatable.",
    )
