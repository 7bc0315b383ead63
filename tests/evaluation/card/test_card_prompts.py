"""How the card suite asks, with a runtime that answers by a script: modes, prompts, and their lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.expected import Free
from gguf_tools.evaluation.card.modes import find_modes
from gguf_tools.evaluation.card.questions import Choice, Question
from gguf_tools.evaluation.card.suite import CardOptions, run_card
from tests.evaluation.card.scripted import (
    COMPLETIONS,
    OPENED,
    PASSAGES,
    PLAIN,
    QUESTIONS,
    REFUSING,
    SWITCH,
    UNDECIDED,
    UNTAGGED,
    Scripted,
    card_set,
    direct,
    perfect,
    scored,
    tokens_of,
)

FRANCE = QUESTIONS[:1]
THINKS = "[user]The capital of France?[assistant]"


# Modes


@pytest.mark.parametrize(
    ("template", "direct_works", "thinking_works", "undecided"),
    [
        (None, False, False, False),
        (PLAIN, True, False, False),
        (SWITCH, True, True, False),
        (OPENED, False, True, False),
        (UNDECIDED, True, False, True),
        (UNTAGGED, True, False, False),
        (SWITCH.replace("enable_thinking is false", "not thinking"), True, True, False),
    ],
)
def test_modes_are_read_from_the_template(
    template: str | None, direct_works: bool, thinking_works: bool, undecided: bool
) -> None:
    modes = find_modes(Scripted(perfect, template))
    assert modes.template == (template is not None)
    assert (modes.direct, modes.thinking, modes.undecided) == (direct_works, thinking_works, undecided)


@pytest.mark.parametrize(
    ("template", "main", "other"),
    [
        (None, "plain", None),
        (PLAIN, "direct", None),
        (SWITCH, "direct", "thinking"),
        (OPENED, "thinking", None),
        (UNDECIDED, "direct", None),
        (UNTAGGED, "direct", None),
    ],
)
def test_which_mode_is_asked_in(template: str | None, main: str, other: str | None) -> None:
    report = scored(Scripted(perfect, template))
    assert {item.mode for item in report.answers} == {report.mode} == {main}
    assert {item.mode for item in report.probes} == ({other} if other else set())


@pytest.mark.parametrize("template", [PLAIN + "{% for %}", "{{ raise_it() }}", "{{ messages[5].content }}{{ 1 / 0 }}"])
def test_a_broken_template_is_refused(template: str) -> None:
    runtime = Scripted(perfect, template)
    with pytest.raises(InputError, match="the chat template refused the messages"):
        scored(runtime)
    assert runtime.calls == []


@pytest.mark.parametrize("template", ["", "{# nothing #}", "{% if enable_thinking %}" + PLAIN + "{% endif %}"])
def test_a_template_that_says_nothing_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="the chat template gives no text for a question"):
        scored(Scripted(perfect, template))


@pytest.mark.parametrize("template", [None, PLAIN, UNDECIDED, UNTAGGED])
def test_thinking_cannot_be_asked_of_a_model_without_it(template: str | None) -> None:
    runtime = Scripted(perfect, template)
    with pytest.raises(InputError, match="the model's chat template has no thinking mode; leave the option out"):
        scored(runtime, thinking=True)
    assert runtime.calls == []


# Prompts


def rendered(template: str | None, question: Question = FRANCE[0], **options: Any) -> list[str]:
    runtime = Scripted(perfect, template)
    scored(runtime, card_set([question], (), ()), **options)
    return runtime.prompts


@pytest.mark.parametrize(
    ("template", "thinking", "expected"),
    [
        (None, False, ["Question: The capital of France?\nAnswer:"]),
        (PLAIN, False, [THINKS]),
        (SWITCH, False, [THINKS + "<think></think>", THINKS]),
        (SWITCH, True, [THINKS, THINKS + "<think></think>"]),
        (OPENED, False, [THINKS + "<think>"]),
        (OPENED, True, [THINKS + "<think>"]),
        (UNTAGGED, False, [THINKS]),
    ],
)
def test_the_prompts_are_the_templates_own(template: str | None, thinking: bool, expected: list[str]) -> None:
    assert rendered(template, thinking=thinking) == expected


def test_a_system_prompt_goes_first() -> None:
    question = replace(FRANCE[0], system="Be brief.")
    assert rendered(PLAIN, question) == [f"[system]Be brief.{THINKS}"]
    assert rendered(None, question) == ["Be brief.\n\nQuestion: The capital of France?\nAnswer:"]
    with pytest.raises(InputError, match="the chat template refused the messages"):
        rendered(REFUSING, question)


def test_only_the_first_questions_are_asked_in_the_other_mode() -> None:
    runtime = Scripted(perfect)
    report = scored(runtime, probes=2)
    assert [item.question for item in report.answers] == [q.question for q in QUESTIONS]
    assert [item.question for item in report.probes] == [q.question for q in QUESTIONS[:2]]
    assert [len(call) for call in runtime.calls] == [len(QUESTIONS), 2, len(COMPLETIONS), 0]


def test_completions_are_continued_without_the_template() -> None:
    runtime = Scripted(perfect)
    report = scored(runtime)
    assert [prompt for prompt in runtime.prompts if "[user]" not in prompt] == [c.prompt for c in COMPLETIONS]
    assert [item.coherent for item in report.completions] == [True, True]


def test_held_out_questions_are_asked_and_do_not_count() -> None:
    runtime = Scripted(lambda prompt: "Lyon" if "France" in prompt else perfect(prompt))
    content = card_set(QUESTIONS[1:])
    alone, confirmed = scored(Scripted(perfect), content), scored(runtime, content, FRANCE)
    assert [item.right for item in confirmed.held_out] == [False]
    assert confirmed.held_out[0].mode == confirmed.mode
    assert replace(confirmed, held_out=()) == alone


@pytest.mark.parametrize("template", [PLAIN, "^" + PLAIN])
def test_bos_stands_there_once(template: str) -> None:
    runtime = Scripted(direct, template, bos="^")
    scored(runtime)
    assert runtime.prompts
    assert all(prompt.count("^") == 1 and prompt.startswith("^") for prompt in runtime.prompts + runtime.read)
    assert [text[1:] for text in runtime.read] == list(PASSAGES)


def test_limits_of_each_kind_of_answer() -> None:
    def counts(template: str | None, **options: Any) -> list[tuple[int, ...]]:
        runtime = Scripted(perfect, template)
        content = card_set(FRANCE, COMPLETIONS[:1])
        scored(runtime, content, answer_tokens=7, think_tokens=9, completion_tokens=5, **options)
        return runtime.calls

    assert counts(None) == [(7,), (5,), ()]
    assert counts(PLAIN) == [(7,), (5,), ()]
    assert counts(SWITCH) == [(7,), (9,), (5,), ()]
    assert counts(SWITCH, thinking=True) == [(9,), (7,), (5,), ()]
    assert counts(OPENED) == [(9,), (5,), ()]
    assert counts(UNDECIDED) == [(9,), (5,), ()], "such a model may think by itself"


@settings(max_examples=60)
@given(
    context=st.integers(1, 120),
    template=st.sampled_from([None, PLAIN, SWITCH, OPENED]),
    bos=st.sampled_from([None, "^"]),
    limit=st.integers(1, 90),
)
def test_no_request_exceeds_the_context(context: int, template: str | None, bos: str | None, limit: int) -> None:
    """The script itself asserts that prompt and count fit."""
    runtime = Scripted(lambda _: "x…", template, context, bos)
    content = card_set(
        [*FRANCE, Question("A question that is longer than the first?", Free(("yes",)))], passages=["a b" * 30]
    )
    options = CardOptions(choice=Choice(content), answer_tokens=limit, think_tokens=limit, completion_tokens=limit)
    if context <= len(tokens_of(rendered(template)[0])) + (bos is not None):
        with pytest.raises(InputError, match=f"no question fits into the context of {context} tokens; give a longer"):
            run_card(runtime, options)
        return
    report = run_card(runtime, options)
    assert max(count for call in runtime.calls for count in call) <= limit
    assert [item.fits for item in report.answers] == [len(runtime.calls[0]) > 0, len(runtime.calls[0]) > 1]


def test_progress_names_the_stages() -> None:
    seen: list[tuple[str, int, int]] = []
    run_card(Scripted(perfect), CardOptions(choice=Choice(card_set(), FRANCE)), lambda *step: seen.append(step))
    last = {stage: (done, total) for stage, done, total in seen}
    assert last == {
        "questions": (5, 5),
        "thinking mode": (4, 4),
        "completions": (2, 2),
        "text": (3, 3),
        "held-out questions": (1, 1),
    }
