"""Whether an answer is right.

It is where it says an accepted phrase: the same words after normalising, not negated, not offered beside another answer.
The rules are those of English; other languages are matched, their negations are not understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gguf_tools.evaluate.card.words import Phrase, normalise, plain, read

Reason = Literal["right", "empty", "other", "negated", "alternatives"]


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, and why not.

    `empty`: it has no words. `other`: it does not say an accepted phrase. `negated`: it says that it is not so.
    `alternatives`: it offers the phrase beside others.
    """

    right: bool
    reason: Reason


_HERE = "\0"
"""Stands for the accepted phrase in the sentences that the patterns below read; "_" precedes words of the question."""

_REACH = 60
"""Words on either side of a phrase that can bear on it: a text without any full stop would take too long to read."""

_SENTENCE = re.compile(r"[.!?。।؟\n]")
_PARAGRAPH = re.compile(r"[.!?。।؟]|\n\s*\n")
_BREAK = re.compile(r"[:()\[\]|«»—―→–]|--|\s[-−]\s")

_NUMBER = r"_?(?:[-√]?\d\S*|zero|one|two|three|four|five|six|seven|eight|nine|ten)"
_OPERATOR = r"(?:\+|_?(?:plus|minus|times|x)|_?(?:divided|multiplied) _?by)"
_OPERAND = re.compile(rf" {_HERE} {_OPERATOR} {_NUMBER} | {_NUMBER} {_OPERATOR} {_HERE} ")

_IDIOMS = re.compile(
    r"(?<= )(?:no (?:doubt|question|wonder|matter|problem|surprise)|not (?:only|just|merely|simply|until|to mention)"
    r"|not (?:mistaken|wrong|surprisingly)|(?:without|beyond) (?:(?:a|any|the|reasonable|shadow|of) )*(?:doubt|question)"
    r"|(?:no|not) (?:fewer|less|more|later|earlier) than|(?:none|nothing|no one|no) other than|nothing but"
    r"|or (?:so|not)|more or less|either way)(?= )"
)
_INSERTED = re.compile(rf" not , (?:(?!but )[^ ,|{_HERE}]+ ){{1,3}}, ")  # "is not, I think, Paris"
_CLAUSES = re.compile(
    r"(?<! not)(?<! anything) (?:[,|]|but|however|although|though|because|since|so|while|whereas|which|where|who|yet"
    r"|instead(?! of )|and(?= (?:it|that|this|he|she|they|i|there|is|are|was|were|do|does|did|has|have|can|could) ))(?= )"
)
_AUX = r"_?(?:is|are|was|were|am|be|been|being|do|does|did|has|have|had|can|could|will|would|wo|shall|should|may|might|must)"
_FALSE = "wrong|incorrect|false|untrue|inaccurate"
_BEFORE = (
    "not|never|no|neither|nor|none|nobody|nothing|without|hardly|doubt|except|excluding|unlike|anything but|rather than"
    f"|instead of|other than|{_FALSE}"
)
_FILLERS = "a|an|the|in|by|also|still|just|simply|really|actually|certainly|clearly|definitely|probably"
_NEGATED = re.compile(
    rf" (?:{_BEFORE}) (?:.* )?{_HERE} | {_HERE} never "
    # After the phrase only the first verb counts: "Paris is not", but "8 legs and not 6".
    rf"| {_HERE} (?:(?!{_AUX} )\S+ )*(?:{_AUX} )+(?:(?:{_FILLERS}|{_AUX}) )*"
    rf"(?:not|never|neither|hardly|no longer|no way|no means|{_FALSE}) "
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ARTICLES = _set("a an the")
_HEDGES = _ARTICLES | _set("maybe perhaps possibly even rather either it is")
_LEADS = _set("| is are was were be include includes including like as become becomes being has have had with it not")
_NO_ITEMS = _LEADS | _set(
    "in of on at by from for to into near than which who whom whose that this these those there where when i you he she"
    " we they my your his her its our their yes no sure well so ok okay indeed actually however therefore thus certainly"
    " clearly obviously definitely probably maybe perhaps please thanks sorry hello hi course"
)


def mentions(text: str, accept: Sequence[str]) -> bool:
    """Whether an accepted phrase stands in a text as a run of whole words, whatever is said about it."""
    return bool(_places(read(text)[0], _phrases(accept)))


def grade(answer: str, accept: Sequence[str], question: str = "") -> Grade:
    """Whether an answer says one of the accepted phrases, as a run of whole words and as what it holds to be true.

    - Sentences that ask do not count, nor operands ("2 + 2 = 5"), nor a phrase within three or more words in a row of
      the question.
    - Negated is what a negation in the same clause denies: "it isn't Paris", "Paris is wrong", not "Paris, not Lyon".
      One such mention, and the answer is not right.
    - Alternatives are what "or" or "/" joins with anything not accepted, and an enumeration of three or more short items
      of which the phrase is one, unless the question asks for several things or the phrase stands elsewhere by itself.
    """
    words, gaps = read(answer)
    if not words:
        return Grade(False, "empty")
    accepted = _phrases(accept)
    text = _Text(words, gaps, _echoed(words, normalise(question)), bool(_ASKS_FOR_SEVERAL.search(plain(question))))
    found = {_judge(text, start, end, accepted) for start, end in _places(words, accepted)}
    for verdict, reason in _VERDICTS:
        if verdict in found:
            return Grade(reason == "right", reason)
    return Grade(False, "other")


_Verdict = Literal["negated", "alternatives", "right", "listed", "other"]

# The first of these that any mention gets decides.
_VERDICTS: tuple[tuple[_Verdict, Reason], ...] = (
    ("negated", "negated"),
    ("alternatives", "alternatives"),
    ("right", "right"),
    ("listed", "alternatives"),
)
_ASKS_FOR_SEVERAL = re.compile(
    r"\b(?:list|enumerate|(?:what|which|who) (?:are|were)|(?:name|what|which|give) (?:\w+ )?(?:all|some|two|three|four|five))\b"
)


@dataclass(frozen=True)
class _Text:
    """An answer's words, the gaps around them, which words the question says too, and whether it asks for a list."""

    words: list[str]
    gaps: list[str]
    echoed: list[bool]
    several: bool


def _phrases(accept: Sequence[str]) -> set[Phrase]:
    return set(filter(None, map(normalise, accept)))


def _places(words: list[str], accepted: set[Phrase]) -> list[tuple[int, int]]:
    """Where accepted phrases stand, start to end, but for those within a longer one."""
    found = [
        (start, start + len(phrase))
        for phrase in accepted
        for start in range(len(words) - len(phrase) + 1)
        if tuple(words[start : start + len(phrase)]) == phrase
    ]
    places: list[tuple[int, int]] = []
    for start, end in sorted(found, key=lambda place: (place[0], -place[1])):
        if not places or end > places[-1][1]:
            places.append((start, end))
    return places


def _echoed(words: list[str], question: Phrase) -> list[bool]:
    """Which words belong to three or more in a row that the question has too."""
    known = {question[i : i + 3] for i in range(len(question) - 2)}
    starts = {i for i in range(len(words) - 2) if tuple(words[i : i + 3]) in known}
    return [not starts.isdisjoint((i - 2, i - 1, i)) for i in range(len(words))]


def _judge(text: _Text, start: int, end: int, accepted: set[Phrase]) -> _Verdict:
    """What is said about the phrase at start…end."""
    around = [*text.echoed[max(start - 1, 0) : start], *text.echoed[end : end + 1]]
    low, high = _span(text, start, end, _SENTENCE)
    if (all(text.echoed[start:end]) and any(around)) or re.search("[?؟]", text.gaps[high]):
        return "other"
    sentence = re.sub(
        r"^ no (?=(?:it|the|that|this|i|he|she|they|we|there) )", " ", _shown(text, low, high, start, end)
    )
    if _OPERAND.search(sentence):
        return "other"
    sentence = _IDIOMS.sub("", re.sub(" [,|] or ", " or ", sentence)).replace("  ", " ")
    sentence = _INSERTED.sub(" not ", sentence)
    clause = next(f"{part} " for part in _CLAUSES.split(sentence) if _HERE in part)
    if _NEGATED.search(clause):
        return "negated"
    if _joined_by_or(clause.replace("_", "").split(), accepted):
        return "alternatives"
    listing = _shown(text, *_span(text, start, end, _PARAGRAPH), start, end)
    return "listed" if not text.several and _in_list(listing, accepted) else "right"


def _span(text: _Text, start: int, end: int, stop: re.Pattern[str]) -> tuple[int, int]:
    """The words around start…end up to gaps with a stop."""
    low = next((i for i in range(start, 0, -1) if stop.search(text.gaps[i])), 0)
    high = next((i for i in range(end, len(text.words)) if stop.search(text.gaps[i])), len(text.words))
    return low, high


def _shown(text: _Text, low: int, high: int, start: int, end: int) -> str:
    """The words low…high and the signs between them that matter, the phrase as one sign; a space at both ends."""
    shown = [""]
    for i in range(max(low, start - _REACH), min(high, end + _REACH)):
        if start < i < end:
            continue
        if len(shown) > 1:
            shown.append(_sign(text.gaps[i], text.words[i - 1], text.words[i]))
        shown.append(_HERE if i == start else "_" * text.echoed[i] + text.words[i])
    return " ".join([part for k, part in enumerate(shown) if part or not k] + [""])


def _sign(gap: str, left: str, right: str) -> str:
    if "/" in gap:
        return "or"
    if re.search(r"\d", left) and re.search(r"\d", right) and re.fullmatch(r"\s*[-+−×÷^]\s*|–", gap):
        return "+"
    if re.search(r"[,;،؛、&\n]", gap):
        return ","
    return "|" if _BREAK.search(gap) else ""


def _joined_by_or(clause: list[str], accepted: set[Phrase]) -> bool:
    """Whether "or" joins the phrase with anything not accepted: "x or \0", "\0 or x", "\0 legs or 6 legs"."""
    at = clause.index(_HERE)
    before, after = clause[:at], clause[at + 1 :]
    either = "either" in before
    while before and before[-1] in _HEDGES:
        before.pop()
    if before and before[-1] == "or":
        ends = [tuple(before[:k]) for k in range(max(len(before) - 3, 0), len(before))]
        return not any(end[-len(phrase) :] == phrase for end in ends for phrase in accepted)
    if "or" not in after:
        return False
    middle = after.index("or")
    unit, other = after[:middle], after[middle + 1 :]
    while other and other[0] in _HEDGES:
        other.pop(0)
    if any(tuple(other[: len(phrase)]) == phrase for phrase in accepted):
        return False
    return unit in ([], ["and"]) or either or (len(unit) < 3 and other[1 : 1 + len(unit)] == unit)


def _in_list(text: str, accepted: set[Phrase]) -> bool:
    """Whether the phrase is an item of an enumeration of three or more, of which not all are accepted."""
    parts = [part.split() for part in re.split(r" (?:(?:,|and|or) )+", text)]
    longest = 3 if re.search(r" (?:and|or) ", text) else 2  # what is merely apposed is longer
    at = next(k for k, part in enumerate(parts) if _HERE in part)
    left, right = _after_lead(parts[at]), _before_lead(parts[at])
    items: list[Phrase] = []
    if _item(left, 1) == (_HERE,):
        items += _items(parts[at + 1 :], _before_lead, longest)
    if _item(right, 1) == (_HERE,):
        items += _items(parts[:at][::-1], _after_lead, longest)
    return len(items) > 1 and not {_item(list(phrase), len(phrase)) for phrase in accepted}.issuperset(items)


def _items(parts: list[list[str]], end_of: Callable[[list[str]], list[str]], longest: int) -> list[Phrase]:
    """The items in front; the last one may be an `end_of` its part."""
    items: list[Phrase] = []
    for part in parts:
        item = _item(part, longest) or _item(end_of(part), longest)
        if item:
            items.append(item)
        if not _item(part, longest):
            break
    return items


def _item(part: list[str], longest: int) -> Phrase:
    """An item's words; none where it is too long or has words that no item has."""
    words = tuple(word for word in part if word not in _ARTICLES)
    return () if len(words) > longest or any(word in _NO_ITEMS or word[0] == "_" for word in words) else words


def _after_lead(part: list[str]) -> list[str]:
    last = max((k for k, word in enumerate(part) if word.lstrip("_") in _LEADS), default=-1)
    return part[last + 1 :]


def _before_lead(part: list[str]) -> list[str]:
    return part[: next((k for k, word in enumerate(part) if word.lstrip("_") in _LEADS), len(part))]
