"""`python -m tests.faults`: run the matrix of faults × commands, or a row, a column or a cell of it."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.catalogue import FAULTS
from tests.faults.matrix import MOST, Cell, run_all
from tests.faults.page import PAGE, Count, counted, page, parsed
from tests.faults.scenarios import SCENARIOS


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    names = ", ".join(fault.name for fault in FAULTS)
    parser.add_argument("--fault", action="append", metavar="NAME", help=f"only this fault; repeatable: {names}")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="only this command, or one way to run it")
    parser.add_argument(
        "--without", action="append", metavar="NAME", help="not this command, or not this way to run it"
    )
    parser.add_argument("--most", type=int, default=MOST, help="tries of a kind for each pair (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tries at a time (default: all cores)")
    parser.add_argument("--missing", action="store_true", help=f"only pairs for which {PAGE.name} has no counts")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}; what was not run keeps its counts")
    return parser.parse_args()


def counts_written() -> dict[tuple[str, str], Count]:
    """The counts that the page has."""
    return parsed(PAGE.read_text("utf-8")) if PAGE.exists() else {}


def write_page(cells: Sequence[Cell]) -> None:
    """Write the page; what was not run keeps the counts that it had there."""
    old = counts_written()
    commands = list(dict.fromkeys(one.command for one in SCENARIOS))
    PAGE.write_text(page({**old, **counted(cells)}, commands), "utf-8")


def main() -> int:
    """Run what is asked for, print what was lost, write the page; 1 where anything was lost."""
    options = arguments()
    # A shell may start its background jobs with SIGINT ignored, which the commands would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults = [fault for fault in FAULTS if not options.fault or fault.name in options.fault]
    scenarios = [
        one
        for one in SCENARIOS
        if (not options.scenario or {one.name, one.command} & set(options.scenario))
        and not {one.name, one.command} & set(options.without or ())
    ]
    if not faults or not scenarios:
        raise SystemExit("no such fault or scenario; see --help and tests/faults/scenarios.py")
    had = set(counts_written()) if options.missing else set()
    pairs = [(fault, one) for fault in faults for one in scenarios if (fault.name, one.command) not in had]
    for fault in faults:
        if fault.why_not():
            print(f"{fault.name}: cannot be tried here: {fault.why_not()}", flush=True)
    begun = time.monotonic()
    cells: list[Cell] = []
    try:
        with tempfile.TemporaryDirectory(prefix="tinyq-faults-") as folder:
            for cell in run_all(Bench(Path(folder)), pairs, options.most, options.jobs):
                cells.append(cell)
                print(f"{time.monotonic() - begun:6.0f} s  {cell}", flush=True)
    finally:
        if options.write:
            write_page(cells)
    lost = sum(len(cell.lost) for cell in cells)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = f"{time.monotonic() - begun:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time"
    print(f"{sum(cell.tried for cell in cells)} tries in {times}; {lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
