"""`python -m fuzzing [TARGET…]`: the long campaign of all targets, or of those named; see --help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from fuzzing import inputs
from fuzzing.campaign import findings, reached, replay, run_all, runs
from fuzzing.page import PAGE, carry_over, page
from fuzzing.registry import all_targets, target_named
from fuzzing.target import MEMORY, SECONDS, Target


def main() -> None:
    """Run what is asked for, and write the page; exit code 1 where a finding is open."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description=__doc__)
    parser.add_argument("targets", nargs="*", help="names of targets; all without")
    parser.add_argument("--executions", type=int, help="of each target, in place of its own number")
    parser.add_argument("--seconds", type=int, help="at most, for each target")
    parser.add_argument("--minutes", type=float, help="at most, for all targets together; they share them")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time; one for each core without"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".fuzzing"), help="where corpora, findings and figures are kept"
    )
    parser.add_argument(
        "--keep", action="store_true", help="renew fuzzing/corpus from the campaign's corpora, and run nothing"
    )
    parser.add_argument("--page", action="store_true", help="write the page anew, with the findings that still fall")
    options = parser.parse_args()
    chosen = [target_named(name) for name in options.targets] or list(all_targets())
    if options.keep:
        for target in chosen:
            inputs.keep(target.name, reached(target.name, options.folder))
        return
    carry_over(all_targets(), options.folder, PAGE.read_text("utf-8") if PAGE.exists() else "")
    if options.page:
        for target in chosen:
            replay(target, options.folder)
        PAGE.write_text(page(all_targets(), options.folder, SECONDS, MEMORY), "utf-8")
    else:
        campaign(chosen, options)
    if any(findings(target.name, options.folder) for target in chosen):
        raise SystemExit(1)


def campaign(chosen: Sequence[Target], options: argparse.Namespace) -> None:
    """Run the chosen targets, and say what each found when it is done."""
    done = run_all(
        chosen,
        options.folder,
        jobs=options.jobs,
        executions=options.executions,
        seconds=options.seconds,
        total=None if options.minutes is None else 60 * options.minutes,
    )
    for target, whole in done:
        executions = sum(run.executions for run in runs(target.name, options.folder))
        print(f"{target.name}: {executions:,} executions in all", flush=True)
        for found in findings(target.name, options.folder):
            print(f"  open: {found}", flush=True)
        if not whole:
            print(f"  the process ended early: {options.folder / target.name / 'log'}", flush=True)
        PAGE.write_text(page(all_targets(), options.folder, SECONDS, MEMORY), "utf-8")


if __name__ == "__main__":
    main()
