"""`python -m tests.mutation [MODULE…]`: plants small faults in modules and says which of them no test notices."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.mutation import figures
from tests.mutation.figures import Draw, Figures
from tests.mutation.modules import SUBJECTS
from tests.mutation.runner import Job, Outcome, run


def main() -> None:
    """Run the modules given, or all, those with the same tests in one process; note the figures, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(SUBJECTS)}; all without")
    parser.add_argument("--here", action="store_true", help="run modules with the same tests in this process")
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
        together(options.modules, options.again, Draw(options.sample, options.seed) if options.sample else None)
        return
    passed = [argument for argument in sys.argv[1:] if argument not in options.modules]
    by_tests: dict[tuple[str, ...], list[str]] = {}
    for module in () if options.page else options.modules or SUBJECTS:
        by_tests.setdefault(SUBJECTS[module].tests, []).append(module)
    for modules in by_tests.values():
        subprocess.run([sys.executable, "-m", "tests.mutation", "--here", *passed, *modules], check=True)
    if options.page:
        write_page()


def write_page() -> None:
    """Write docs/mutants.md from the figures noted."""
    figures.PAGE.write_text(figures.page(SUBJECTS, figures.read()), "utf-8")


def together(names: Sequence[str], again: bool, draw: Draw | None) -> None:
    """Run modules and groups that have the same tests, a sample of them, or their noted survivors again."""
    (tests,) = {SUBJECTS[name].tests for name in names}
    known = {name: figures.read()[name] if again else None for name in names}
    run([job(name, known[name], draw) for name in names], tests, say)


def job(name: str, known: Figures | None, draw: Draw | None) -> Job:
    """One module or group, whose figures are printed and noted when it is finished; of known figures the survivors."""
    subject = SUBJECTS[name]
    draw = known.drawn if known else draw
    chosen = figures.places(subject.modules, draw)

    def wanted(module: str, number: int, line: str, change: str) -> bool:
        return (module, number) in chosen and (known is None or (module, line, change) in known.survivors)

    def finished(outcome: Outcome) -> None:
        found = figures.figures(subject, draw, outcome)
        say(
            f"{name}: {found.killed} of {found.total - found.equivalent} killed ({found.share:.1%}), "
            f"{outcome.unreached} not reached by any test, {found.equivalent} equivalent"
        )
        figures.note(name, found)
        write_page()

    return Job(subject.modules, finished, wanted)


def say(line: str) -> None:
    """Print a line at once, and how long this took so far."""
    print(f"{time.process_time():6.0f} s  {line}", flush=True)


if __name__ == "__main__":
    main()
