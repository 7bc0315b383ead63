"""Reads yes or no from an answer, in English.

The words count only where they are said, as an interjection or after words such as "the answer is"; "no" inside another word
or before a noun ("no idea") says nothing.
"""

from __future__ import annotations

import re
from typing import Literal

from gguf_tools.evaluation.card.answers import Grade
from gguf_tools.evaluation.card.words import read

_STOP = re.compile(r"[.!?,;:()\[\]\n…—–|]|\s[-−]\s")
_YES, _NO = "yes|yeah|yep|yup|true|correct|affirmative", "no|nope|nah|false|incorrect|negative"
_BE = "is|was|be|are|would be|will be|must be|should be|has to be"
_LEAD = (
    r"(?:(?:so|well|ok|okay|oh|hm|hmm|um|sorry|and|but|then|therefore|thus|hence|actually|honestly|basically|simply|clearly"
    r"|obviously|definitely|certainly|absolutely|i|we|would|will|must|have to|has to|say|said|think|believe|guess|suppose|go with"
    rf"|reply|the|my|a|an|short|long|final|correct|right|best|simple|clear|firm|resounding|answer|statement|claim|{_BE}|it|that"
    r"|this|in short|in fact|in summary|in conclusion|of course|to be honest) )*"
)
_NONE_OF = "(?!not |never |neither |nor |either |or )"
_ANSWER_TO = (
    rf"(?:the|my|your) (?:{_NONE_OF}\S+ ){{0,4}}answer (?:to|for|of) (?:{_NONE_OF}\S+ ){{1,30}}?(?:{_BE}) (?:a |an )?"
)
_GOES_ON = (
    r"(?: (?:it|they|he|she|we|you|i|that|this|these|those|there|the|a|an|because|since|as|sir|madam|indeed|definitely|absolutely"
    r"|not|never|thanks|thank you|of course|at all|for sure)\b.*| way)?"
)
_SAID = re.compile(
    rf"(?:{_LEAD}|{_ANSWER_TO})(?:(?P<yes>{_YES})|(?P<no>{_NO})){_GOES_ON}"
    r"|(?P<yes2>yes|yeah|yep|yup) (?!and|or|nor|no|if|unless|men|man).*"
)
_IT = "(?:it|they|he|she|that|this) (?:is|are|does|do|was|were|can|has|have|did|will)"
_SHORT = re.compile(
    r"(?P<no>(?:of course|absolutely|definitely|certainly|surely|clearly|probably) not|not at all|not really|by no means"
    rf"|in no way|i do not (?:think|believe) so|{_IT} not)"
    rf"|(?P<yes>of course|absolutely|definitely|certainly|indeed|i (?:think|believe) so|{_IT})"
)
"""Clauses that say yes or no without the word; they count if nothing else does."""
_CANNOT_TELL = re.compile(
    r"\b(?:no (?:idea|clue)|(?:do|did|does|can|could|would) not (?:really |honestly |actually )?"
    r"(?:know|tell|determine|help|answer)|unable to)\b"
)
_LONGEST = 40
"""Words of a clause that are examined; the pattern's time grows with its square."""

Said = Literal["yes", "no"]


def grade_yesno(answer: str, expected: bool) -> Grade:
    """Whether an answer says yes (or no) as `expected`. One that says both, or neither, is wrong."""
    clauses = _clauses(answer)
    if not clauses:
        return Grade(False, "empty")
    said = _said(clauses, _SAID) or _said(clauses, _SHORT)
    if len(said) > 1:
        return Grade(False, "alternatives", "both yes and no")
    if not said:
        return Grade(False, "undecided", "neither yes nor no")
    (found,) = said
    right = (found == "yes") == expected
    return Grade(right, "right" if right else "other", found)


def _said(clauses: list[tuple[str, str]], pattern: re.Pattern[str]) -> set[Said]:
    """What the clauses say by a pattern, questions and sentences that disclaim an answer left out."""
    found: set[Said] = set()
    for clause, sentence in clauses:
        match = None if clause.endswith("?") or _CANNOT_TELL.search(sentence) else pattern.fullmatch(clause)
        if match is not None:
            found.add("no" if match["no"] else "yes")
    return found


def _clauses(answer: str) -> list[tuple[str, str]]:
    """The clauses of an answer, each as its normalised words (with a final "?" in a question) and with its sentence's words."""
    words, gaps = read(answer)
    sentences: list[list[str]] = [[]]
    clause: list[str] = []
    for index, word in enumerate(words):
        gap, last = gaps[index + 1], index == len(words) - 1
        clause.append(word)
        if "/" in gap:
            clause.append("or")
        elif last or _STOP.search(gap):
            sentences[-1].append(" ".join(clause[:_LONGEST]) + (" ?" if "?" in gap else ""))
            clause = []
        if re.search(r"[.!?\n]", gap):
            sentences.append([])
    return [(one, " ".join(sentence)) for sentence in sentences for one in sentence]
