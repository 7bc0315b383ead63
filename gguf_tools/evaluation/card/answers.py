"""Grades answers as right or wrong.

An answer is right if it has at least one mention of an accepted phrase (the same words after normalisation) that is neither
negated nor offered as one of several alternatives. Negations and alternatives are recognised in English only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from gguf_tools.evaluation.card.words import Phrase, normalise, plain, read

Reason = Literal["right", "empty", "other", "negated", "alternatives", "undecided"]


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, and if not, why.

    `empty`: it has no words. `other`: it does not contain what is expected, but may say something else. `negated`: it negates
    the expected phrase. `alternatives`: it offers several answers. `undecided`: it says neither yes nor no, chooses no option
    or states no number. `read`: what the answer was understood to say, as far as that is known ("no", "B) Lyon", "12 km").
    """

    right: bool
    reason: Reason
    read: str = ""


_HERE, _ALSO = "\0", "\1"
"""In the text that the patterns below match, these replace the accepted phrase and other mentions of one; "_" precedes
words repeated from the question, "|" and "," stand for punctuation."""

_REACH = 60
"""Number of words on either side of a phrase that are examined; limits the time for texts without full stops."""

_SENTENCE = re.compile(r"[.!?。।؟\n]")
_PARAGRAPH = re.compile(r"[.!?。।؟]|\n\s*\n")
_BREAK = re.compile(r"[:()\[\]|«»—―→–]|--|\s[-−]\s")

_NUMBER = rf"_?(?:[-√]?\d\S*|{_ALSO}|zero|one|two|three|four|five|six|seven|eight|nine|ten)"
_OPERATOR = r"(?:\+|_?(?:plus|minus|times|x)|_?(?:divided|multiplied) _?by)"
_OPERAND = re.compile(rf" {_HERE} {_OPERATOR} {_NUMBER} | {_NUMBER} {_OPERATOR} {_HERE} ")

_IDIOMS = re.compile(
    r"(?<= )(?:no (?:doubt|question)|without (?:(?:a|any) )?(?:doubt|question)|not (?:only|just|merely|simply)"
    r"|not (?:[^ ]+ )?until|not (?:mistaken|wrong)|(?:no|not) (?:fewer|less|more|later|earlier) than"
    r"|(?:none|nothing|no one|no) other than)(?= )"
)
_INSERTED = re.compile(rf" not , (?:(?!but )[^ ,|{_HERE}]+ ){{1,3}}, ")  # "is not, I think, Paris"
_CLAUSES = re.compile(
    r"(?<! not)(?<! anything) (?:[,|]|but|although|though|because|since|so|while|whereas|which|who)(?= )"
)
_AUX = r"_?(?:is|are|was|were|am|be|been|being|do|does|did|has|have|had|can|could|will|would|wo|shall|should|may|might|must)"
_FALSE = "wrong|incorrect|false|untrue|inaccurate"
_BEFORE = f"not|never|neither|nor|none|nobody|nothing|hardly|doubt|{_FALSE}"
_BEFORE_NOUN = "no|without|except|excluding|unlike|anything but|rather than|instead of|other than"
_FILLERS = "a|an|the|in|by|also|still|just|simply|really|actually|certainly|clearly|definitely|probably"
_NEGATED = re.compile(
    # The negation of a noun extends to the next verb only: "with no clouds the sky is blue".
    rf" (?:{_BEFORE}) (?:.* )?{_HERE} | (?:{_BEFORE_NOUN}) (?:(?!{_AUX} )\S+ )*{_HERE} "
    # After the phrase only a negation of the first verb counts: "Paris is not", but not "8 legs and not 6".
    rf"| {_HERE} (?:(?!{_AUX} )\S+ )*(?:{_AUX} )+(?:(?:{_FILLERS}|{_AUX}) )*"
    rf"(?:not|never|neither|hardly|no longer|no way|no means|{_FALSE}) "
)
_HEDGES = "(?:(?:a|an|the|maybe|perhaps|possibly|either|it|is) )*"
_OTHER = rf"or (?!{_HEDGES}{_ALSO} )"
_ALTERNATIVE = re.compile(
    rf" or {_HEDGES}{_HERE} | {_HERE} {_OTHER}| either (?:.* )?{_HERE} (?:.* )?{_OTHER}"
    rf"| {_HERE} ((?:[^ ]+ ){{1,2}}){_OTHER}{_HEDGES}[^ ]+ \1"  # "8 legs or 6 legs"
)
_ASKS_FOR_SEVERAL = re.compile(
    r"\b(?:list|enumerate|(?:what|which|who) (?:are|were)|(?:name|what|which|give) (?:\w+ )?(?:all|some|two|three|four|five))\b"
)
_LEAD = r"_?(?:\||is|are|was|were|be|include|includes|including|like|as|being|has|have|had|with|it|not)"
_NO_ITEM = re.compile(
    rf"_.*|{_LEAD}|in|of|on|at|by|from|for|to|into|near|than|which|who|that|this|these|those|there|where|when|i|you|he|she"
    "|we|they|yes|no|sure|well|so|ok|okay|however|course"
)


def mentions(text: str, accept: Sequence[str]) -> bool:
    """Whether a text contains an accepted phrase as a run of whole words, negated or not."""
    return bool(_occurrences(read(text)[0], _phrases(accept)))


def grade(answer: str, accept: Sequence[str], question: str = "") -> Grade:
    """Whether an answer asserts one of the accepted phrases, matched as a run of whole words.

    - Mentions in questions do not count, nor operands ("2 + 2 = 5"), nor mentions within a run of three or more words that
      the question contains too.
    - A mention is negated by a negation in the same clause: "it isn't Paris", "Paris is wrong", but not "Paris, not Lyon".
    - Alternatives are joined by "or" or "/" with something that is not accepted, or form an enumeration of three or more
      short items including the phrase, unless the question asks for several things.
    - One other mention suffices, since further statements may be true as well ("Mars does not have rings").
    """
    (reason,) = asserted(answer, [accept], question)
    return Grade(reason == "right", reason)


def asserted(answer: str, several: Sequence[Sequence[str]], question: str = "") -> list[Reason]:
    """For each of `several` lists of accepted phrases, whether the answer asserts one of them: `right`, or why not.

    A mention inside a longer phrase of another list does not count: "carbon dioxide" does not mention carbon.
    """
    words, gaps = read(answer)
    if not words:
        return ["empty"] * len(several)
    lists = [_phrases(accept) for accept in several]
    found = [_occurrences(words, phrases) for phrases in lists]
    reasons: list[Reason] = []
    for n, mine in enumerate(found):
        longer = [place for other in (*found[:n], *found[n + 1 :]) for place in other]
        places = _places([place for place in mine if not any(_inside(place, other) for other in longer)])
        reasons.append(_best(words, gaps, places, question))
    return reasons


def _best(words: list[str], gaps: list[str], places: list[tuple[int, int]], question: str) -> Reason:
    """The best grade of the mentions at `places`."""
    text = _text(words, gaps, places, question)
    found: set[Reason] = set()
    for start, end in places:
        found.add(_judge(text, start, end))
        if "right" in found:
            return "right"
    return min(found, key=_WEIGHT.index, default="other")


_WEIGHT: tuple[Reason, ...] = ("negated", "alternatives", "other")
"""Precedence of the reasons if mentions fail for several."""


@dataclass(frozen=True, kw_only=True)
class _Text:
    """An answer prepared for the patterns.

    `gaps`: the text before each word and after the last; `signs`: the punctuation that each gap stands for. `echoed`: whether
    a word is repeated from the question. `several`: whether the question asks for a list.
    """

    words: list[str]
    gaps: list[str]
    signs: list[str]
    echoed: list[bool]
    several: bool


def _text(words: list[str], gaps: list[str], places: list[tuple[int, int]], question: str) -> _Text:
    echoed = _echoed(words, normalise(question))
    signs = ["", *map(_sign, gaps[1:-1], words, words[1:]), ""]
    marked = ["_" * echo + word for word, echo in zip(words, echoed, strict=True)]
    for start, end in places:
        marked[start:end] = [_ALSO, *[""] * (end - start - 1)]
        signs[start + 1 : end] = [""] * (end - start - 1)
    return _Text(
        words=marked, gaps=gaps, signs=signs, echoed=echoed, several=bool(_ASKS_FOR_SEVERAL.search(plain(question)))
    )


def _phrases(accept: Sequence[str]) -> set[Phrase]:
    return set(filter(None, map(normalise, accept)))


def _occurrences(words: list[str], accepted: set[Phrase]) -> list[tuple[int, int]]:
    """Positions (start, end) of the accepted phrases, also of overlapping ones."""
    return [
        (start, start + len(phrase))
        for phrase in accepted
        for start in range(len(words) - len(phrase) + 1)
        if tuple(words[start : start + len(phrase)]) == phrase
    ]


def _places(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of overlapping positions the first, and of those the longest."""
    places: list[tuple[int, int]] = []
    for start, end in sorted(found, key=lambda place: (place[0], -place[1])):
        if not places or start >= places[-1][1]:
            places.append((start, end))
    return places


def _inside(place: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one position lies within another, longer one."""
    return other[0] <= place[0] and place[1] <= other[1] and other != place


def _echoed(words: list[str], question: Phrase) -> list[bool]:
    """For each word, whether it belongs to a run of three or more words that the question contains too."""
    known = {question[i : i + 3] for i in range(len(question) - 2)}
    starts = {i for i in range(len(words) - 2) if tuple(words[i : i + 3]) in known}
    return [not starts.isdisjoint((i - 2, i - 1, i)) for i in range(len(words))]


def _judge(text: _Text, start: int, end: int) -> Reason:
    """The grade of the mention at words start…end."""
    around = [*text.echoed[max(start - 1, 0) : start], *text.echoed[end : end + 1]]
    low, high = _span(text, start, end, _SENTENCE)
    if (all(text.echoed[start:end]) and any(around)) or re.search("[?؟]", text.gaps[high]):
        return "other"
    sentence = _shown(text, low, high, start, end)
    if _OPERAND.search(sentence):
        return "other"
    sentence = _IDIOMS.sub("", re.sub(" [,|] or ", " or ", sentence)).replace("  ", " ")
    sentence = _INSERTED.sub(" not ", sentence)
    clause = next(f"{part} " for part in _CLAUSES.split(sentence) if _HERE in part)
    if _NEGATED.search(clause):
        return "negated"
    if _ALTERNATIVE.search(clause):
        return "alternatives"
    listing = _shown(text, *_span(text, start, end, _PARAGRAPH), start, end)
    return "alternatives" if not text.several and _in_list(listing) else "right"


def _span(text: _Text, start: int, end: int, stop: re.Pattern[str]) -> tuple[int, int]:
    """The range of words around start…end, bounded by gaps that match `stop` and by `_REACH`."""
    first, last = max(start - _REACH, 0), min(end + _REACH, len(text.words))
    low = next((i for i in range(start, first, -1) if stop.search(text.gaps[i])), first)
    high = next((i for i in range(end, last) if stop.search(text.gaps[i])), last)
    return low, high


def _shown(text: _Text, low: int, high: int, start: int, end: int) -> str:
    """The words low…high and the signs between them as text for the patterns, with `_HERE` for the phrase start…end."""
    before = [part for i in range(low, start) for part in (text.words[i], text.signs[i + 1])]
    after = [part for i in range(end, high) for part in (text.signs[i], text.words[i])]
    return f" {' '.join(filter(None, [*before, _HERE, *after]))} "


def _sign(gap: str, left: str, right: str) -> str:
    if "/" in gap:
        return "or"
    if re.search(r"\d", left) and re.search(r"\d", right) and re.fullmatch(r"\s*[-+−×÷^]\s*|–", gap):
        return "+"
    if re.search(r"[,;،؛、&\n]", gap) and ":" not in gap:
        return ","
    return "|" if _BREAK.search(gap) else ""


def _in_list(text: str) -> bool:
    """Whether the phrase is one of three or more enumerated items, not all of which are accepted."""
    parts = [part.split() for part in re.split(r" (?:(?:,|and|or) )+", text)]
    at = next(k for k, part in enumerate(parts) if _HERE in part)
    here = parts[at].index(_HERE)
    beside = parts[at][max(here - 1, 0) : here + 2]
    shared = {word for word in beside if sum(word in part for part in parts) > 2}  # "the A ocean, B ocean and C ocean"
    parts = [[word for word in part if word not in {"a", "an", "the", *shared}] for part in parts]
    items: list[list[str]] = []
    if _after_lead(parts[at]) == [_HERE]:
        items += _items(parts[at + 1 :], _before_lead)
    if _before_lead(parts[at]) == [_HERE]:
        items += _items(parts[:at][::-1], _after_lead)
    return len(items) > 1 and any(item != [_ALSO] for item in items)


def _items(parts: list[list[str]], end_of: Callable[[list[str]], list[str]]) -> list[list[str]]:
    """The leading parts that are items, and, of the part after them, the item that `end_of` finds at its near end."""
    whole = list(takewhile(_is_item, parts))
    return [*whole, *filter(_is_item, map(end_of, parts[len(whole) : len(whole) + 1]))]


def _is_item(part: list[str]) -> bool:
    """Whether a part is short and has no word that rules out an item (`_NO_ITEM`)."""
    return 0 < len(part) < 3 and not any(map(_NO_ITEM.fullmatch, part))


def _after_lead(part: list[str]) -> list[str]:
    return list(takewhile(_no_lead, part[::-1]))[::-1]


def _before_lead(part: list[str]) -> list[str]:
    return list(takewhile(_no_lead, part))


def _no_lead(word: str) -> bool:
    return not re.fullmatch(_LEAD, word)
