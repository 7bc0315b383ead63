"""The fidelity suite: compares a GGUF run by llama.cpp with the reference run of its source.

Three comparisons are separate. Tokenizers: both sides encode each prompt. Logits: both sides get llama.cpp's token ids, so
that differences between tokenizers do not affect them. Greedy text: llama.cpp continues each prompt, and the reference
verifies that continuation as a draft: it runs once over prompt and continuation, and the first position where its highest
logit is another token is where the texts differ. Up to there the draft *is* the reference's greedy text, so no decoding loop
is needed, and the same run gives the logits for the teacher-forced comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError
from gguf_tools.evaluation.logit_pairs import ReferenceLike, compared
from gguf_tools.evaluation.metrics import NO_TARGET, FidelityAccumulator, FidelityMetrics, Logits
from gguf_tools.evaluation.prompts import TEXT_CHUNK, Prompt, begins, default_prompts, render_prompt, text_pieces
from gguf_tools.formats.digest import json_digest
from gguf_tools.progress import StageProgress
from gguf_tools.runtime.interface import BlockRuntime, RuntimeLike

ReferenceEncode = Callable[[str, bool], Sequence[int]]
"""The reference's tokenizer: (text, whether to add special tokens such as BOS and EOS) → ids. Special tokens in the text are
recognised, as in the tokenizers library."""


Verdict = Literal["tie", "fault"]

_TIE_SIGMAS = 4.0
_MAX_NOISE = 0.3


@dataclass(frozen=True)
class Candidate:
    """A token that one side selected, and the logit that each side gives it."""

    token: int
    text: str
    logit_model: float
    logit_reference: float


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """The first difference between the greedy continuations of the model (llama.cpp) and of the reference.

    `prompt` is the index of the prompt, `position` that of the generated token (both from 0). `margin` is the reference's
    logit of its own token minus that of the model's token. `verdict` is "tie" if the measured noise of the logits explains
    the difference, else "fault".
    """

    prompt: int
    position: int
    model: Candidate
    reference: Candidate
    margin: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """The suite's result.

    `metrics` are teacher-forced, over every position of each prompt, of llama.cpp's continuation of it (to have enough
    positions), and of the longer text if one was given. The perplexities exclude generated tokens, to which both sides assign
    high probabilities.
    `greedy_exact_match`: share of prompts whose whole continuations are equal; `greedy_mean_prefix`: mean number of equal
    tokens from the start; `tokens_equal`: share of prompts that both tokenizers encode to the same ids, None without the
    reference's tokenizer; `n_generate`: tokens requested; `notes`: what was skipped, shortened or looks wrong.
    `digests`: the `json_digest` of the prompts, and of the text (None without one).
    """

    metrics: FidelityMetrics
    greedy_exact_match: float
    greedy_mean_prefix: float
    tokens_equal: float | None
    n_generate: int
    first_differences: tuple[FirstDifference, ...]
    notes: tuple[str, ...]
    digests: Mapping[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        """The value of `fidelity` in `tinyq eval --json`; numbers that are not finite become None, since JSON lacks them."""
        flat = {
            **asdict(self.metrics),
            "greedy_exact_match": self.greedy_exact_match,
            "greedy_mean_prefix": self.greedy_mean_prefix,
            "tokens_equal": self.tokens_equal,
            "n_generate": self.n_generate,
            "first_differences": [asdict(difference) for difference in self.first_differences],
            "digests": dict(self.digests),
            "notes": list(self.notes),
        }
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in flat.items()}


@dataclass(frozen=True)
class Case:
    """A prompt to measure: its index, llama.cpp's ids, and the number of tokens to generate."""

    index: int
    ids: list[int]
    n_generate: int


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A first difference that still needs a verdict, for which the noise must be known."""

    index: int
    position: int
    tokens: tuple[int, int]
    logits_model: tuple[float, float]
    logits_reference: tuple[float, float]


def evaluate_fidelity(
    runtime: BlockRuntime,
    reference: ReferenceLike,
    encode: ReferenceEncode | None = None,
    prompts: Sequence[Prompt] | None = None,
    n_generate: int = 100,
    *,
    text: str | None = None,
    piece_tokens: int = TEXT_CHUNK,
    stop: frozenset[int] = frozenset(),
    chat_options: Mapping[str, Any] | None = None,
    continuations: Sequence[Sequence[int]] | None = None,
    progress: StageProgress | None = None,
) -> FidelityReport:
    """Compare llama.cpp with a reference over `prompts` (by default the built-in ones that suit the model).

    `encode` is the reference's tokenizer. `text` is a longer passage, compared teacher-forced in pieces of at most
    `piece_tokens` tokens. Generation stops only at tokens in `stop`, not at EOS, so that every prompt gives `n_generate` tokens.
    `chat_options` are passed to the chat template. With `continuations`, the reference's own greedy text after each prompt that
    is measured, nothing is generated: both sides read the prompt with that text, and the model's greedy text equals it up to the
    first position where the model's highest logit is another token. Prompts that are empty or fill the context are skipped, and
    those that leave room for fewer than `n_generate` tokens get a shorter continuation; the report's notes list both.

    Raises InputError if no prompt is left, a prompt cannot be rendered, or the reference's logits have other shapes than the
    model's; LlamaError if llama.cpp fails or gives logits that are not finite.
    """
    if prompts is None:
        prompts = default_prompts(runtime.info.chat_template is not None)
    cases, tokens_equal, notes = prepare_cases(runtime, encode, prompts, n_generate, chat_options or {})

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)

    if continuations is None:
        counts = [case.n_generate for case in cases]
        generated = runtime.greedy(
            [c.ids for c in cases], counts, stop, lambda done, total: tell("greedy", done, total)
        )
        drafts = [_Draft(case, result.tokens) for case, result in zip(cases, generated, strict=True)]
        sequences = [draft.sequence for draft in drafts]
    else:
        drafts = [_Draft(case, told, by_model=False) for case, told in zip(cases, continuations, strict=True)]
        sequences = [draft.sequence[:-1] for draft in drafts]  # nothing follows the last token
        if ended := sum(len(told) < case.n_generate for case, told in zip(cases, continuations, strict=True)):
            notes.append(
                f"the reference's text after {ended} of {len(cases)} prompts has fewer than {n_generate} tokens"
            )
    pieces = text_pieces(runtime, text, piece_tokens) if text else []
    given = [case.ids for case in cases] + pieces
    names = [f"prompt {case.index}" for case in cases] + [f"text piece {number}" for number in range(len(pieces))]
    accumulator = FidelityAccumulator()
    done, total = 0, sum(map(len, sequences + pieces))
    for index, start, ours, theirs in compared(runtime, reference, sequences + pieces, tell):
        targets = _targets(given[index], start, len(ours))
        accumulator.add(ours, theirs, targets, names[index], start)
        if index < len(drafts):
            drafts[index].verify(start, ours, theirs)
        done += len(ours)
        tell("compare", done, total)
    metrics = accumulator.result()
    longest = max(map(len, sequences + pieces))
    if longest < piece_tokens > TEXT_CHUNK:
        notes.append(
            f"the longest sequence compared has {longest:,} tokens; give a --text of {piece_tokens:,} or more to compare at "
            "that length"
        )
    pending = [draft.difference for draft in drafts if draft.difference]
    return FidelityReport(
        metrics=metrics,
        greedy_exact_match=1.0 - len(pending) / len(cases),
        greedy_mean_prefix=float(np.mean([draft.prefix for draft in drafts])),
        tokens_equal=tokens_equal,
        n_generate=n_generate,
        first_differences=tuple(_judge(runtime, difference, metrics) for difference in pending),
        notes=tuple(notes),
        digests={
            "prompts": json_digest([[prompt.text, list(prompt.messages), prompt.max_tokens] for prompt in prompts]),
            "text": json_digest(text) if text else None,
        },
    )


def greedy_with_draft(
    reference: ReferenceLike,
    prompt: Sequence[int],
    n_tokens: int,
    draft: Sequence[int] = (),
    stop: frozenset[int] = frozenset(),
) -> list[int]:
    """The reference's greedy continuation of `prompt`: `n_tokens`, or fewer up to a stop token, independent of the draft.

    Each run of the reference confirms the draft up to the first difference and gives one more token; the rest of the draft is
    then tried after that token. A correct draft takes one run, an empty one takes one run per token.
    """
    if not prompt:
        raise InputError("an empty prompt cannot be continued; give at least one token")
    tokens: list[int] = []
    while len(tokens) < n_tokens:
        guess = list(draft[len(tokens) : n_tokens - 1])
        (logits,) = reference.logits([[*prompt, *tokens, *guess]])
        chosen = logits[len(prompt) + len(tokens) - 1 :].argmax(axis=-1).tolist()
        for position, token in enumerate(chosen):
            tokens.append(token)
            if token in stop:
                return tokens
            if position == len(guess) or guess[position] != token:
                break
    return tokens


def prepare_cases(
    runtime: RuntimeLike,
    encode: ReferenceEncode | None,
    prompts: Sequence[Prompt],
    n_generate: int,
    chat_options: Mapping[str, Any],
) -> tuple[list[Case], float | None, list[str]]:
    """(prompts to measure, share of prompts that both tokenizers encode to the same ids, notes on the other prompts).

    Raises InputError if no prompt can be measured.
    """
    limit = runtime.context_limit
    cases: list[Case] = []
    alike: list[bool] = []
    empty: list[int] = []
    long: list[int] = []
    short: list[int] = []
    notes: list[str] = []
    for index, prompt in enumerate(prompts):
        text = render_prompt(runtime, prompt, chat_options)
        add_special = not begins(runtime, text)
        ids = runtime.tokenize(text, add_special=add_special, parse_special=True)
        if encode is not None:
            other = list(encode(text, add_special))
            alike.append(ids == other)
            if ids != other:
                notes.append(f"prompt {index}: " + _tokens_differ(ids, other))
        room = limit - len(ids)
        wanted = min(n_generate, prompt.max_tokens or n_generate)
        if not ids:
            empty.append(index)
        elif room < 1:
            long.append(index)
        else:
            cases.append(Case(index, ids, min(wanted, room)))
            short += [index] if room < wanted else []
    if empty:
        notes.append(f"{_named(empty)} skipped: it has no tokens")
    if long:
        notes.append(f"{_named(long)} skipped: too long for the context of {limit} tokens")
    if short:
        notes.append(f"{_named(short)} continued by fewer than {n_generate} tokens: the context ends at {limit}")
    if not cases:
        raise InputError("no prompt can be measured: " + ("; ".join(notes) or "no prompt is given"))
    return cases, sum(alike) / len(alike) if alike else None, notes


def _named(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
    return f"prompt {shown}" if len(indices) == 1 else f"{len(indices)} prompts ({shown})"


def _tokens_differ(ours: Sequence[int], theirs: Sequence[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    first, second = (str(list(ids[at : at + 4])) for ids in (ours, theirs))
    return f"tokenized differently from token {at}: {first} by llama.cpp, {second} by the reference"


def _targets(given: Sequence[int], first: int, count: int) -> npt.NDArray[np.int64]:
    """The next token at each of `count` positions from `first` on, if it is among the given ones, else NO_TARGET."""
    targets = np.full(count, NO_TARGET, dtype=np.int64)
    following = given[first + 1 : first + 1 + count]
    targets[: len(following)] = following
    return targets


class _Draft:
    """A continuation by one side, the model unless `by_model` is false, which the other side verifies, block by block.

    `prefix` is the number of its tokens from the start that the other side gives too, `difference` the one after them, if any.
    """

    def __init__(self, case: Case, tokens: Sequence[int], *, by_model: bool = True) -> None:
        self.prefix = 0
        self.difference: _Pending | None = None
        self.sequence = [*case.ids, *tokens]
        self._case = case
        self._tokens = np.asarray(tokens, dtype=np.int64)
        self._by_model = by_model

    def verify(self, start: int, reference: Logits, model: Logits) -> None:
        """Look at the logits of both sides from position `start` on; blocks come in order."""
        before = len(self._case.ids) - 1  # the position whose logits give the first token
        first, end = (min(max(at - before, 0), len(self._tokens)) for at in (start, start + len(reference)))
        if self.difference or first == end:
            return
        row = before + first - start
        verifier = reference if self._by_model else model
        chosen = verifier[row : row + end - first].argmax(axis=-1)
        wrong = np.flatnonzero(chosen != self._tokens[first:end])
        self.prefix += int(wrong[0]) if wrong.size else end - first
        if not wrong.size:
            return
        drafted, other = int(self._tokens[self.prefix]), int(chosen[wrong[0]])
        pair = (drafted, other) if self._by_model else (other, drafted)
        ours, theirs = (side[row + wrong[0]] for side in (reference, model))
        self.difference = _Pending(
            index=self._case.index,
            position=self.prefix,
            tokens=pair,
            logits_model=(float(theirs[pair[0]]), float(theirs[pair[1]])),
            logits_reference=(float(ours[pair[0]]), float(ours[pair[1]])),
        )


def _judge(runtime: RuntimeLike, pending: _Pending, metrics: FidelityMetrics) -> FirstDifference:
    """Classify a first difference as a tie or a fault.

    With noise σ per logit, the difference of two logits has noise √2·σ; a margin within four times that is a tie. Noise above
    0.3 of the spread of the logits counts as a fault itself.
    """
    candidates = [
        Candidate(token, runtime.detokenize([token], special=True), in_model, in_reference)
        for token, in_model, in_reference in zip(
            pending.tokens, pending.logits_model, pending.logits_reference, strict=True
        )
    ]
    margin = pending.logits_reference[1] - pending.logits_reference[0]
    explained = metrics.noise <= _MAX_NOISE * metrics.spread and margin <= _TIE_SIGMAS * math.sqrt(2) * metrics.noise
    verdict: Verdict = "tie" if explained else "fault"
    return FirstDifference(
        prompt=pending.index,
        position=pending.position,
        model=candidates[0],
        reference=candidates[1],
        margin=margin,
        verdict=verdict,
    )
