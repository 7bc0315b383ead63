"""How often the intervals hold the truth, by simulation, and what the items can show at all."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from gguf_tools.evaluation.card.as_json import card_dict, difference_dict
from gguf_tools.evaluation.card.compare import difference, score_interval
from gguf_tools.evaluation.card.expected import Free
from gguf_tools.evaluation.card.parts import WORST_BITS, extremes_of, overall, paired_extremes, samples_of, score_of
from gguf_tools.evaluation.card.power import Power, Reach, power_of
from gguf_tools.evaluation.card.questions import SETS, Question, choose
from gguf_tools.evaluation.card.report import card_blocks
from gguf_tools.evaluation.card.results import CardReport, Passage
from gguf_tools.evaluation.card.statistics import bootstrap, clopper_pearson, least_p
from gguf_tools.tables import Report
from tests.evaluation.card.scripted import PLAIN, QUESTIONS, Scripted, card_set, perfect, scored

Float = npt.NDArray[np.float64]
SHARES = (0.5, 0.6, 0.75, 0.9, 0.95, 0.98, 0.991, 1.0)
RUNS = 100
BITS, SPREAD = 1.0, 0.15
"""Mean and standard deviation over passages of the simulated bits per byte."""


@cache
def whole_set(passages: int = 16) -> CardReport:
    """17 questions, 4 of them in the other mode too, 2 texts to continue, and a text."""
    many = [replace(QUESTIONS[n % len(QUESTIONS)], question=f"{n} {QUESTIONS[n % 5].question}") for n in range(17)]
    return scored(Scripted(perfect), card_set(many, passages=[f"It rains on day {n}." for n in range(passages)]))


def drawn(rng: np.random.Generator, share: float, *, together: bool) -> dict[str, Float]:
    """Measurements of a model whose texts are right, and of the right form, with probability `share`: both at once, or each.

    A text of the right form repeats one n-gram in fifty, others half of them.
    """
    found = {}
    for kind, sample in samples_of(whole_set()).items():
        count = len(sample)
        if kind == "passages":
            size = rng.integers(400, 700, count)
            found[kind] = np.stack([rng.normal(BITS, SPREAD, count) * size, size], axis=1)
            continue
        works = rng.random(count) < share
        right = works if together or kind == "completions" else rng.random(count) < share
        ngrams = rng.integers(5, 60, count)
        repeated = rng.binomial(ngrams, np.where(works, 0.02, 0.5))
        found[kind] = np.stack([right, works, repeated, ngrams], axis=1).astype(np.float64)
    return found


def true_score(share: float) -> float:
    """The score over infinitely many items (`DEFAULT_WEIGHTS`)."""
    return 75 * share + 15 * (1 - BITS / WORST_BITS) + 10 * (1 - 0.02 * share - 0.5 * (1 - share))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("share", SHARES)
def test_the_intervals_hold_the_truth(share: float, *, together: bool) -> None:
    """At least 93 of 100 intervals of 17 items do, those of facts and those of the whole score, whatever the true share is."""
    rng = np.random.default_rng(int(1000 * share))
    combine = score_of(whole_set())
    held = facts = 0
    for seed in range(RUNS):
        samples = drawn(rng, share, together=together)
        kinds = list(samples)
        interval = bootstrap(
            list(samples.values()),
            lambda means, kinds=kinds: combine(dict(zip(kinds, means, strict=True))),  # type: ignore[misc]
            list(extremes_of(samples).values()),
            resamples=500,
            seed=seed,
        ).interval
        assert interval.high - interval.low > 10
        held += interval.low <= true_score(share) <= interval.high
        right = clopper_pearson(int(samples["answers"][:, 0].sum()), 17)
        facts += right.low <= share <= right.high
    assert held / RUNS >= 0.93
    assert facts / RUNS >= 0.93


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8, 16])
def test_the_interval_of_bits_per_byte_holds_the_truth(count: int) -> None:
    rng = np.random.default_rng(count)
    held = 0
    for seed in range(300):
        size = rng.integers(400, 700, count)
        sample = np.stack([rng.normal(BITS, SPREAD, count) * size, size], axis=1)
        ends = extremes_of({"passages": sample})["passages"]
        interval = bootstrap([sample], lambda means: means[0][:, 0] / means[0][:, 1], [ends], 500, seed).interval
        held += interval.low <= BITS <= interval.high
    assert held / 300 >= 0.93


def test_no_interval_collapses_where_all_items_agree() -> None:
    """All right, or all wrong; passages all alike, or a single one; no text repeats anything."""
    alike = tuple(Passage(100.0, 50, 200) for _ in range(16))
    for report in (
        replace(whole_set(), passages=alike),
        replace(whole_set(), passages=alike[:1]),
        scored(Scripted(lambda _: "", PLAIN)),
        scored(Scripted(perfect), card_set(QUESTIONS[:1], (), ["It rains."])),
    ):
        found = card_dict(report)
        low, high = found["interval"]
        assert low + 5 < high
        assert low <= overall(report) <= high
        for part in found["parts"].values():
            if "interval" in part:
                assert part["interval"][0] < part["interval"][1], part


def test_a_difference_has_a_width_where_all_answers_agree() -> None:
    """Two models that answered alike may differ on other questions; a model and itself predict the text to the same bit."""
    same = difference("a", "b", {"a": whole_set(), "b": whole_set()})
    assert same.score is not None
    assert same.bits is not None
    assert same.score.interval.low < -5
    assert same.score.interval.high > 5
    assert (same.score.p_value, same.bits.estimate, same.bits.interval.as_list()) == (1, 0, [0, 0])


def test_the_extremes_are_of_the_items_seen() -> None:
    samples = samples_of(whole_set())
    ends = extremes_of(samples)
    assert {kind: both.shape for kind, both in ends.items()} == {kind: (2, s.shape[1]) for kind, s in samples.items()}
    for kind in ("answers", "probes", "completions"):
        longest = max(float(samples[kind][:, 3].max()), 1.0)
        assert ends[kind].tolist() == [[0, 0, longest, longest], [1, 1, 0, longest]]
    passages = np.array([[100.0, 100.0], [500.0, 200.0]] * 3)  # 1 and 2.5 bits a byte, one step being 0.3
    assert extremes_of({"passages": passages})["passages"].tolist() == [[2.8 * 200, 200], [0.7 * 200, 200]]
    assert extremes_of({"passages": passages[1:]})["passages"].tolist() == [[800, 200], [0, 200]], "too few"
    for bits, worst in ((2.0, 4.0), (9.0, 9.0)):
        alike = np.array([[bits * 50, 50.0]] * 3)
        assert extremes_of({"passages": alike})["passages"].tolist() == [[worst * 50, 50], [0, 50]]


def test_the_extremes_of_two_models_are_of_both() -> None:
    """First the item on which the second model loses all, then the one on which it wins all."""
    before, after = samples_of(whole_set()), samples_of(whole_set())
    before["passages"] = after["passages"] + [8.0, 0.0]
    before["passages"][0, 0] -= 1.0
    found = paired_extremes(before, after)
    longest = max(float(before["answers"][:, 3].max()), 1.0)
    assert found["answers"].tolist() == [
        [1, 1, 0, longest, 0, 0, longest, longest],
        [0, 0, longest, longest, 1, 1, 0, longest],
    ]
    assert found["probes"].tolist() == [[*before["probes"].mean(axis=0), *after["probes"].mean(axis=0)]] * 2
    texts = {"completions": before["completions"]}
    assert paired_extremes(texts, texts)["completions"][0][:2].tolist() == [1, 1], "without any answers"
    step = 1 / 15
    assert (found["passages"][:, 2] - found["passages"][:, 0]).tolist() == pytest.approx([-7 + step, -8 - step])


def test_the_text_of_each_set_can_show_a_difference_among_250_variants() -> None:
    for name in SETS:
        passages = len(choose(name).scored.passages)
        assert passages >= 16
        assert Reach(passages, least_p(passages, 10_000)).comparisons >= 250


def test_what_the_items_can_show() -> None:
    found = power_of(whole_set())
    assert (found.questions, found.text, found.score) == (
        Reach(17, 2 / 2**17),
        Reach(16, 2 / 2**16),
        Reach(39, 1 / 10_001),
    )
    assert (found.flips, found.flips_of_many, found.text.comparisons, found.score.comparisons) == (6, 14, 1638, 500)
    assert found.sentences() == [
        "17 questions: a difference if 6 answers change, all one way (14 among 250 variants)",
        "16 passages: p down to 3.1e-05 in bits per byte, enough for 1,638 comparisons",
    ]
    card = card_dict(whole_set())["power"]
    assert card["flips"] == 6
    assert card["questions"] == {"items": 17, "least_p": 2 / 2**17, "comparisons": 3276}
    assert set(card) == {"flips", "questions", "text", "score"}


@pytest.mark.parametrize(
    ("questions", "passages", "said"),
    [
        (1, 0, ["1 question: no difference, p is 1 at least; ask more"]),
        (5, 0, ["5 questions: no difference, p is 0.062 at least; ask more"]),
        (
            13,
            8,
            [
                "13 questions: a difference if 6 answers change, all one way (too few among 250 variants)",
                "8 passages: p down to 0.0078 in bits per byte, enough for 6 comparisons",
            ],
        ),
        (0, 1, ["1 passage: no difference in bits per byte, p is 1 at least; give more"]),
        (0, 5, ["5 passages: no difference in bits per byte, p is 0.062 at least; give more"]),
        (0, 6, ["6 passages: p down to 0.031 in bits per byte, enough for 1 comparison"]),
        (0, 0, []),
    ],
)
def test_what_few_items_can_show(questions: int, passages: int, said: list[str]) -> None:
    found = Power(*(Reach(count, least_p(count)) for count in (questions, passages, questions + passages)))
    assert found.sentences() == said
    assert (found.flips is None) == (questions < 6)


@pytest.mark.parametrize("count", [30, 176, 2000])
def test_many_items_reach_any_p(count: int) -> None:
    """The p of 2,000 items, all of which changed one way, is below any float."""
    found = Power(*(Reach(count, least_p(count)) for _ in range(3)))
    assert (found.flips, found.flips_of_many, found.text.comparisons) == (6, 14, 1_000_000)
    assert json.loads(json.dumps(found.as_dict()))["text"]["comparisons"] == 1_000_000


def test_what_is_said_is_what_the_tests_give() -> None:
    """The largest difference that the items allow has the smallest p that the report names."""
    asked = [Question(f"{n}?", Free(("Paris",))) for n in range(7)]
    text = card_set(asked, (), [f"It rains on day {n}." for n in range(7)])
    right, wrong = scored(Scripted(lambda _: "Paris", PLAIN), text), scored(Scripted(lambda _: "Rome", PLAIN), text)
    right = replace(right, passages=tuple(replace(p, nats=0.1 * p.nats) for p in right.passages))
    worse = replace(wrong, passages=tuple(replace(p, nats=0.2 * p.nats) for p in wrong.passages))
    found = difference_dict(difference("a", "b", {"a": right, "b": worse}))
    power = card_dict(right)["power"]
    assert found["facts"]["p_value"] == power["questions"]["least_p"]
    assert found["bits"]["p_value"] == power["text"]["least_p"]
    assert found["score"]["p_value"] == power["score"]["least_p"] == 2 / 2**14
    assert (
        "what these items can show:\n  7 questions: a difference if 6 answers change"
        in Report(card_blocks(right)).as_text()
    )


def test_a_difference_that_is_shown_has_an_interval_without_0() -> None:
    """Eight or nine of 17 answers lost, and the same share of the other texts kept: test and interval say the same."""
    before = whole_set()
    for lost in (8, 9, 17):
        wrong = [replace(item, grade=replace(item.grade, right=False)) for item in before.answers[:lost]]
        after = replace(before, answers=(*wrong, *before.answers[lost:]))
        found = difference("a", "b", {"a": before, "b": after}).score
        assert found is not None
        assert found.shown
        assert found.interval.high < 0


def test_the_interval_is_the_same_in_every_run() -> None:
    assert score_interval(whole_set()) == score_interval(whole_set())
