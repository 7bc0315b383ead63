"""`python -m tests.mutation [MODULE…]`: plants small faults in modules and says which of them no test notices."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.mutation import figures
from tests.mutation.figures import Draw
from tests.mutation.modules import SUBJECTS
from tests.mutation.runner import run


def main() -> None:
    """Run the modules given, or all, each in a process of its own; note the figures, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(SUBJECTS)}; all without")
    parser.add_argument("--here", action="store_true", help="run one module in this process")
    parser.add_argument(
        "--again", action="store_true", help="run the noted survivors alone, after tests were added and nothing else"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="run N mutants drawn at random; the page says so")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of --sample (default %(default)s)")
    parser.add_argument(
        "--page", action="store_true", help="write docs/mutants.md from the figures noted, and run nothing"
    )
    options = parser.parse_args()
    for module in options.modules:
        if module not in SUBJECTS:
            parser.error(f"{module} is not listed in tests/mutation/modules.py")
    if options.here:
        one(options.modules[0], options.again, Draw(options.sample, options.seed) if options.sample else None)
        return
    passed = [argument for argument in sys.argv[1:] if argument not in options.modules]
    for module in () if options.page else options.modules or SUBJECTS:
        subprocess.run([sys.executable, "-m", "tests.mutation", "--here", *passed, module], check=True)
    if options.page:
        write_page()


def write_page() -> None:
    """Write docs/mutants.md from the figures noted."""
    figures.PAGE.write_text(figures.page(SUBJECTS, figures.read()), "utf-8")


def one(name: str, again: bool, draw: Draw | None) -> None:
    """Run one module or group, a sample of it, or its noted survivors again, and print and note its figures."""
    begun = time.monotonic()
    subject = SUBJECTS[name]
    known = figures.read()[name] if again else None
    draw = known.drawn if known else draw
    chosen = figures.places(subject.modules, draw)
    outcome = run(
        subject.modules,
        subject.tests,
        lambda line: print(line, flush=True),
        lambda module, number, line, change: (
            (module, number) in chosen and (known is None or (module, line, change) in known.survivors)
        ),
    )
    found = figures.figures(subject, draw, outcome)
    print(
        f"{name}: {found.killed} of {found.total - found.equivalent} killed ({found.share:.1%}), "
        f"{outcome.unreached} not reached by any test, {found.equivalent} equivalent; "
        f"{outcome.total - outcome.equivalent} run in {time.monotonic() - begun:.0f} s",
        flush=True,
    )
    figures.note(name, found)
    write_page()


if __name__ == "__main__":
    main()
