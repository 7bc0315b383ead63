"""Measures several files of one model: each is run once, small ones side by side, all against one run of the reference."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gguf_tools.errors import LlamaError
from gguf_tools.evaluation.card.suite import CardOptions
from gguf_tools.evaluation.fidelity import evaluate_fidelity, prepare_cases
from gguf_tools.evaluation.prompts import default_prompts
from gguf_tools.evaluation.reference_source import ReferenceSource
from gguf_tools.evaluation.run import Evaluation, FileScores, facts_of, load_reference, score
from gguf_tools.evaluation.shared_reference import SharedReference, Tell, share_reference
from gguf_tools.formats.digest import FileDigest
from gguf_tools.machine import available_cores, useful_threads
from gguf_tools.progress import StageProgress
from gguf_tools.publishing.model_card.facts import ChatFacts, chat_facts, memory_of
from gguf_tools.runtime.facts import engine_facts
from gguf_tools.runtime.interface import Memory
from gguf_tools.runtime.process import Runtime, RuntimeOptions

CONTINUED = 100
"""Tokens of the reference's greedy text after each prompt."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one file, and the file's SHA-256 in hexadecimal."""

    scores: FileScores
    memory: Memory
    digest: str


@dataclass(frozen=True, kw_only=True)
class Suites:
    """What to measure: fidelity to `reference` and the card suite, each unless None; memory for `context` tokens."""

    reference: ReferenceSource | None
    card: CardOptions | None
    context: int | None = None


def measure_together(
    paths: Sequence[Path],
    suites: Suites,
    options: RuntimeOptions,
    scratch: Path,
    progress: StageProgress | None = None,
) -> tuple[list[Measured], ChatFacts]:
    """Measure the files, whose models differ in their types only, and read the first one's chat template.

    The first one drafts the reference's texts (`share_reference`): give the most exact one first. The reference's logits are
    kept in `scratch`. Models that use one thread each run side by side, on as many threads as `options` allows. Raises InputError
    and LlamaError as `evaluate_fidelity`, `run_card` and `Runtime` do.
    """
    threads = options.threads or available_cores()
    each = min(threads, max(useful_threads(path.stat().st_size) for path in paths))
    workers = 1 if options.gpu_layers else max(1, min(len(paths), threads // each))
    torch.set_num_threads(each)
    bench = _Bench(paths, suites, replace(options, threads=each), scratch, _Telling(progress, paths, workers))
    with bench, ThreadPoolExecutor(workers, thread_name_prefix="tinyq-measure") as pool:
        futures = [pool.submit(bench.measure, n) for n in range(len(paths))]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            bench.stop()
            raise
    assert bench.chat is not None
    return [future.result() for future in futures], bench.chat


class _Telling:
    """Progress from several threads: each stage of the file that runs alone, else the number of files that are done."""

    def __init__(self, progress: StageProgress | None, paths: Sequence[Path], workers: int) -> None:
        self._progress = progress
        self._paths = paths
        self._alone = workers == 1
        self._lock = threading.Lock()
        self._finished = 0
        self.stopped = False

    def of(self, n: int) -> Tell:
        """The progress of file `n`; raises LlamaError when the work was stopped."""

        def tell(stage: str, done: int, total: int) -> None:
            if self.stopped:
                raise LlamaError(f"{self._paths[n]}: the measurement was stopped")
            if self._progress and self._alone:
                self._progress(f"{self._paths[n].name}, {n + 1} of {len(self._paths)}: {stage}", done, total)

        return tell

    def finished(self) -> None:
        """One more file is done."""
        with self._lock:
            self._finished += 1
            if self._progress and not self._alone:
                self._progress("measuring", self._finished, len(self._paths))


class _Bench(contextlib.ExitStack):
    """The files that are measured, the reference that they share, and the llama.cpp processes that run."""

    def __init__(
        self, paths: Sequence[Path], suites: Suites, options: RuntimeOptions, scratch: Path, telling: _Telling
    ) -> None:
        """A bench whose processes have not started; leaving its block removes the reference's logits."""
        super().__init__()
        self.chat: ChatFacts | None = None
        self._paths, self._suites, self._options, self._scratch, self._telling = (
            paths,
            suites,
            options,
            scratch,
            telling,
        )
        self._shared: Future[SharedReference] = Future()
        self._lock = threading.Lock()
        self._running: set[Runtime] = set()

    def stop(self) -> None:
        """End the processes; whoever waits for them or for the reference fails."""
        self._telling.stopped = True
        with self._lock:
            for runtime in self._running:
                runtime.stop()

    def measure(self, n: int) -> Measured:
        """Measure file `n`. The first one makes the reference; the others need it last."""
        try:
            return self._measure(n)
        except BaseException as error:
            if n == 0 and not self._shared.done():
                self._shared.set_exception(error)
            raise

    def _measure(self, n: int) -> Measured:
        """Run file `n` once: its memory, the card suite, and its fidelity; then its digest."""
        path, tell, card = self._paths[n], self._telling.of(n), self._suites.card
        with self._opened(path) as runtime:
            memory = memory_of(runtime, self._suites.context)
            if n == 0:
                self.chat = chat_facts(runtime, path.name, self._suites.context)
                evaluation = self._compared(runtime, tell)
                report = score(runtime, card, tell) if card else None
            else:
                report = score(runtime, card, tell) if card else None
                evaluation = self._compared(runtime, tell)
            facts, engine = facts_of(path, runtime.info), engine_facts(runtime)
        digest = FileDigest()
        digest.add_file(path)
        self._telling.finished()
        return Measured(FileScores(facts, engine, evaluation, report), memory, digest.hexdigest())

    def _compared(self, runtime: Runtime, tell: Tell) -> Evaluation | None:
        """The file's fidelity; the first call with a file makes the reference."""
        source = self._suites.reference
        if source is None:
            return None
        prompts = default_prompts(runtime.info.chat_template is not None)
        if runtime.path == self._paths[0]:
            cases, _, _ = prepare_cases(runtime, None, prompts, CONTINUED, {})
            made = share_reference(runtime, load_reference(source, "f32"), cases, self._scratch, tell)
            self.callback(made.close)
            self._shared.set_result(made)
        shared = self._shared.result()
        fidelity = evaluate_fidelity(
            runtime, shared, source.encode, prompts, CONTINUED, continuations=shared.continuations, progress=tell
        )
        return Evaluation(facts_of(runtime.path, runtime.info), engine_facts(runtime), source, fidelity, None)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[Runtime]:
        """A process that `stop` ends."""
        with Runtime(path, self._options) as runtime:
            with self._lock:
                self._running.add(runtime)
            try:
                self._telling.of(self._paths.index(path))("opening", 1, 1)
                yield runtime
            finally:
                with self._lock:
                    self._running.discard(runtime)
