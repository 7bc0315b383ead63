"""The fidelity suite: against references that are right, noisy, wrong at one place, or of another shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from gguf_tools.evaluation.fidelity import FidelityReport, evaluate_fidelity, greedy_with_draft
from gguf_tools.evaluation.prompts import Prompt, render_prompt
from gguf_tools.evaluation.report import check_thresholds, fidelity_blocks
from gguf_tools.runtime.interface import Speed
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tables import Report, View
from tests.tiny_gguf import VOCAB, dense_tensors, write_dense

Change = Callable[[npt.NDArray[np.float64], list[int]], None]

PROMPTS = [Prompt(text=text) for text in ("Once upon", "The sea", "x", "A much longer opening of a story, where")]


def text_of(report: FidelityReport, speed: Speed | None = None) -> str:
    return Report(fidelity_blocks(report, speed)).as_text(View(None))


class Reference:
    """Another llama.cpp process as the reference, with its logits changed where a test says so."""

    def __init__(self, runtime: Runtime, change: Change | None = None) -> None:
        self.runtime = runtime
        self.change = change

    def logits(self, sequences: list[list[int]]) -> list[npt.NDArray[np.float64]]:
        answers = [a.astype(np.float64) for a in self.runtime.logits(sequences)]
        for answer, sequence in zip(answers, sequences, strict=True):
            if self.change is not None:
                self.change(answer, sequence)
        return answers


class Hashed:
    """A fake reference: each position's logits follow from the tokens up to it; counts its runs."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.runs = 0

    def row(self, prefix: Sequence[int]) -> npt.NDArray[np.float64]:
        return np.random.default_rng([7, *prefix]).integers(0, 4, self.vocabulary).astype(np.float64)

    def logits(self, sequences: list[list[int]]) -> list[npt.NDArray[np.float64]]:
        self.runs += 1
        return [np.stack([self.row(s[: i + 1]) for i in range(len(s))]) for s in sequences]


def naive(reference: Hashed, prompt: Sequence[int], count: int, stop: frozenset[int]) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < count and not (tokens and tokens[-1] in stop):
        tokens.append(int(reference.row([*prompt, *tokens]).argmax()))
    return tokens


small = st.integers(0, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(small, min_size=1, max_size=4), st.integers(0, 9), st.lists(small, max_size=12), st.frozensets(small))
def test_greedy_with_any_draft_is_greedy(prompt: list[int], count: int, draft: list[int], stop: frozenset[int]) -> None:
    reference = Hashed(5)
    assert greedy_with_draft(reference, prompt, count, draft, stop) == naive(reference, prompt, count, stop)


@given(st.integers(1, 9), st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_a_good_draft_saves_runs(count: int, wrong: int) -> None:
    reference = Hashed(5)
    draft = naive(reference, [1], count, frozenset())
    greedy_with_draft(reference, [1], count, draft)
    assert reference.runs == 1
    if wrong < count:
        draft[wrong] = (draft[wrong] + 1) % 5
        reference.runs = 0
        greedy_with_draft(reference, [1], count, draft)
        assert reference.runs <= 2


def test_greedy_needs_a_prompt() -> None:
    with pytest.raises(InputError, match="empty prompt"):
        greedy_with_draft(Hashed(5), [], 3)


def test_identical(dense_runtime: Runtime) -> None:
    seen: list[tuple[str, int, int]] = []
    report = evaluate_fidelity(
        dense_runtime,
        Reference(dense_runtime),
        lambda text, _: list(dense_runtime.tokenize(text)),
        n_generate=30,
        text="The boats were tied to the wall, and the water was so flat that one saw the masts twice. " * 30,
        progress=lambda *args: seen.append(args),
    )
    found = report.as_dict()
    assert found["nmse"] == found["kl_max"] == found["max_abs_diff"] == 0
    assert found["top1_agreement"] == found["tokens_equal"] == found["greedy_exact_match"] == 1
    assert found["greedy_mean_prefix"] == 30
    assert found["ppl_reference"] == found["ppl_model"] > 1
    assert found["first_differences"] == found["notes"] == []
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert seen[-1][0] == "compare"
    assert seen[-1][1] == seen[-1][2] == found["n_tokens"]
    text = text_of(report, Speed(100.0, 10.0, 512, 64))
    assert "NMSE 0" in text
    assert "100%" in text
    assert "10.0 tok/s" in text


def test_contract_names(dense_runtime: Runtime) -> None:
    names = [
        "nmse",
        "max_abs_diff",
        "kl_mean",
        "kl_p99",
        "kl_max",
        "top1_agreement",
        "greedy_exact_match",
        "greedy_mean_prefix",
        "tokens_equal",
        "ppl_reference",
        "ppl_model",
        "n_prompts",
        "n_tokens",
    ]
    report = evaluate_fidelity(dense_runtime, Reference(dense_runtime), prompts=PROMPTS, n_generate=2)
    assert set(names) <= set(report.as_dict())
    assert report.as_dict()["tokens_equal"] is None
    assert report.metrics.n_tokens == sum(len(p.text) for p in PROMPTS) + 2 * len(PROMPTS)


def test_perplexity_counts_given_tokens(dense_runtime: Runtime) -> None:
    ids = dense_runtime.tokenize(PROMPTS[3].text)
    (logits,) = dense_runtime.logits([ids])
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = np.exp(-logs[np.arange(len(ids) - 1), ids[1:]].mean())
    report = evaluate_fidelity(dense_runtime, Reference(dense_runtime), prompts=PROMPTS[3:], n_generate=20)
    assert report.metrics.ppl_model == pytest.approx(expected, rel=1e-9)


def test_a_fault_is_found(dense_runtime: Runtime) -> None:
    ids = dense_runtime.tokenize(PROMPTS[1].text)

    def change(logits: npt.NDArray[np.float64], sequence: list[int]) -> None:
        logits += np.random.default_rng(0).normal(0, 1e-6, logits.shape)
        if sequence[: len(ids)] == ids:
            row = logits[len(ids) + 4]
            row[(int(row.argmax()) + 9) % VOCAB] = row.max() + 2

    report = evaluate_fidelity(dense_runtime, Reference(dense_runtime, change), prompts=PROMPTS, n_generate=12)
    assert report.greedy_exact_match == 0.75
    assert report.greedy_mean_prefix == (3 * 12 + 5) / 4
    (difference,) = report.first_differences
    assert (difference.prompt, difference.position, difference.verdict) == (1, 5, "fault")
    assert difference.margin == pytest.approx(2, abs=1e-4)
    (result,) = dense_runtime.greedy([ids], 12)
    assert difference.model.token == result.tokens[5]
    assert difference.reference.token == (result.tokens[5] + 9) % VOCAB
    assert difference.model.text == dense_runtime.detokenize([result.tokens[5]], special=True)
    text = text_of(report)
    assert "(0 ties, 1 faults)" in text
    assert "75.00%" in text


def test_a_tie_is_told_from_a_fault(tmp_path: Path) -> None:
    """Two tokens whose logits are equal but for noise: the texts part, and that is nobody's fault."""
    tensors = dense_tensors()
    rng = np.random.default_rng(0)
    tensors["token_embd.weight"][128:256] = tensors["token_embd.weight"][:128]
    noisy = {name: t * (1 + 1e-4 * rng.standard_normal(t.shape).astype(np.float32)) for name, t in tensors.items()}
    with (
        Runtime(write_dense(tmp_path / "a.gguf", tensors), RuntimeOptions(threads=1)) as reference,
        Runtime(write_dense(tmp_path / "b.gguf", noisy), RuntimeOptions(threads=1)) as runtime,
    ):
        report = evaluate_fidelity(runtime, Reference(reference), prompts=PROMPTS, n_generate=10)
    assert report.first_differences
    assert {d.verdict for d in report.first_differences} == {"tie"}


def test_damage_is_no_noise(tmp_path: Path, dense_runtime: Runtime) -> None:
    """A file that computes something else has no ties, however large its deviations are."""
    with Runtime(write_dense(tmp_path / "other.gguf", dense_tensors(seed=5)), RuntimeOptions(threads=1)) as other:
        report = evaluate_fidelity(other, Reference(dense_runtime), prompts=PROMPTS, n_generate=10)
    assert {d.verdict for d in report.first_differences} == {"fault"}
    short = check_thresholds(report, {"min_top1": 0.99, "max_nmse": 1e-6, "max_kl": None, "min_greedy": 1})
    assert [line.split(" is ")[0] for line in short] == ["top-1 agreement", "NMSE", "greedy exact match"]


def test_prompts_that_do_not_fit(dense: Path) -> None:
    prompts = [Prompt(text="a" * n) for n in (40, 30, 0, 60, 39)] + [Prompt(text="ab", max_tokens=3)]
    with Runtime(dense, RuntimeOptions(threads=1, context_length=40)) as runtime:
        report = evaluate_fidelity(runtime, Reference(runtime), prompts=prompts, n_generate=11)
        assert report.metrics.n_prompts == 3
        assert report.greedy_mean_prefix == (10 + 1 + 3) / 3
        assert report.notes == (
            "prompt 2 skipped: it has no tokens",
            "2 prompts (0, 3) skipped: too long for the context of 40 tokens",
            "2 prompts (1, 4) continued by fewer than 11 tokens: the context ends at 40",
        )
        assert "note: prompt 2 skipped" in text_of(report)
        with pytest.raises(InputError, match="no prompt can be measured: prompt 0 skipped"):
            evaluate_fidelity(runtime, Reference(runtime), prompts=prompts[:1])


def test_tokenizers_that_differ(dense_runtime: Runtime) -> None:
    def encode(text: str, _: bool) -> list[int]:
        ids = dense_runtime.tokenize(text)
        return [*ids[:3], 9, *ids[4:]] if text == "Once upon" else ids

    report = evaluate_fidelity(dense_runtime, Reference(dense_runtime), encode, PROMPTS, 2)
    assert report.tokens_equal == 0.75
    assert report.notes[0].startswith("prompt 0: tokenized differently from token 3: [101, ")


def test_chat(chat_runtime: Runtime, dense_runtime: Runtime) -> None:
    prompt = Prompt(messages=({"role": "user", "content": "hi"},), origin="here:1")
    text = render_prompt(chat_runtime, prompt, {"enable_thinking": False})
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    encoded: list[tuple[str, bool]] = []

    def encode(text: str, special: bool) -> list[int]:
        encoded.append((text, special))
        return chat_runtime.tokenize(text, special, parse_special=True)

    report = evaluate_fidelity(chat_runtime, Reference(chat_runtime), encode, n_generate=2)
    assert report.tokens_equal == 1
    assert sum(text.startswith("<|im_start|>") for text, _ in encoded) == 12
    assert {special for _, special in encoded} == {True}
    encoded.clear()
    bos = chat_runtime.info.bos
    assert bos is not None
    begun = Prompt(text=chat_runtime.detokenize([bos], special=True) + "hi")
    evaluate_fidelity(chat_runtime, Reference(chat_runtime), encode, [begun], n_generate=2)
    assert [special for _, special in encoded] == [False], "BOS would stand twice"
    with pytest.raises(InputError, match="here:1: has messages, but the model has no chat template"):
        evaluate_fidelity(dense_runtime, Reference(dense_runtime), prompts=[prompt])


def test_references_of_another_shape(dense_runtime: Runtime) -> None:
    class Wrong:
        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def logits(self, sequences: list[list[int]]) -> list[npt.NDArray[np.float64]]:
            return [self.answer(s) for s in sequences]

    with pytest.raises(InputError, match=r"prompt 0: the reference's logits have shape \(11, 7\)"):
        evaluate_fidelity(dense_runtime, Wrong(lambda s: np.zeros((len(s), 7))), prompts=PROMPTS, n_generate=2)


def test_small_batches_of_the_reference(monkeypatch: pytest.MonkeyPatch, dense_runtime: Runtime) -> None:
    whole = evaluate_fidelity(dense_runtime, Hashed(VOCAB), prompts=PROMPTS, n_generate=5)
    monkeypatch.setattr("gguf_tools.evaluation.logit_pairs._REFERENCE_BYTES", 8 * VOCAB * 20)
    reference = Hashed(VOCAB)
    assert evaluate_fidelity(dense_runtime, reference, prompts=PROMPTS, n_generate=5) == whole
    assert reference.runs > 1


def test_report_edges(dense_runtime: Runtime) -> None:
    report = evaluate_fidelity(dense_runtime, Reference(dense_runtime), prompts=PROMPTS, n_generate=2)
    metrics = replace(report.metrics, top1_agreement=0.99999, nmse=float("inf"), ppl_model=float("inf"))
    odd = replace(report, metrics=metrics)
    assert "<100% of positions" in text_of(odd)
    assert odd.as_dict()["nmse"] is None
    assert check_thresholds(odd, {"max_nmse": 1.0}) == ["NMSE is inf; expected at most 1"]
    assert check_thresholds(report, {}) == []
    with pytest.raises(InputError, match="min_top5"):
        check_thresholds(report, {"min_top5": 1.0})
