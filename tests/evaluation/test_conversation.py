"""A conversation with a model that answers by a script: what it is shown, what arrives in which part, what is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.reply import Reply
from gguf_tools.evaluation.conversation import Conversation, Piece
from gguf_tools.runtime.interface import Sampling
from gguf_tools.runtime.process import Runtime
from tests.evaluation.card.scripted import EOS, OPENED, PLAIN, SWITCH, Answer, Scripted, tokens_of


class Talker(Scripted):
    """A scripted runtime that reads and writes token by token; `shown` has the text before each reply."""

    path = Path("scripted.gguf")

    def __init__(self, answer: Answer, template: str | None = SWITCH, context: int = 4096) -> None:
        super().__init__(answer, template, context)
        self.shown: list[str] = []
        self._tokens: list[int] = []
        self._coming: list[int] = []

    def read_tokens(self, start: int, tokens: Sequence[int], context: int) -> bool:
        """Put the tokens at their place."""
        assert start <= len(self._tokens)
        assert start + len(tokens) <= context <= self.context_limit
        self._tokens = [*self._tokens[:start], *tokens]
        return True

    def next_token(self, previous: int | None, sampling: Sampling | None) -> int:
        """The script's next token; without `previous`, what follows the text."""
        if previous is None:
            self.shown.append(self.detokenize(self._tokens, special=True))
            said = self._answer(self.shown[-1])
            self._coming = tokens_of(said.removesuffix("…")) * (1000 if said.endswith("…") else 1) + [EOS]
        else:
            self._tokens.append(previous)
        return self._coming.pop(0)


def talk(runtime: Talker, **options: Any) -> Conversation:
    return Conversation(cast(Runtime, runtime), **options)


def said(conversation: Conversation, question: str) -> list[Piece]:
    """The reply's parts, joined."""
    found: list[Piece] = []
    for part, text in conversation.ask(question):
        joined = found.pop()[1] if found and found[-1][0] == part else ""
        found.append((part, joined + text))
    return found


def test_a_conversation_goes_on() -> None:
    runtime = Talker(lambda prompt: f"reply {prompt.count('[user]')}", PLAIN)
    conversation = talk(runtime, system="Be brief.")
    assert said(conversation, "one") == [("answer", "reply 1")]
    assert said(conversation, "two") == [("answer", "reply 2")]
    assert runtime.shown[1] == "[system]Be brief.[user]one[assistant]reply 1[user]two[assistant]"
    assert [(turn.question, turn.reply.answer, turn.end) for turn in conversation.turns] == [
        ("one", "reply 1", "ended"),
        ("two", "reply 2", "ended"),
    ]


def test_without_a_template_the_answer_is_one_line() -> None:
    runtime = Talker(lambda _: " Paris.\nQuestion: What else?", None)
    conversation = talk(runtime)
    assert said(conversation, "The capital of France?") == [("answer", "Paris.")]
    assert said(conversation, "And?") == [("answer", "Paris.")]
    assert runtime.shown == [
        "Question: The capital of France?\nAnswer:",
        "Question: The capital of France?\nAnswer: Paris.\n\nQuestion: And?\nAnswer:",
    ]
    assert conversation.turns[0].end == "ended"


@pytest.mark.parametrize(
    ("template", "thinking", "text", "parts"),
    [
        (SWITCH, False, "Paris.", [("answer", "Paris.")]),
        (SWITCH, True, "<think>\nHm.</think>\n\nParis.", [("thought", "Hm."), ("answer", "Paris.")]),
        (OPENED, False, "Hm.</think>Paris.", [("thought", "Hm."), ("answer", "Paris.")]),
        (OPENED, False, "It may be", [("thought", "It may be")]),
        (PLAIN, False, "[THINK]Hm.[/THINK]Paris.", [("thought", "Hm."), ("answer", "Paris.")]),
        (PLAIN, False, "1 < 2 and <b>", [("answer", "1 < 2 and <b>")]),
        (PLAIN, False, "", []),
    ],
)
def test_thoughts_and_answers_arrive_apart(template: str, thinking: bool, text: str, parts: list[Piece]) -> None:
    conversation = talk(Talker(lambda _: text, template), thinking=thinking)
    assert said(conversation, "Q") == parts
    reply = conversation.turns[0].reply
    assert reply.answer == dict(parts).get("answer", "")
    assert (reply.thought or "") == dict(parts).get("thought", "")


@given(st.text(st.sampled_from("<>/think ab\n"), max_size=30), st.text(st.sampled_from("<>/think ab"), max_size=20))
def test_the_pieces_are_the_reply(thought: str, answer: str) -> None:
    text = f"<think>{thought}</think>{answer}"
    if text.count("<think>") + text.count("</think>") > 2:
        return
    conversation = talk(Talker(lambda _: text), thinking=True)
    found = said(conversation, "Q")
    assert conversation.turns[0].reply == Reply(thought.strip(), answer.strip(), True)
    assert {part: piece.strip() for part, piece in found if piece.strip()} == {
        part: piece.strip() for part, piece in (("thought", thought), ("answer", answer)) if piece.strip()
    }


def test_a_thought_is_no_part_of_the_conversation() -> None:
    runtime = Talker(lambda _: "<think>Hm.</think>Paris.")
    conversation = talk(runtime, thinking=True)
    said(conversation, "one")
    said(conversation, "two")
    assert runtime.shown[1] == "[user]one[assistant]Paris.[user]two[assistant]"


def test_the_oldest_messages_give_way() -> None:
    runtime = Talker(lambda _: "ok", PLAIN, context=120)
    conversation = talk(runtime, system="Be brief.", most=1000)
    for n in range(6):
        said(conversation, f"message {n}")
    assert [turn.forgotten for turn in conversation.turns] == [0, 0, 2, 2, 2, 2]
    assert runtime.shown[-1] == "[system]Be brief.[user]message 4[assistant]ok[user]message 5[assistant]"
    with pytest.raises(InputError, match=r"the message needs 2[0-9]+ tokens, but the context has 120"):
        said(conversation, "x" * 200)
    assert said(conversation, "again") == [("answer", "ok")]
    assert len(conversation.turns) == 7


def test_why_a_reply_ends() -> None:
    def ending(answer: str, **options: Any) -> tuple[str, int]:
        context = options.pop("context", 4096)
        stopped = iter([False] * options.pop("steps", 1 << 20) + [True] * 9)
        conversation = talk(Talker(lambda _: answer, PLAIN, context), **options)
        list(conversation.ask("Q", lambda: next(stopped)))
        return conversation.turns[0].end, conversation.turns[0].tokens

    assert ending("Paris") == ("ended", 6)
    assert ending("Paris…", most=7) == ("tokens", 7)
    assert ending("Paris…", context=40) == ("context", 40 - len("[user]Q[assistant]"))
    assert ending("Paris…", steps=4) == ("stopped", 3)


def test_thinking_needs_a_template_with_it() -> None:
    with pytest.raises(InputError, match=r"scripted\.gguf: thinking was requested, but .* leave it out"):
        talk(Talker(lambda _: "", PLAIN), thinking=True)
