"""The options of layer surgery, which several commands take: one for each op, in the order of the command line.

click groups the values of an option that is given twice, which loses the order among different options; so these are
taken out of the arguments before click sees them. They are listed, and the ops imported, only when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from surgery.recipe import Recipe

SECTION = "Layer surgery (in the order given; layers count from 0, as the model then stands)"
_KEY = "tinyq.surgery.options"


class WithSurgery(click.Command):
    """A command that takes the options of layer surgery too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given, rest = _collected(args, ctx)
        ctx.meta[_KEY] = given
        return super().parse_args(ctx, rest)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section(SECTION):
            formatter.write_dl(list(option_help()))


def given_recipe() -> Recipe | None:
    """The recipe that the running command's options of surgery make, in their order; None without any."""
    options = given_options()
    if not options:
        return None
    from surgery.recipe import from_options

    return from_options(options)


def given_options() -> list[tuple[str, str]]:
    """The running command's options of surgery (name, value), in their order."""
    options: list[tuple[str, str]] = click.get_current_context().meta.get(_KEY, [])
    return options


def option_help() -> list[tuple[str, str]]:
    """Each option with its value, and what it does."""
    from surgery.ops import all_ops
    from surgery.recipe import read_file
    from surgery.shipped import shipped_recipes

    shipped = ", ".join(f"{name} ({read_file(path).layers} layers)" for name, path in shipped_recipes().items())
    rows = [(f"--{op.name} {op.usage}", op.help) for op in all_ops().values()]
    return [
        *rows,
        ("--only attention|ffn", "Narrow the swap, blend or scale before it to that half of the layers."),
        (
            "--recipe FILE|TEXT|NAME",
            f'The ops of a TOML file, of a text such as "swap(1:3) + delete(5)", or of a recipe that ships: {shipped}.',
        ),
    ]


def _collected(args: list[str], ctx: click.Context) -> tuple[list[tuple[str, str]], list[str]]:
    """Surgery's options among the arguments, and the others."""
    from surgery.ops import all_ops

    names = {*all_ops(), "only", "recipe"}
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
