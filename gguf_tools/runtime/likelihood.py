"""Log-likelihoods of continuations, decoded together. For the worker process only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import LlamaError
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.batches import Logits, Part, batches, decode_parts
from gguf_tools.runtime.engine import MAX_PARALLEL, Engine
from gguf_tools.runtime.prefix_plan import Request, plan

BLOCK = 2
"""Tokens of a block that is decoded together, in batches of the engine's size. Every token attends over the block's cells,
those of other sequences masked, so that larger blocks cost more than they save."""


def log_likelihoods(
    engine: Engine, requests: Sequence[Request], progress: CountProgress
) -> tuple[list[float], list[bool]]:
    """For each request, the sum of the log-probabilities of its scored tokens (nats), and whether each is the largest logit.

    Shared prefixes are decoded once, in one cache that all sequences share. Logits are output only for the rows that are
    scored, and their log-softmax is computed in float64 here, so that memory does not depend on the number of requests.
    `progress` counts decoded tokens.
    """
    scores = _Scores(engine.n_vocab, len(requests))
    todo = plan(requests, BLOCK * engine.n_batch, engine.parallel(MAX_PARALLEL, 0))
    engine.prepare(todo.sequences, todo.cells, shared=True)
    done = 0
    for step in todo.steps:
        for source, target in step.copies:
            engine.copy_sequence(source, target)
        for batch in batches(step.parts, engine.n_batch):
            rows = decode_parts(engine, batch)
            for part, outputs in zip(batch, rows, strict=True):
                scores.add(part, outputs)
            done += sum(len(part.tokens) for part in batch)
            progress(done, todo.tokens)
        for sequence in step.drops:
            engine.remove_sequence(sequence)
    return scores.sums.tolist(), scores.greedy.tolist()


class _Scores:
    """The sums so far."""

    def __init__(self, n_vocab: int, count: int) -> None:
        self.sums: npt.NDArray[np.float64] = np.zeros(count)
        self.greedy: npt.NDArray[np.bool_] = np.ones(count, dtype=np.bool_)
        self._scratch: npt.NDArray[np.float64] = np.empty(n_vocab)

    def add(self, part: Part, outputs: Logits) -> None:
        """Add the log-probabilities of a part's rows; `outputs` has the logits of each offset once, in order."""
        used, last = -1, -1
        total, best = 0.0, 0
        for row in part.rows:
            if row.offset != last:
                used, last = used + 1, row.offset
                total, best = self._log_sum(outputs[used]), int(outputs[used].argmax())
                if not np.isfinite(total):
                    raise LlamaError(f"the logits after {part.start + row.offset + 1} tokens are not finite")
            self.sums[row.request] += float(outputs[used, row.target]) - total
            self.greedy[row.request] &= best == row.target

    def _log_sum(self, logits: npt.NDArray[np.float32]) -> float:
        """log Σ exp(logits) in float64."""
        largest = np.float64(logits.max())
        np.subtract(logits, largest, out=self._scratch)
        np.exp(self._scratch, out=self._scratch)
        return float(largest + np.log(self._scratch.sum()))
