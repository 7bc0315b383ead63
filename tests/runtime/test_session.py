"""A sequence that is continued token by token: the same tokens as those of the greedy loop, drawn ones, and their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.runtime.interface import Sampling
from gguf_tools.runtime.process import Runtime
from gguf_tools.runtime.session import Session
from tests.tiny_gguf import CONTEXT

GREEDY = Sampling()


@pytest.fixture(params=["dense", "hybrid"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found: Runtime = request.getfixturevalue(f"{request.param}_runtime")
    return found


def ids(length: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, length)]


def greedy(runtime: Runtime, prompt: list[int], count: int) -> list[int]:
    """What the batched loop gives."""
    return list(runtime.greedy([prompt], count, runtime.info.eog)[0].tokens)


@pytest.mark.parametrize("length", [1, 5, 70])
def test_greedy_tokens_are_those_of_the_batched_loop(runtime: Runtime, length: int) -> None:
    prompt = ids(length)
    assert list(Session(runtime, CONTEXT).continued(prompt, 20, GREEDY)) == greedy(runtime, prompt, 20)


def test_a_second_turn_reads_only_what_is_new(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where recurrent layers cannot go back, and the whole text is read again."""
    starts: list[int] = []
    read = Runtime.read_tokens

    def noted(self: Runtime, start: int, tokens: Sequence[int], context: int) -> bool:
        starts.append(start)
        return read(self, start, tokens, context)

    monkeypatch.setattr(Runtime, "read_tokens", noted)
    session = Session(runtime, CONTEXT)
    prompt = ids(30)
    first = list(session.continued(prompt, 8, GREEDY))
    more = [*prompt, *first, *ids(9, 2)]
    parted = [*more[:20], *ids(12, 3)]
    for tokens in (more, parted, more):
        assert list(session.continued(tokens, 8, GREEDY)) == greedy_elsewhere(runtime, tokens)
    assert starts[:2] == [0, len(prompt) + len(first) - 1]


def greedy_elsewhere(runtime: Runtime, tokens: list[int]) -> list[int]:
    """The continuation by a process of its own, which leaves the session's sequence alone."""
    with Runtime(runtime.path, runtime.options) as other:
        return greedy(other, tokens, 8)


def test_another_computation_makes_the_session_read_again(runtime: Runtime) -> None:
    session = Session(runtime, CONTEXT)
    prompt = ids(10)
    first = list(session.continued(prompt, 4, GREEDY))
    expected = greedy(runtime, [*prompt, *first], 4)
    assert list(session.continued([*prompt, *first], 4, GREEDY)) == expected
    stream = session.continued(prompt, 4, GREEDY)
    next(stream)
    runtime.logits([prompt])
    with pytest.raises(LlamaError, match="no sequence has been read"):
        next(stream)


def test_draws_depend_on_the_seed_alone(dense_runtime: Runtime) -> None:
    def drawn(**options: Any) -> list[int]:
        return list(Session(dense_runtime, CONTEXT).continued(ids(5), 20, Sampling(temperature=1.0, **options)))

    assert drawn(seed=1) == drawn(seed=1)
    assert len({tuple(drawn(seed=seed)) for seed in range(4)}) > 1
    assert drawn(top_k=1, seed=5) == greedy(dense_runtime, ids(5), 20)
    assert drawn(min_p=1.0, top_k=0, seed=5) == greedy(dense_runtime, ids(5), 20)


def test_draws_follow_the_probabilities(dense_runtime: Runtime) -> None:
    """The first token of many seeds, against the softmax of the logits over the tokens that are left (chi-square)."""
    prompt, k, temperature, draws = ids(5), 4, 1.5, 600
    logits = dense_runtime.logits([prompt])[0][-1].astype(np.float64)
    kept = np.argsort(-logits)[:k]
    chance = np.exp((logits[kept] - logits[kept].max()) / temperature)
    chance /= chance.sum()
    session = Session(dense_runtime, CONTEXT)
    counts = dict.fromkeys(kept.tolist(), 0)
    for seed in range(draws):
        (token,) = session.continued(
            prompt, 1, Sampling(temperature=temperature, top_k=k, top_p=1.0, min_p=0.0, seed=seed)
        )
        counts[token] += 1
    found = np.array([counts[token] for token in kept.tolist()])
    # the 99.99th percentile of chi-square with 3 degrees of freedom; the seeds are fixed, so the outcome is too
    assert ((found - draws * chance) ** 2 / (draws * chance)).sum() < 21.1


def test_the_context_and_the_caller_end_a_text(dense_runtime: Runtime) -> None:
    session = Session(dense_runtime, 20)
    assert len(list(session.continued(ids(15), 100, Sampling(temperature=1.0)))) <= 5
    for tokens in ([], ids(20)):
        with pytest.raises(InputError, match=f"the text has {len(tokens)} tokens; expected 1 to 19"):
            list(session.continued(tokens, 1, GREEDY))
    asked = iter([False, False, True])
    assert len(list(session.continued(ids(5), 10, GREEDY, lambda: next(asked)))) == 1
    assert list(session.continued(ids(6), 10, GREEDY, lambda: True)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"seed": -1},
    ],
)
def test_samplings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"^{name.replace('_', '-')} is "):
        Sampling(**options)


@settings(max_examples=40, deadline=None)
@given(tokens=st.lists(st.integers(0, 255), max_size=60))
def test_pieces_make_up_the_text(chat_runtime: Runtime, tokens: list[int]) -> None:
    """The vocabulary has a token for each byte, so characters arrive in several tokens."""
    kept = [token for token in tokens if token not in chat_runtime.info.eog]
    pieces = list(Session(chat_runtime, 1).texts(iter(tokens)))
    assert "".join(pieces) == chat_runtime.detokenize(kept, special=True)


@settings(max_examples=20, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_characters_arrive_whole(chat_runtime: Runtime, text: str) -> None:
    tokens = chat_runtime.tokenize(text)
    pieces = list(Session(chat_runtime, 1).texts(iter(tokens)))
    assert "".join(pieces) == chat_runtime.detokenize(tokens, special=True)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
