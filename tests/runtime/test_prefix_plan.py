"""The plan that decodes shared prefixes once, run on a cache of lists instead of llama.cpp."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.runtime.batches import batches
from gguf_tools.runtime.prefix_plan import Request, plan, sorted_order

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=30)


def requests_of(sequences: list[list[int]], share: float = 0.5) -> list[Request]:
    return [Request(np.array(tokens, dtype=np.int32), max(1, int(share * (len(tokens) - 1)))) for tokens in sequences]


def run(requests: list[Request], most_tokens: int, most_sequences: int, batch: int) -> tuple[int, int]:
    """Carry out the plan and check every row; returns the tokens decoded, and the most that were held at a time."""
    todo = plan(requests, most_tokens, most_sequences)
    cache: dict[int, list[int]] = {0: []}
    scored: list[list[int]] = [[] for _ in requests]
    held = decoded = 0
    for step in todo.steps:
        for source, target in step.copies:
            assert not cache.get(target)
            cache[target] = list(cache[source])
        for parts in batches(step.parts, batch):
            assert sum(len(part.tokens) for part in parts) <= batch
            for part in parts:
                sequence = cache.setdefault(part.sequence, [])
                assert part.start == len(sequence)
                sequence += part.tokens.tolist()
                decoded += len(part.tokens)
                for row in part.rows:
                    tokens = requests[row.request].tokens.tolist()
                    end = part.start + row.offset + 1
                    assert sequence[:end] == tokens[:end]
                    assert row.target == tokens[end]
                    scored[row.request].append(end)
        assert max(cache) < todo.sequences
        held = max(held, len({tuple(tokens[:end]) for tokens in cache.values() for end in range(1, len(tokens) + 1)}))
        for sequence_id in step.drops:
            cache[sequence_id] = []
    assert not any(cache.values())
    for request, ends in zip(requests, scored, strict=True):
        assert ends == list(range(len(request.tokens) - request.scored, len(request.tokens)))
    assert decoded == todo.tokens
    assert held <= todo.cells
    return decoded, held


@given(SEQUENCES, st.integers(1, 40), st.integers(1, 8), st.integers(1, 9), st.floats(0, 1))
def test_every_prefix_is_decoded_once_and_every_row_has_its_context(
    sequences: list[list[int]], most_tokens: int, most_sequences: int, batch: int, share: float
) -> None:
    decoded, _ = run(requests_of(sequences, share), most_tokens, most_sequences, batch)
    assert decoded == len({tuple(tokens[:end]) for tokens in sequences for end in range(1, len(tokens))})


def test_blocks_are_bounded() -> None:
    rng = np.random.default_rng(0)
    sequences = [[7, 7, 7, *rng.integers(0, 50, 20).tolist()] for _ in range(200)]
    todo = plan(requests_of(sequences), 100, 8)
    assert todo.sequences <= 9
    assert todo.cells <= 3 + 100
    assert all(step.tokens <= 100 for step in todo.steps)


def test_prefixes_nested_thousands_deep_need_few_sequences() -> None:
    tokens = list(np.random.default_rng(0).integers(0, 1000, 3000))
    sequences = [tokens[:end] for end in range(2, 3000)] + [[*tokens[:end], 1001, 1002] for end in range(2, 2998, 7)]
    todo = plan(requests_of(sequences, 0.0), 64, 16)
    assert todo.sequences <= 40
    assert todo.tokens == 2998 + len(range(2, 2998, 7))


def test_sorting_is_by_token_ids() -> None:
    sequences = [[256, 1], [1, 256], [1], [255, 3], [1, 2]]
    assert [sequences[index] for index in sorted_order(sequences)] == sorted(sequences)
