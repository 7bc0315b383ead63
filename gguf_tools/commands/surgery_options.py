"""The options of layer surgery, shared by several commands: one option per op, applied in command-line order.

click groups the values of a repeated option, which loses the order among different options; so these options are removed from
the arguments before click parses them. The ops are imported only when the options are used or listed.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from surgery.recipe import Recipe

SECTION = "Layer surgery (in the order given; layers count from 0, after the preceding ops)"
_KEY = "tinyq.surgery.options"


class WithSurgery(click.Command):
    """A command with the options of layer surgery."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        if not ctx.resilient_parsing:
            return params
        from gguf_tools.commands.completion import surgery_parameters

        return [*params, *surgery_parameters()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the surgery options in their order, and parse the others; the error for an unknown one suggests ops too."""
        if ctx.resilient_parsing:  # the shell completes a line that need not be whole
            return super().parse_args(ctx, args)
        given, rest = _collected(args, ctx)
        ctx.meta[_KEY] = given
        try:
            return super().parse_args(ctx, rest)
        except click.NoSuchOption as error:
            from surgery.ops import all_ops

            near = get_close_matches(error.option_name, [f"--{name}" for name in all_ops()])
            raise click.NoSuchOption(error.option_name, None, [*(error.possibilities or ()), *near], ctx) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section(SECTION):
            formatter.write_dl(list(option_help()))


def given_recipe() -> Recipe | None:
    """The recipe given by the running command's surgery options, in their order; None if there are none."""
    options = given_options()
    if not options:
        return None
    from surgery.recipe import from_options

    return from_options(options)


def given_options() -> list[tuple[str, str]]:
    """The running command's surgery options as (name, value), in their order."""
    options: list[tuple[str, str]] = click.get_current_context().meta.get(_KEY, [])
    return options


def option_help() -> list[tuple[str, str]]:
    """Pairs (option with its value, help text)."""
    from surgery.ops import all_ops
    from surgery.recipe import read_file
    from surgery.shipped import shipped_recipes

    shipped = ", ".join(f"{name} ({read_file(path).layers} layers)" for name, path in shipped_recipes().items())
    rows = [(f"--{op.name} {op.usage}", op.help) for op in all_ops().values()]
    return [
        *rows,
        (
            "--with [NAME=]PATH",
            "Name another model (B by default), whose layers ops refer to as B:N: a checkpoint for a checkpoint, a GGUF for a "
            "GGUF, with the same shapes, hyperparameters and tokenizer. Text before the first = is the name if it is a letter "
            r"followed by letters, digits or _ (C:\b.gguf is a path; write a path such as x=y.gguf as B=x=y.gguf).",
        ),
        ("--only attention|ffn", "Restrict the preceding op to the attention or the feed-forward of the layers."),
        (
            "--recipe FILE|TEXT|NAME",
            f'Ops from a TOML file, from text such as "swap(1:3) + delete(5)", or from a bundled recipe: {shipped}.',
        ),
    ]


def _collected(args: list[str], ctx: click.Context) -> tuple[list[tuple[str, str]], list[str]]:
    """The surgery options (name, value) among the arguments, and the other arguments.

    Raises click.UsageError for an option without a value.
    """
    from surgery.ops import all_ops

    names = {*all_ops(), "only", "recipe", "with"}
    given: list[tuple[str, str]] = []
    rest: list[str] = []
    left = list(args)
    while left:
        argument = left.pop(0)
        if argument == "--":
            rest += [argument, *left]
            break
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or name[2:] not in names:
            rest.append(argument)
            continue
        if not equals:
            if not left:
                raise click.UsageError(f"Option '{name}' requires an argument.", ctx)
            value = left.pop(0)
        given.append((name[2:], value))
    return given, rest
