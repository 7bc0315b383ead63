"""Greedy continuations of several prompts, decoded together. For the worker process only."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gguf_tools.errors import LlamaError
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.batches import Logits, Part, Row, Tokens, batches, decode_parts
from gguf_tools.runtime.engine import Engine
from gguf_tools.runtime.prefix_plan import common_prefix

SHORTEST_SHARED = 16
"""Tokens from which on a common beginning of all prompts is decoded once and copied: a copy moves a sequence's whole cache."""


@dataclass(frozen=True)
class Ends:
    """What ends a continuation before its number of tokens is reached: a token of `tokens`, or a string of `texts` in it."""

    tokens: frozenset[int]
    texts: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens at the end of a continuation among which a string of `texts` has been found if the last token ended it."""
        return max((len(text.encode()) for text in self.texts), default=0) + 4


def greedy(
    engine: Engine,
    prompts: Sequence[Tokens],
    n_tokens: Sequence[int],
    ends: Ends,
    context: int,
    progress: CountProgress,
) -> tuple[list[list[int]], list[list[float]]]:
    """The greedy continuation of each prompt, and each token's margin (difference of the two largest logits).

    As many prompts are decoded together as the memory for their caches allows; the next prompt begins where one has ended. A
    beginning that all prompts have in common is decoded once. `progress` counts the tokens of the continuations.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    margins: list[list[float]] = [[] for _ in prompts]
    total, gone = sum(n_tokens), 0
    waiting = deque(index for index, count in enumerate(n_tokens) if count)
    seats = engine.parallel(len(waiting), context)
    shared = _shared(prompts)
    engine.prepare(seats + bool(shared), context)
    if shared:
        for batch in batches([Part(seats, 0, prompts[0][:shared], ())], engine.n_batch):
            decode_parts(engine, batch)
            progress(0, total)
    active: dict[int, int] = {}  # sequence → index of its prompt
    while waiting or active:
        parts = []
        for seat in range(seats):
            if seat not in active and waiting:
                active[seat] = index = waiting.popleft()
                engine.remove_sequence(seat)
                if shared:
                    engine.copy_sequence(seats, seat)
                prompt = prompts[index]
                parts.append(Part(seat, shared, prompt[shared:], (Row(len(prompt) - shared - 1, index),)))
            elif seat in active:
                index = active[seat]
                last = np.array(tokens[index][-1:], dtype=np.int32)
                parts.append(Part(seat, len(prompts[index]) + len(tokens[index]) - 1, last, (Row(0, index),)))
        for batch in batches(parts, engine.n_batch):
            for part, logits in zip(batch, decode_parts(engine, batch), strict=True):
                for row in part.rows:
                    _choose(logits[0], tokens[row.request], margins[row.request], row.request, part)
            progress(gone + sum(map(len, tokens)), total)
        for seat, index in list(active.items()):
            if len(tokens[index]) == n_tokens[index] or _ended(engine, tokens[index], ends):
                gone += n_tokens[index] - len(tokens[index])
                del active[seat]
    return tokens, margins


def _shared(prompts: Sequence[Tokens]) -> int:
    """The number of tokens with which all prompts begin, less the last of any; 0 if decoding them once saves too little."""
    if len(prompts) < 2:
        return 0
    length = min(common_prefix(prompts[0], prompt) for prompt in prompts)
    length = min(length, min(map(len, prompts)) - 1)
    return length if length >= SHORTEST_SHARED else 0


def _ended(engine: Engine, tokens: Sequence[int], ends: Ends) -> bool:
    if tokens[-1] in ends.tokens:
        return True
    if not ends.texts:
        return False
    tail = engine.detokenize(tokens[-ends.longest :], True)
    return any(text in tail for text in ends.texts)


def _choose(row: Logits, tokens: list[int], margins: list[float], prompt: int, part: Part) -> None:
    """Append the id of the largest logit (the lowest id among equals) and its margin over the second largest."""
    if not np.isfinite(row).all():
        position = part.start + len(part.tokens)
        raise LlamaError(f"the logits after {position} tokens of prompt {prompt} are not finite")
    tokens.append(int(row.argmax()))
    second, first = np.partition(row, -2)[-2:]
    margins.append(float(first) - float(second))
