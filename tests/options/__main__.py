"""`python -m tests.options`: run command lines with odd values of every option, or with pairs of options; print what falls."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.options.attack import Attack, pairs, values
from tests.options.run import Bench

KINDS = {"values": values, "pairs": pairs}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.options", description=__doc__)
    parser.add_argument("--only", choices=list(KINDS), help="only odd values, or only pairs of options")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default %(default)s)")
    parser.add_argument("--count", type=int, help="how many command lines (default: all)")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="only this command, or one way to run it")
    parser.add_argument(
        "--cost", action="append", metavar="COST", help="only scenarios of this cost: quick, slow, long"
    )
    parser.add_argument("--log", metavar="FILE", help="add a line of JSON for each to FILE")
    return parser.parse_args()


def drawn(options: argparse.Namespace) -> list[Attack]:
    """The command lines that are asked for, in the seed's order; of scenarios of one command, any."""
    found = [
        one
        for kind, made in KINDS.items()
        if options.only in (None, kind)
        for one in made()
        if (not options.scenario or {one.scenario.name, one.scenario.command} & set(options.scenario))
        and (not options.cost or one.scenario.cost in options.cost)
    ]
    random.Random(options.seed).shuffle(found)
    return list({one.key: one for one in found}.values())[: options.count]


def main() -> int:
    """Run what is asked for, and print what ends badly and a summary; 1 where anything does."""
    options = arguments()
    begun, wrong = time.monotonic(), 0
    codes: Counter[int | None] = Counter()
    with tempfile.TemporaryDirectory(prefix="tinyq-options-") as folder:
        bench = Bench(Path(folder))
        for one in drawn(options):
            ended, found = bench.run(one)
            codes[ended.code] += 1
            wrong += bool(found)
            if found:
                print("\n    ".join([f"{one.scenario.name}: {one.label}", *found]), flush=True)
            if options.log:
                entry = [one.scenario.name, one.label, ended.code, ended.seconds, ended.memory, ended.err[:1500], found]
                with Path(options.log).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(entry) + "\n")
    counts = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items(), key=str))
    print(f"{codes.total()} command lines in {time.monotonic() - begun:.0f} s ended {counts}; {wrong} badly")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
