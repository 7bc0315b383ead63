"""The entry point of `tinyq` and `python -m gguf_tools`."""

from __future__ import annotations

from gguf_tools import signals

TYPE_CHECKING = False  # as in `signals`
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit. A signal while modules are imported ends the process with a one-line message."""
    signals.leave_at_once()
    from gguf_tools import cli

    cli.main()


if __name__ == "__main__":
    main()
