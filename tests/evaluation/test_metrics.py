"""The metrics against plain float64 formulas."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.evaluation import metrics
from gguf_tools.evaluation.metrics import NO_TARGET, FidelityAccumulator, kl_divergence, log_softmax, next_token_nll

Array = npt.NDArray[np.float32]

logits = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(2, 9)), elements=st.floats(-50, 50, width=32))


def pairs(count: int, seed: int = 0) -> list[tuple[Array, Array, npt.NDArray[np.int64]]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(1, 30))
        first = rng.standard_normal((length, 11)).astype(np.float32) * 4
        second = first + 0.3 * rng.standard_normal(first.shape).astype(np.float32)
        made.append((first, second, rng.integers(-1, 11, length)))
    return made


def plain(cases: list[tuple[Array, Array, npt.NDArray[np.int64]]]) -> dict[str, float]:
    """The definitions, one position and one number at a time."""
    difference = energy = top = 0.0
    kl: list[float] = []
    noise, spread = [], []
    nll: tuple[list[float], list[float]] = ([], [])
    for first, second, targets in cases:
        for r, m, target in zip(first.tolist(), second.tolist(), targets.tolist(), strict=True):
            difference += sum((a - b) ** 2 for a, b in zip(m, r, strict=True))
            energy += sum(a * a for a in r)
            p, q = (np.exp(np.array(x)) / np.exp(np.array(x)).sum() for x in (r, m))
            kl.append(float(sum(p * np.log(p / q))))
            top += int(np.argmax(r) == np.argmax(m))
            noise.append(statistics.pstdev(a - b for a, b in zip(m, r, strict=True)))
            spread.append(statistics.pstdev(r))
            if target != NO_TARGET:
                nll[0].append(-math.log(p[target]))
                nll[1].append(-math.log(q[target]))
    return {
        "nmse": difference / energy,
        "max_abs_diff": max(float(np.abs(m.astype(float) - r.astype(float)).max()) for r, m, _ in cases),
        "kl_mean": float(np.mean(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": max(kl),
        "top1_agreement": top / len(kl),
        "ppl_reference": math.exp(float(np.mean(nll[0]))),
        "ppl_model": math.exp(float(np.mean(nll[1]))),
        "n_prompts": len(cases),
        "n_tokens": len(kl),
        "noise": float(np.quantile(noise, 0.95)),
        "spread": statistics.median(spread),
    }


@pytest.mark.parametrize("block", [8, 1 << 20])
def test_against_plain_formulas(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", block)
    cases = pairs(7)
    accumulator = FidelityAccumulator()
    for case in cases:
        accumulator.add(*case)
    result = accumulator.result()
    for name, value in plain(cases).items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("size", [1, 7])
def test_a_prompt_added_in_blocks_is_one_prompt(size: int) -> None:
    whole, parts = FidelityAccumulator(), FidelityAccumulator()
    for first, second, targets in pairs(5):
        whole.add(first, second, targets)
        for start in range(0, len(first), size):
            part = slice(start, start + size)
            parts.add(first[part], second[part], targets[part], first=start)
    expected, found = vars(whole.result()), vars(parts.result())
    assert found["n_prompts"] == expected["n_prompts"] == 5
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_position_of_a_broken_logit_is_that_in_the_prompt(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", 8 * 3 * rows)
    broken = np.ones((5, 3), np.float32)
    broken[2, 1] = np.nan
    accumulator = FidelityAccumulator()
    accumulator.add(np.ones((4, 3), np.float32), np.ones((4, 3), np.float32), first=0)
    with pytest.raises(LlamaError, match="prompt 0: the model's logit of token 1 at position 6 is nan"):
        accumulator.add(np.ones((5, 3), np.float32), broken, first=4)
    with pytest.raises(InputError, match="prompt 0: the reference's logit of token 1 at position 6 is nan"):
        accumulator.add(broken, np.ones((5, 3), np.float32), first=4)


@given(arrays(np.float64, st.sampled_from([(3,), (2, 3), (2, 4, 3)]), elements=st.floats(-50, 50)))
def test_log_softmax_is_torchs_along_the_last_axis(a: Any) -> None:
    np.testing.assert_allclose(
        log_softmax(a), torch.log_softmax(torch.from_numpy(a), -1).numpy(), rtol=1e-12, atol=1e-12
    )


def test_every_token_can_be_a_target() -> None:
    """The perplexity of equal logits is the vocabulary's size, whichever token follows."""
    for token in range(5):
        accumulator = FidelityAccumulator()
        accumulator.add(np.zeros((1, 5)), np.zeros((1, 5)), np.array([token]))
        assert accumulator.result().ppl_model == pytest.approx(5)


def test_a_vocabulary_too_large_for_a_block_is_computed_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", 0)
    test_against_plain_formulas(monkeypatch, 0)


def test_blocks_are_bounded_by_the_size_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def rows(n_vocab: int) -> int:
        asked.append(n_vocab)
        return 2

    monkeypatch.setattr(metrics, "_rows", rows)
    next_token_nll(np.zeros((3, 11)), np.zeros(3, np.int64))
    FidelityAccumulator().add(np.zeros((3, 12)), np.zeros((3, 12)))
    assert asked == [11, 12]


def test_no_logits_at_all_are_no_position() -> None:
    accumulator = FidelityAccumulator()
    accumulator.add(np.zeros((0, 0)), np.zeros((0, 0)))
    with pytest.raises(InputError, match="no position"):
        accumulator.result()


@given(logits)
def test_identical_logits_give_nothing(a: Any) -> None:
    accumulator = FidelityAccumulator()
    accumulator.add(a, a, a.argmax(-1))
    result = accumulator.result()
    assert (result.nmse, result.max_abs_diff, result.kl_mean, result.kl_max, result.noise) == (0, 0, 0, 0, 0)
    assert result.top1_agreement == 1
    assert result.ppl_model == result.ppl_reference


@given(logits, st.floats(-100, 100), st.data())
def test_kl_properties(a: Any, shift: float, data: st.DataObject) -> None:
    b = data.draw(arrays(np.float32, a.shape, elements=st.floats(-50, 50, width=32)))
    kl = kl_divergence(a, b)
    assert (kl >= 0).all()
    np.testing.assert_allclose(kl_divergence(a, b.astype(np.float64) + shift), kl, atol=1e-9)
    np.testing.assert_allclose(np.exp(log_softmax(a)).sum(-1), 1)


def test_noise_ignores_shifts_and_single_faults() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((200, 50)) * 3
    model = reference + 1e-3 * rng.standard_normal(reference.shape) + rng.standard_normal((200, 1))
    model[7] += 5 * rng.standard_normal(50)
    accumulator = FidelityAccumulator()
    accumulator.add(reference, model)
    result = accumulator.result()
    assert result.noise == pytest.approx(1e-3, rel=0.3)
    assert result.spread == pytest.approx(3, rel=0.2)
    assert result.ppl_model is None


def test_broken_logits_are_named() -> None:
    good = np.zeros((4, 5), dtype=np.float32)
    bad = good.copy()
    bad[2, 3] = np.nan
    accumulator = FidelityAccumulator()
    accumulator.add(good, good)
    with pytest.raises(LlamaError, match="prompt 1: the model's logit of token 3 at position 2 is nan"):
        accumulator.add(good, bad)
    bad[2, 3] = -np.inf
    with pytest.raises(InputError, match="story: the reference's logit of token 3 at position 2 is -inf"):
        accumulator.add(bad, good, name="story")
    with pytest.raises(InputError, match=r"shape \(4, 5\), the model's \(4, 6\)"):
        accumulator.add(good, np.zeros((4, 6), dtype=np.float32))
    with pytest.raises(InputError, match="no position"):
        FidelityAccumulator().result()


def test_extremes() -> None:
    accumulator = FidelityAccumulator()
    reference = np.array([[1000.0, -1000.0]])
    accumulator.add(reference, -reference, np.array([0]))
    result = accumulator.result()
    assert result.kl_max == pytest.approx(2000)
    assert result.ppl_model == math.inf
    assert result.ppl_reference == 1
    zeros = FidelityAccumulator()
    zeros.add(np.zeros((1, 2)), np.zeros((1, 2)))
    assert zeros.result().nmse == 0


@pytest.mark.parametrize("block", [1, 3 * 8 * 11, 1 << 20])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 10])
def test_next_token_nll_is_torchs_cross_entropy(block: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks: those of a row, of three rows that do not divide the length, or one of all."""
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", block)
    rng = np.random.default_rng(length)
    made, tokens = rng.standard_normal((length, 11)).astype(np.float32) * 4, rng.integers(0, 11, length)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(made[:-1].astype(np.float64)), torch.from_numpy(tokens[1:]), reduction="none"
    )
    np.testing.assert_allclose(next_token_nll(made, tokens), expected.numpy(), rtol=1e-12)
    if length > 1:
        made[length - 2, 4] = np.nan
        with pytest.raises(LlamaError, match=rf"it: the model's logit of token 4 at position {length - 2} is nan"):
            next_token_nll(made, tokens, "it")
    made[: length - 1] = 0.0
    made[length - 1] = np.nan  # what follows the last token is not asked for
    np.testing.assert_allclose(next_token_nll(made, tokens), np.full(length - 1, math.log(11)), rtol=1e-12)
