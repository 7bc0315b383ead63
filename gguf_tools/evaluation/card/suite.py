"""Runs the card suite: greedy answers to questions asked with the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.answers import Grade, mentions
from gguf_tools.evaluation.card.completed import finished, goes_round
from gguf_tools.evaluation.card.expected import LETTERS, Options
from gguf_tools.evaluation.card.grading import grade_answer, grade_likelihoods
from gguf_tools.evaluation.card.likelihood import log_likelihoods
from gguf_tools.evaluation.card.modes import ChatModes, Mode, find_modes
from gguf_tools.evaluation.card.parts import DEFAULT_WEIGHTS
from gguf_tools.evaluation.card.questions import Choice, Completion, Question
from gguf_tools.evaluation.card.repetition import ends_in_loop
from gguf_tools.evaluation.card.reply import find_tags, split_reply
from gguf_tools.evaluation.card.results import Answered, CardReport, Completed, Generation, Passage
from gguf_tools.evaluation.metrics import next_token_nll
from gguf_tools.evaluation.prompts import predicted_bytes, prompt_ids, text_pieces
from gguf_tools.progress import StageProgress
from gguf_tools.runtime.interface import RuntimeLike


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Options of the suite.

    `choice`: the items. `thinking`: whether to ask with thinking on; it is off by default if the template can switch it off.
    `probes`: number of questions that are also asked in the other mode. `answer_tokens`, `think_tokens`,
    `completion_tokens`: the maximum number of tokens of an answer without thinking, of a thought with its answer, and of a
    continuation; the context may allow fewer. `weights`: part → weight, see `parts`.
    """

    choice: Choice
    thinking: bool = False
    probes: int = 4
    answer_tokens: int = 128
    think_tokens: int = 1024
    completion_tokens: int = 100
    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))


def run_card(runtime: RuntimeLike, options: CardOptions, progress: StageProgress | None = None) -> CardReport:
    """Run every item once.

    Questions that do not fit into the context, empty answers and endless loops count as wrong and are listed in the report's
    notes. Raises InputError if the chat template is broken or refuses a question, if thinking is requested but the template
    does not support it, or if no item fits into the context; LlamaError if llama.cpp fails.
    """
    scored = options.choice.scored
    modes = find_modes(runtime)
    if options.thinking and not modes.thinking:
        raise InputError(
            "thinking was requested, but the model's chat template has no thinking mode; leave the option out"
        )
    main = modes.main(options.thinking)
    other = modes.other(main)
    suite = _Suite(runtime, modes, options, progress)
    answers = suite.ask(scored.questions, main, "questions")
    if scored.questions and not any(answer.fits for answer in answers):
        raise InputError(f"no question fits into the context of {runtime.context_limit} tokens; give a longer context")
    return CardReport(
        set_name=scored.name,
        mode=main,
        modes=modes,
        answers=answers,
        probes=() if other is None else suite.ask(scored.questions[: options.probes], other, f"{other} mode"),
        completions=suite.complete(scored.completions),
        passages=suite.read(scored.passages),
        held_out=suite.ask(options.choice.held_out, main, "held-out questions"),
        weights=dict(options.weights),
        context=runtime.context_limit,
        digests=scored.digests,
        tokens={
            "answer": options.answer_tokens,
            "think": options.think_tokens,
            "completion": options.completion_tokens,
        },
    )


class _Suite:
    """One run of the suite: the runtime and the settings that all its requests share."""

    def __init__(
        self, runtime: RuntimeLike, modes: ChatModes, options: CardOptions, progress: StageProgress | None
    ) -> None:
        self._runtime = runtime
        self._modes = modes
        self._options = options
        self._progress = progress

    def ask(self, questions: Sequence[Question], mode: Mode, stage: str) -> tuple[Answered, ...]:
        """Ask each question in a separate conversation."""
        texts = [self._modes.render(self._runtime, question, mode) for question in questions]
        limit = self._options.answer_tokens if self._modes.is_short(mode) else self._options.think_tokens
        found = self._generate(texts, limit, stage)
        answered = [
            self._answered(question, mode, text, generation)
            for question, text, generation in zip(questions, texts, found, strict=True)
        ]
        return tuple(
            self._by_likelihood(item, question.expected, text)
            if isinstance(question.expected, Options) and question.expected.by != "text" and mode != "thinking"
            else item
            for item, question, text in zip(answered, questions, texts, strict=True)
        )

    def _by_likelihood(self, item: Answered, expected: Options, prompt: str) -> Answered:
        """A choice graded by the log-likelihood of its letters, or of its options per byte, after the rendered `prompt`.

        One whose options do not fit into the context counts as not answered.
        """
        if not item.fits:
            return item
        texts = LETTERS[: len(expected.options)] if expected.by == "letters" else expected.options
        space = " " if item.mode == "plain" else ""
        found = log_likelihoods(self._runtime, prompt, [space + text for text in texts])
        if found is None:
            return replace(item, grade=Grade(False, "empty"), generation=replace(item.generation, fits=False))
        sizes = [len(text.encode()) if expected.by == "options" else 1 for text in texts]
        values = tuple(nats / size for nats, size in zip(found, sizes, strict=True))
        return replace(item, grade=grade_likelihoods(values, expected), likelihoods=values)

    def _answered(self, question: Question, mode: Mode, prompt: str, generation: Generation) -> Answered:
        """The graded answer to one question; `prompt` is the rendered text, with which a thought may already be opened."""
        if mode == "plain":
            generation = self._first_line(generation)
        # Some models emit thoughts although their template does not mention them.
        tags = self._modes.tags or find_tags(generation.text)
        reply = split_reply(generation.text, tags, opened=tags is not None and prompt.rstrip().endswith(tags.open))
        return Answered(
            question=question.question,
            expected=question.expected,
            mode=mode,
            reply=reply,
            grade=grade_answer(reply.answer, question.expected, question.question),
            generation=generation,
        )

    def _first_line(self, generation: Generation) -> Generation:
        """The generation up to the first line break after text, which ends a plain-text answer."""
        head, found, _ = generation.text.strip().partition("\n")
        if not found:
            return generation
        tokens = generation.tokens
        shown = (self._runtime.detokenize(tokens[:count], special=True) for count in range(len(tokens) + 1))
        count = next((count for count, text in enumerate(shown) if "\n" in text.lstrip()), len(tokens))
        return replace(generation, text=head, tokens=tokens[:count], ended=True, loop=None)

    def complete(self, completions: Sequence[Completion]) -> tuple[Completed, ...]:
        """Continue each text as it stands, without the chat template."""
        found = self._generate([item.prompt for item in completions], self._options.completion_tokens, "completions")
        return tuple(self._completed(item, generation) for item, generation in zip(completions, found, strict=True))

    def _completed(self, item: Completion, generation: Generation) -> Completed:
        """A continuation; of a right list that starts anew (the days of the week), the first round only."""
        follows, loop = mentions(generation.text, item.accept), generation.loop
        if loop is None:
            return Completed(item.prompt, follows, generation)
        end = loop.start + loop.period
        before, first_round = (self._runtime.detokenize(generation.tokens[:n], special=True) for n in (loop.start, end))
        if goes_round(first_round[len(before) :], item.accept):
            cut = replace(generation, text=first_round, tokens=generation.tokens[:end], ended=True, loop=None)
            return Completed(item.prompt, follows, cut)
        return Completed(item.prompt, follows, generation, finished(generation.text, first_round, before, item.accept))

    def read(self, passages: Sequence[str]) -> tuple[Passage, ...]:
        """Per-passage NLL; passages with fewer than two tokens are skipped."""
        found = []
        for index, passage in enumerate(passages):
            nats, tokens = 0.0, 0
            pieces = text_pieces(self._runtime, passage)
            for ids, logits in zip(pieces, self._runtime.iter_logits(pieces), strict=True):
                nll = next_token_nll(logits, np.asarray(ids), f"passage {index}")
                nats, tokens = nats + float(nll.sum()), tokens + len(nll)
            if tokens:
                size = predicted_bytes(self._runtime, passage, pieces)
                found.append(Passage(nats, tokens, size, len(pieces)))
            self._tell("text", index + 1, len(passages))
        return tuple(found)

    def _generate(self, texts: Sequence[str], limit: int, stage: str) -> list[Generation]:
        """Greedy continuations up to `limit` tokens or an end-of-generation token; empty if the context has no room."""
        runtime = self._runtime
        prompts = [prompt_ids(runtime, text) for text in texts]
        rooms = [runtime.context_limit - len(ids) for ids in prompts]
        fitting = [index for index, room in enumerate(rooms) if room > 0 and prompts[index]]
        stop = runtime.info.eog
        results = runtime.greedy(
            [prompts[index] for index in fitting],
            [min(limit, rooms[index]) for index in fitting],
            stop,
            lambda done, total: self._tell(stage, done, total),
        )
        found = [Generation(text="", tokens=(), fits=False, ended=False, loop=None)] * len(texts)
        for index, result in zip(fitting, results, strict=True):
            ended = bool(result.tokens) and result.tokens[-1] in stop
            tokens = result.tokens[: len(result.tokens) - ended]
            loop = None if ended else ends_in_loop(tokens)
            found[index] = Generation(
                text=runtime.detokenize(tokens, special=True), tokens=tokens, fits=True, ended=ended, loop=loop
            )
        return found

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)
