"""How many surgeries an hour `tinyq search` tries, against the plain way: write a file, load it, ask one question after another.

    python -m benchmarks search [--model FILE.gguf] [--questions SET] [--strategy S]... [--budget 60] [--plain 4] [--threads N]

Both use the same questions, texts and settings of llama.cpp (the card suite's). The plain way is timed on `--plain` of the
candidates of the strategy single, each with the surgery command, as a script would. The search (of `--strategy`, by default
single too) is timed as a whole, its held-out items left out, and counts all candidates that it tried, pruned ones too.
Processor time is shown beside the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_tools import convert
from gguf_tools.api.options import card_options
from gguf_tools.bundled import bundled_model
from gguf_tools.evaluation.card.questions import Choice
from gguf_tools.evaluation.card.suite import CardOptions, run_card
from gguf_tools.machine import available_cores
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.gguf.layers import open_layered
from surgery.gguf.rewrite import plan_gguf
from surgery.search.run import SearchRequest, search
from surgery.search.space import Space, candidates, kinds_of, single_ops, surgery_refuses


@dataclass
class Spent:
    """Seconds by the clock, and processor seconds of this process and its children."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def timed() -> Iterator[Spent]:
    """What the block spends."""
    spent, began, used = Spent(), time.perf_counter(), _cpu()
    yield spent
    spent.wall, spent.cpu = time.perf_counter() - began, _cpu() - used


def _cpu() -> float:
    """Processor seconds so far, of children that have ended too."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, who))


def plain(model: Path, recipes: list[str], card: CardOptions, options: RuntimeOptions) -> None:
    """Each recipe as a script would try it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "variant.gguf"
        for recipe in recipes:
            line = [
                sys.executable,
                "-m",
                "gguf_tools",
                "surgery",
                str(model),
                str(out),
                "--recipe",
                recipe,
                "--force",
                "-q",
            ]
            subprocess.run([*line, "--no-prove"], check=True)
            items = card.choice.scored
            with Runtime(out, options) as runtime:
                for question in items.questions:
                    one = replace(items, questions=(question,), completions=(), passages=())
                    run_card(runtime, replace(card, choice=Choice(one), probes=0))
                rest = replace(items, questions=items.questions[:1])
                run_card(runtime, replace(card, choice=Choice(rest), probes=0))


def main() -> None:
    """Print candidates an hour for both ways, and their ratio."""
    parser = argparse.ArgumentParser(prog="benchmarks search")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--questions", default="bundled")
    parser.add_argument("--strategy", action="append", choices=("single", "blocks", "compose", "sample"))
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--plain", type=int, default=4)
    parser.add_argument("--threads", type=int, default=available_cores())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or Path(folder) / "dense.gguf"
        if given.model is None:
            convert(bundled_model("dense"), model, type="q8_0")
        chosen = card_options(
            questions=given.questions,
            repeat_set=1,
            held_out=None,
            weights=None,
            thinking=False,
            answer_tokens=128,
            think_tokens=1024,
        )
        options = RuntimeOptions(threads=given.threads)
        file = open_layered(model)
        count = len(file.layers)
        space = Space(count=count, first=0, last=count - 1, kinds=kinds_of((), ()))
        refused = surgery_refuses(lambda recipe: plan_gguf(file, recipe))
        recipes = [str(found.recipe) for found in candidates(space, single_ops(space), refused)]
        step = max(1, len(recipes) // given.plain)
        with timed() as one:
            plain(model, recipes[::step][: given.plain], chosen, options)
        request = SearchRequest(
            source=model,
            storage=f"sqlite:///{Path(folder) / 'study.db'}",
            study="benchmark",
            objectives=("card",),
            strategies=tuple(given.strategy or ("single",)),
            card=chosen,
            options=options,
            budget=given.budget,
            keep=1,
        )
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
        with timed() as other:
            ledger = search(request, lambda _: None)
        tried = sum(not record.entry.always for record in ledger.records())
    a_plain, a_searched = one.wall / given.plain, other.wall / tried
    print(
        f"plain:  {given.plain} candidates, {3600 / a_plain:,.0f} an hour, {one.cpu / given.plain:.1f} processor seconds each"
    )
    print(
        f"search: {tried} candidates, {3600 / a_searched:,.0f} an hour, {other.cpu / tried:.2f} processor seconds each"
    )
    cpu = (one.cpu / given.plain) / (other.cpu / tried)
    print(f"{a_plain / a_searched:.1f} times as many by the clock, {cpu:.1f} by processor time")


if __name__ == "__main__":
    main()
