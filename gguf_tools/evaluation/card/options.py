"""Reads which of several options an answer chooses, by its letter or its text.

A letter counts only where it is said as one: alone, in brackets, at the start of a line with a mark after it, or after words
such as "the answer is". A capital at the start of a word, and the article "a", are no letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from gguf_tools.evaluation.card.answers import Grade, Reason, asserted
from gguf_tools.evaluation.card.expected import LETTERS, Options
from gguf_tools.evaluation.card.words import normalise
from gguf_tools.evaluation.card.yesno import grade_yesno

_MARKUP = re.compile(r"</?[A-Za-z][^<>]{0,40}>|[*_`#$~]|\\(?:f?boxed|text\w*|math\w+|mbox)(?![a-z])\*?|[{}]")
_SINGLE = re.compile(r"(?P<open>[(\[]\s*)?(?<![\w'’.])(?P<letter>[A-Za-z])(?![\w'’]|-\w|\.\w)(?P<close>\s*[)\]])?")
_CUES = re.compile(
    r"(?:^|\W)(?:answer|option|choice|letter|choose|chose|choosing|pick|picked|select|selected|say|with|is|be|was|not|either"
    r"|neither|nor|or|and|both|so|thus|therefore|hence|than|but|(?:isn|it|that)['’][st])[\s:=\"'“]*$"
)
_STRICT = re.compile(r"(?:answer(?: is| would be)?|option|choice|letter)[\s:=\"'“]*$")
_STARTS = re.compile(r"(?:^|[.!?:;,—–/→\n])[\s\"'“]*$")
_ENDS = re.compile(r"[\"'”]?\s*$|[\"'”]?[.,:;!?)\]](?=\s|$|[\"'”)])|\s*[\n/→]|\s+[-–—=]\s")
_GOES_ON = re.compile(
    r"\s+(?:is(?=\s*(?:[.,;!]|$))|because|since|as|or|and|but"
    r"|(?:is|seems|looks|must be|would be)\s+(?:not\s+)?(?:the\s+|a\s+)?(?:most\s+likely\s+)?"
    r"(?:correct|right|best|true|wrong|incorrect|false|my|answer))\b"
)
_TITLE = re.compile(r"\b(?:dr|mr|mrs|ms|st|prof)\.\s*$")
_CONCLUDES = re.compile(
    r"\b(?:answer|therefore|thus|hence|so(?=,| the | it | my | [(\[]?[A-Z]\b)).*?(?:[.!?](?=\s|$)|\n|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_NEAR = 40
"""Characters on either side of a letter that decide whether it is one."""
_YES_NO = {("yes",), ("no",), ("true",), ("false",)}


def grade_options(answer: str, expected: Options, question: str = "") -> Grade:
    """Whether an answer chooses the expected option. One that chooses several, or none, is wrong.

    Letters have precedence over texts, except where a letter stands beside the text of another option. If several options are
    named, what follows the last "answer", "so" or "therefore" decides.
    """
    if not normalise(answer):
        return Grade(False, "empty")
    text = _without_list(_MARKUP.sub("", unicodedata.normalize("NFKC", answer)), expected.options)
    if not normalise(text):
        return Grade(False, "alternatives", "every option")
    chosen, reasons = _chosen(text, expected, question)
    if len(chosen) > 1:
        last = _CONCLUDES.findall(text)[-1:]
        final = _chosen(last[0], expected, question)[0] if last else []
        chosen = final if len(final) == 1 else chosen
    if len(chosen) > 1:
        return Grade(False, "alternatives", " and ".join(map(expected.named, chosen[:3])))
    if not chosen:
        reason = "alternatives" if "alternatives" in reasons else reasons[expected.answer]
        reason = "undecided" if reason == "other" else reason
        return Grade(False, reason, "no option" if reason == "undecided" else "")
    right = chosen[0] == expected.answer
    return Grade(right, "right" if right else "other", expected.named(chosen[0]))


def _chosen(text: str, expected: Options, question: str) -> tuple[list[int], list[Reason]]:
    """The indices of the options that a text asserts, and the reason for each option (by letter or text, the better one)."""
    marked, contradicted = _marked(text, expected)
    letters = asserted(marked, [[_word(n)] for n in range(len(expected.options))], question)
    by_letter = [n for n, reason in enumerate(letters) if reason == "right"]
    texts = asserted(marked, [[option] for option in expected.options], question)
    for n, option in enumerate(expected.options):
        if normalise(option) in _YES_NO:  # "no idea" is no "no"
            texts[n] = "right" if grade_yesno(text, normalise(option)[0] in ("yes", "true")).right else "other"
    by_text = [n for n, reason in enumerate(texts) if reason == "right"]
    if contradicted is not None and by_letter:
        return sorted({*by_letter, contradicted}), letters
    reasons = [one if one != "other" else other for one, other in zip(letters, texts, strict=True)]
    return by_letter or by_text, reasons


def _word(index: int) -> str:
    """What a letter is replaced by: a word that no text has."""
    return f"xoption{LETTERS[index].lower()}x"


def _marked(text: str, expected: Options) -> tuple[str, int | None]:
    """The text with each letter of an option replaced by its word, and an option whose text stands beside another's letter."""
    parts: list[str] = []
    last = 0
    contradicted = None
    alone = bool(re.fullmatch(r"[^\w+-]*[A-Za-z][^\w+-]*", text))
    for match in _SINGLE.finditer(text):
        index = LETTERS.find(match["letter"].upper())
        if index >= len(expected.options) or not (alone or _is_letter(text, match, expected.options[index])):
            continue
        bracketed = bool(match["open"] and match["close"])
        end = match.end() if bracketed or (match["close"] and not match["open"]) else match.end("letter")
        parts += [text[last : match.start() if bracketed else match.start("letter")], f" {_word(index)} "]
        last = end
        beside = normalise(text[end : end + 4 * _NEAR])
        for n, option in enumerate(expected.options):
            words = normalise(option)
            if (
                n != index
                and beside[: len(words)] == words
                and beside[: len(normalise(expected.options[index]))] != normalise(expected.options[index])
            ):
                contradicted = n
    return "".join([*parts, text[last:]]), contradicted


def _is_letter(text: str, match: re.Match[str], option: str) -> bool:
    """Whether a single letter in a text stands for its option."""
    letter = match["letter"]
    if match["open"] and match["close"]:
        return True
    start, end = match.start("letter"), match.end("letter")
    left, right = text[max(start - _NEAR, 0) : start].casefold(), text[end : end + _NEAR]
    left = left if start <= _NEAR else f"x{left}"  # so that ^ matches at the text's start only
    marked = re.match(r"[.):]\s*", right)
    if letter.islower():
        line = bool(marked) and bool(re.search(r"(?:^|\n)\s*$", left)) and bool(re.match(r"[.):]\s", right))
        return line or bool(_STRICT.search(left) and _ENDS.match(right))
    if marked and text[end + marked.end() :][: 2 * len(option)].casefold().startswith(option.casefold()):
        return True
    cue = bool(_CUES.search(left))
    if _TITLE.search(left) or not (cue or _STARTS.search(left)):
        return False
    if match["close"] or _ENDS.match(right) or _GOES_ON.match(right):
        return True
    return cue and letter not in "AI" and not re.match(r"\s+[A-Z]\b", right)


def _without_list(text: str, options: Sequence[str]) -> str:
    """The text without the list of all options, if it repeats that."""
    items = (rf"[(\[]?{LETTERS[n]}[)\].:]+\s*{re.escape(option)}\W*" for n, option in enumerate(options))
    return re.sub("".join(items), "\n", text, count=1, flags=re.IGNORECASE)
