"""Write the generated pages of docs/: `python docs/generate.py`, or `make docs`. A test holds them to be current."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.cli import COMMANDS, tinyq

DOCS = Path(__file__).parent
COMMANDS_PAGE = DOCS / "commands.md"
WIDTH = 100


def commands_page() -> str:
    """Every command's own help, as one page."""
    lines = ["# Commands", "", "Generated from the commands' own help by `make docs`.", ""]
    parent = click.Context(tinyq, info_name="tinyq")
    for name in COMMANDS:
        command = tinyq.get_command(parent, name)
        if command is None:
            raise ValueError(f"the command {name} has no implementation")
        context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
        lines += [f"## tinyq {name}", "", "```", command.get_help(context), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    COMMANDS_PAGE.write_text(commands_page(), "utf-8")
