"""`python -m tests.mutation [MODULE…]`: plants small faults in modules and says which of them no test notices."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.mutation import figures
from tests.mutation.modules import MODULES
from tests.mutation.runner import run


def main() -> None:
    """Run the modules given, or all, each in a process of its own; note the figures, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; all without")
    parser.add_argument("--here", action="store_true", help="run one module in this process")
    parser.add_argument(
        "--again", action="store_true", help="run the noted survivors alone, after tests were added and nothing else"
    )
    parser.add_argument(
        "--page", action="store_true", help="write docs/mutants.md from the figures noted, and run nothing"
    )
    options = parser.parse_args()
    for module in options.modules:
        if module not in MODULES:
            parser.error(f"{module} is not listed in tests/mutation/modules.py")
    if options.here:
        one(options.modules[0], options.again)
        return
    for module in () if options.page else options.modules or MODULES:
        again = ["--again"] if options.again else []
        subprocess.run([sys.executable, "-m", "tests.mutation", "--here", *again, module], check=True)
    if options.page:
        write_page()


def write_page() -> None:
    """Write docs/mutants.md from the figures noted."""
    figures.PAGE.write_text(figures.page(MODULES, figures.read()), "utf-8")


def one(module: str, again: bool) -> None:
    """Run one module, or its noted survivors again, and print and note its figures."""
    lines = Path(module).read_text("utf-8").splitlines()
    known = figures.read()[module].survivors if again else ()
    outcome = run(
        Path(module),
        MODULES[module],
        lambda line: print(line, flush=True),
        lambda mutant: not again or (lines[mutant.line - 1].strip(), mutant.change) in known,
    )
    found = figures.figures(Path(module), outcome)
    print(
        f"{module}: {found.killed} of {found.total - found.equivalent} killed ({found.share:.1%}), "
        f"{outcome.unreached} not reached by any test, {found.equivalent} equivalent",
        flush=True,
    )
    figures.note(module, found)
    write_page()


if __name__ == "__main__":
    main()
