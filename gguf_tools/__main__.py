"""`tinyq`, and `python -m gguf_tools`, begin here."""

from __future__ import annotations

from gguf_tools import signals

TYPE_CHECKING = False  # as in `signals`
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; a signal that arrives while its modules are loaded ends the process with one line."""
    signals.leave_at_once()
    from gguf_tools import cli

    cli.main()


if __name__ == "__main__":
    main()
