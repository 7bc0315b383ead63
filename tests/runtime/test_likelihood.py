"""Log-likelihoods and greedy texts of many requests together, against one request at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import InputError
from gguf_tools.runtime import process
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from tests.tiny_gguf import CONTEXT

Request = tuple[list[int], list[int]]


@pytest.fixture(params=["dense", "hybrid"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found: Runtime = request.getfixturevalue(f"{request.param}_runtime")
    return found


def some_requests(seed: int = 0) -> list[Request]:
    """Few-shot questions with several answers each, equal contexts, single tokens, and texts scored whole."""
    rng = np.random.default_rng(seed)

    def text(length: int) -> list[int]:
        return [int(token) for token in rng.integers(0, 256, length)]

    shots, found = text(60), []
    for _ in range(12):
        question = shots + text(int(rng.integers(1, 30)))
        found += [(question, text(int(rng.integers(1, 6)))) for _ in range(4)]
    question = text(9)
    found += [(question, [token]) for token in (1, 2, 3)]
    whole = text(CONTEXT + 1)
    found += [(whole[:1], whole[1:]), (whole[:40], whole[40:]), (shots[:5], shots[5:])]
    order = rng.permutation(len(found))
    return [found[index] for index in order]


def one_by_one(runtime: Runtime, requests: list[Request]) -> tuple[list[float], list[bool]]:
    values, greedy = [], []
    for context, continuation in requests:
        (logits,) = runtime.logits([[*context, *continuation][:-1]])
        rows = logits[len(context) - 1 :].astype(np.float64)
        scaled = rows - rows.max(axis=1, keepdims=True)
        logs = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        values.append(float(logs[np.arange(len(rows)), continuation].sum()))
        greedy.append(bool((rows.argmax(axis=1) == continuation).all()))
    return values, greedy


def test_together_equals_one_by_one(runtime: Runtime) -> None:
    requests = some_requests()
    (follows,) = runtime.greedy([requests[0][0]], 3)
    requests.append((requests[0][0], list(follows.tokens)))
    found = runtime.log_likelihoods(requests)
    values, greedy = one_by_one(runtime, requests)
    # Logits reach 21, where neighbouring float32 numbers differ by 1.9e-6; together they are summed in another order.
    np.testing.assert_allclose([answer.value for answer in found], values, rtol=5e-7, atol=1e-6)
    assert [answer.greedy for answer in found] == greedy
    assert found[-1].greedy


def test_results_do_not_depend_on_what_is_asked_together(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = some_requests(1)
    whole = runtime.log_likelihoods(requests)
    monkeypatch.setattr(process, "_REQUEST_TOKENS", 300)
    seen: list[tuple[int, int]] = []
    split = runtime.log_likelihoods(requests, lambda done, total: seen.append((done, total)))
    assert [a.greedy for a in whole] == [b.greedy for b in split]
    np.testing.assert_allclose([a.value for a in whole], [b.value for b in split], rtol=1e-6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_request_must_have_a_context_and_fit(dense_runtime: Runtime) -> None:
    assert dense_runtime.log_likelihoods([]) == []
    with pytest.raises(InputError, match="the context of request 1 is empty"):
        dense_runtime.log_likelihoods([([1], [2]), ([], [2])])
    with pytest.raises(InputError, match="the continuation of request 0 is empty"):
        dense_runtime.log_likelihoods([([1], [])])
    with pytest.raises(InputError, match="shorten it"):
        dense_runtime.log_likelihoods([([1] * CONTEXT, [2, 3])])
    with pytest.raises(InputError, match="outside the vocabulary"):
        dense_runtime.log_likelihoods([([1], [100_000])])


def test_prompts_with_a_shared_beginning_continue_as_each_alone(runtime: Runtime) -> None:
    rng = np.random.default_rng(3)
    shared = [int(token) for token in rng.integers(0, 256, 40)]
    prompts = [shared + [int(token) for token in rng.integers(0, 256, size)] for size in (1, 3, 1, 20, 7)]
    prompts.append(shared)
    counts = [12, 0, 5, 12, 12, 12]
    together = runtime.greedy(prompts, counts)
    for prompt, count, found in zip(prompts, counts, together, strict=True):
        (alone,) = runtime.greedy([prompt], count)
        decided = (
            len(alone.margins)
            if not alone.margins
            else next((n for n, margin in enumerate(alone.margins) if margin < 1e-4), len(alone.margins))
        )
        assert found.tokens[:decided] == alone.tokens[:decided]
        np.testing.assert_allclose(found.margins[:decided], alone.margins[:decided], atol=1e-4)
        assert len(found.tokens) == count


def test_more_prompts_than_fit_into_the_caches(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[int(token) for token in np.random.default_rng(n).integers(0, 256, 5)] for n in range(70)]
    with Runtime(dense, RuntimeOptions(threads=1)) as runtime:
        together = runtime.greedy(prompts, [2 + n % 5 for n in range(70)])
        alone = [runtime.greedy([prompt], 2 + n % 5)[0] for n, prompt in enumerate(prompts)]
    assert [found.tokens for found in together] == [found.tokens for found in alone]


def test_a_string_ends_the_text_even_across_tokens(dense_runtime: Runtime) -> None:
    prompt = [int(token) for token in np.random.default_rng(10).integers(0, 256, 8)]
    (free,) = dense_runtime.greedy([prompt], 40)
    texts = [dense_runtime.detokenize([token], special=True) for token in free.tokens]
    change = next(n for n in range(39) if texts[n] != texts[n + 1])
    until = texts[change] + texts[change + 1]
    assert "\ufffd" not in until
    (ended,) = dense_runtime.greedy([prompt], 40, until=["", until])
    assert ended.tokens == free.tokens[: change + 2]
