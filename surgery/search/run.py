"""A search from its request to its result: workers on one study, then the best candidates on held-out items."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gguf_tools import __version__
from gguf_tools.errors import InputError, TinyqError
from gguf_tools.evaluation.card.suite import CardOptions
from gguf_tools.formats.gguf.source import gguf_digest
from gguf_tools.formats.watch import Watch as FileWatch
from gguf_tools.machine import MOST_THREADS, available_cores
from gguf_tools.runtime.process import RuntimeOptions
from surgery.search.agenda import Rung
from surgery.search.bench import Bench
from surgery.search.engine import check_device
from surgery.search.items import Items, split_items
from surgery.search.ledger import HELD_OUT as HELD_OUT_STUDY
from surgery.search.ledger import Ledger
from surgery.search.objective import Objective, Stage, parse_objectives, ranked, stages_of
from surgery.search.records import HELD_OUT, QUESTIONS, Record
from surgery.search.space import Space, Strategy, kinds_of
from surgery.search.strategy import Plan, Population
from surgery.search.worker import Watch, work

CPU = "cpu"
FEW = 4
"""Workers that any machine may run."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What is searched, and how; the command line's options.

    `layers`: first and last layer that ops may name, or None for all. `rivals`: types to which the unchanged base is quantized,
    to be compared with. `prune`: whether candidates stop before the objective is measured.
    """

    source: Path
    storage: str
    study: str
    objectives: tuple[str, ...]
    strategies: tuple[Strategy, ...]
    card: CardOptions
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    budget: int = 250
    keep: int = 5
    beam: int = 4
    seed: int = 0
    layers: tuple[int, int] | None = None
    allow: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    reach: int = 2
    alphas: tuple[float, ...] = (0.5,)
    factors: tuple[float, ...] = (0.9, 1.1)
    sizes: tuple[int, int] = (2, 512)
    stride: int = 1
    times: int = 2
    rivals: tuple[str, ...] = ()
    teacher: Path | None = None
    own_text: bool = False
    held_out_text: Path | None = None
    device: str = CPU
    prune: bool = True

    def setup(self, space: Space, items: Items) -> dict[str, Any]:
        """What all workers of the study must agree on, as plain JSON."""
        chosen, held_out = items.chosen, items.held_out
        found = {
            "tinyq": __version__,
            "layer_count": space.count,
            "source": gguf_digest(self.source),
            "objectives": list(dict.fromkeys(self.objectives)),
            "strategies": list(self.strategies),
            "space": space.as_dict(),
            "budget": self.budget,
            "keep": self.keep,
            "beam": self.beam,
            "seed": self.seed,
            "rivals": list(self.rivals),
            "teacher": None if self.teacher is None else gguf_digest(self.teacher),
            "prune": self.prune,
            "set": chosen.name,
            "questions": [len(chosen.questions), len(held_out.questions)],
            "passages": [len(chosen.passages), len(held_out.passages)],
            "items": hashlib.sha256(json.dumps(items.plain).encode()).hexdigest(),
            "thinking": self.card.thinking,
            "engine": {
                "kv_type": self.options.kv_type,
                "flash_attn": self.options.flash_attn,
                "gpu_layers": self.options.gpu_layers,
            },
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain


def search(request: SearchRequest, watch: Watch) -> Ledger:
    """Run the search, or go on with it, until nothing is left to measure; returns its study.

    Several processes that run the same request on one storage share the work. InputError for options that do not fit the model,
    and for a study that was begun with others; LlamaError where llama.cpp fails on the base; CheckpointError where the source
    changes meanwhile.
    """
    files = FileWatch.over(path for path in (request.source, request.teacher) if path is not None)
    objectives = parse_objectives(request.objectives)
    if request.device != CPU:
        check_device(request.device)
    items = split_items(
        request.card.choice,
        questions=any(objective.stage == QUESTIONS for objective in objectives),
        own_text=request.own_text,
        held_out_text=request.held_out_text,
    )
    with Bench(
        request.source,
        items,
        request.card,
        options=request.options,
        teacher=request.teacher,
        device=request.device,
    ) as bench:
        space = space_of(request, bench)
        plan = Plan(
            space=space,
            strategies=request.strategies,
            budget=request.budget,
            keep=request.keep,
            beam=request.beam,
            rivals=request.rivals,
            seed=request.seed,
        )
        # Before the storage is touched: this runs llama.cpp.
        stages = stages_of(objectives, bench, prune=request.prune)
        setup = request.setup(space, items)
        files.check()
        directions = [objective.direction for objective in objectives]
        ledger = Ledger.create(request.storage, request.study, setup, directions, str(request.source.resolve()))
        population = Population(plan, bench, objectives)

        work(ledger, stages, objectives, population.grow, request.keep, watch)
        _confirm(request, ledger, bench, objectives, setup, watch)
    files.check()
    return ledger


def _confirm(
    request: SearchRequest,
    ledger: Ledger,
    bench: Bench,
    objectives: Sequence[Objective],
    setup: dict[str, Any],
    watch: Watch,
) -> None:
    """Measure the base, its quantizations and the best candidates on the held-out items, in a study of its own."""
    records = ledger.records()
    chosen = [r for r in records if r.entry.always] + ranked(records, objectives)[: request.keep]
    asked = bool(bench.items.held_out.questions)
    objective = Objective(
        "held out", HELD_OUT, "score" if asked else "bits_per_byte", "maximize" if asked else "minimize"
    )
    confirmed = Ledger.create(
        request.storage, request.study + HELD_OUT_STUDY, setup, [objective.direction], ledger.path
    )
    stage = Stage(Rung(HELD_OUT), bench.by_held_out)

    def once(held: Ledger, found: Sequence[Record]) -> bool:
        held.add([] if found else [record.entry for record in chosen])
        return not found

    work(confirmed, [stage], [objective], once, len(chosen), watch)


def space_of(request: SearchRequest, bench: Bench) -> Space:
    """The space of a request on its model; InputError for layers that it does not have."""
    last = bench.count - 1
    first, stop = request.layers or (0, last)
    if not 0 <= first <= stop <= last:
        raise InputError(f"--layers {first}..{stop}: the model has layers 0 to {last}; give a range within them")
    if bench.count < 2:
        raise InputError(f"{request.source}: has {bench.count} layer; layer surgery needs two at least")
    experts = bench.file.get("expert_count")
    return Space(
        count=bench.count,
        first=first,
        last=stop,
        kinds=kinds_of(request.allow, request.forbid),
        reach=request.reach,
        alphas=request.alphas,
        factors=request.factors,
        sizes=request.sizes,
        stride=request.stride,
        times=request.times,
        experts=experts if isinstance(experts, int) else 0,
    )


def search_in_processes(request: SearchRequest, watch: Watch, workers: int) -> Ledger:
    """`search`, shared among processes of this machine, this one included; the threads are shared out among them.

    The others end with this one, however it ends. Raises InputError for more workers than the machine has cores, and than
    `FEW`: each takes the memory of a model and of torch.
    """
    most = max(available_cores(), FEW)
    if workers > most:
        raise InputError(f"--workers {workers}: this machine has {available_cores()} cores; give at most {most}")
    threads = min(max(1, (request.options.threads or available_cores()) // workers), MOST_THREADS)
    request = replace(request, options=replace(request.options, threads=threads))
    _use_threads(threads)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_worker, args=(request,), daemon=True) for _ in range(workers - 1)]
    for other in others:
        other.start()
    try:
        ledger = search(request, watch)
        for other in others:
            other.join()
        return ledger
    finally:
        for other in others:
            other.terminate()
            other.join()


def _use_threads(threads: int) -> None:
    """Let torch compute with this many threads."""
    import torch

    torch.set_num_threads(threads)


def _worker(request: SearchRequest) -> None:
    """One of the other processes: works quietly, and ends when the first one has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _use_threads(request.options.threads or 1)
    try:
        search(request, lambda _: None)
    except TinyqError as error:
        # The first process meets the same error, and prints it.
        sys.exit(error.exit_code)


def _end_with(parent: BaseProcess) -> None:
    """End this process at once when its parent has ended."""
    connection.wait([parent.sentinel])
    os._exit(1)
