"""What a model answered, apart from what it thought, and whether that is right.

An answer is right where it says an accepted phrase: the same words after normalising, not negated, not offered beside
another answer. The rules are those of English; other languages are matched, their negations are not understood.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal["right", "empty", "other", "negated", "alternatives"]
Phrase = tuple[str, ...]


@dataclass(frozen=True)
class ThinkTags:
    """The tags a model puts around its thoughts."""

    open: str
    close: str


KNOWN_TAGS: tuple[ThinkTags, ...] = (
    ThinkTags("<think>", "</think>"),
    ThinkTags("<thinking>", "</thinking>"),
    ThinkTags("<reasoning>", "</reasoning>"),
    ThinkTags("<thought>", "</thought>"),
    ThinkTags("[THINK]", "[/THINK]"),
    ThinkTags("<seed:think>", "</seed:think>"),
    ThinkTags("<|begin_of_thought|>", "<|end_of_thought|>"),
)


@dataclass(frozen=True)
class Reply:
    """A generated text in its two parts, both stripped.

    `thought`: None where no block was opened; "" where it was empty. `closed`: False where the last block never
    closed; `answer` is then "".
    """

    thought: str | None
    answer: str
    closed: bool


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, and why not.

    `empty`: it has no words. `other`: it does not say an accepted phrase. `negated`: it says that it is not so.
    `alternatives`: it offers the phrase beside others.
    """

    right: bool
    reason: Reason


def find_tags(template: str) -> ThinkTags | None:
    """The first of KNOWN_TAGS of which one tag stands in a chat template; None without any."""
    return next((tags for tags in KNOWN_TAGS if tags.open in template or tags.close in template), None)


def split_reply(text: str, tags: ThinkTags | None, opened: bool = False) -> Reply:
    """Thought and answer of a generated text; `opened`: the prompt itself ended in an open block.

    The answer is what follows the last closing tag or, where nothing does, what stood outside the blocks. What
    precedes a closing tag that nothing opened is thought. Without tags all is answer.
    """
    if tags is None:
        return Reply(None, text.strip(), True)
    thoughts: list[str] = []
    outside: list[str] = []
    inside = opened
    pieces = re.split(f"({re.escape(tags.open)}|{re.escape(tags.close)})", text)
    for piece in pieces:
        if piece == tags.open:
            inside = True
        elif piece == tags.close:
            if not inside:
                thoughts, outside = thoughts + outside, []
            inside = False
        else:
            (thoughts if inside else outside).append(piece.strip())
    thought = "\n".join(filter(None, thoughts)) if opened or len(pieces) > 1 else None
    if inside:
        return Reply(thought, "", False)
    return Reply(thought, outside[-1] or "\n".join(filter(None, outside)), True)


# --- Words -----------------------------------------------------------------------------------------------------------

# Scripts without spaces, and Hangul, whose particles stick to the noun: each character is a word.
_SINGLE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs and the like, which `\w` leaves out.
_MARKS = "".join(chr(code) for code in range(0x0370, 0x2000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
_LETTERS = rf"(?:[^\W_{_SINGLE}]|[{_MARKS}])*"
_WORD = re.compile(
    rf"[{_SINGLE}]"
    r"|(?:(?<![^\s(\[{=:,;\"'<>≈])[-−–])?√?\d+(?:[.:/^]-?\d+)*" + _LETTERS + rf"|[^\W_{_SINGLE}]{_LETTERS}"
)


def _without_marks(match: re.Match[str]) -> str:
    return re.sub(r"[.,]", "", match[0])


_BEFORE_FOLDING = [
    (r"[’‘ʼ´′]", "'"),
    (r"≠|!=", " not "),
    (r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", ""),  # 1 000
    (r"(?<=\d)(?=[⁰¹²³⁴-⁹⁻])", "^"),  # 10² is not 102
    (r"(?<=\d)(?=[¼-¾⅐-⅞])", " "),
]
_AFTER_FOLDING: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    ("⁄", "/"),
    # HTML, Markdown and addresses
    (r"<(?:br|p|li|div|tr|h\d)\b[^<>]*>", "\n"),
    (r"<sup>(?=-?\d)", "^"),
    (r"</?[a-z][^<>]*>", ""),
    (r"\]\([^()\s]*\)", "]"),
    (r"https?://\S+", " "),
    # LaTeX
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2"),
    (r"\\sqrt\b", "√"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\\div\b", "÷"),
    (r"\^?\{?\\(?:circ|degree)\b\}?", " "),
    (r"\\(?:f?boxed|text\w*|math\w+|mbox|operatorname|left|right|displaystyle)(?![a-z])\*?", ""),
    (r"(?<=\d)(?:\\,|\{,\})(?=\d{3})", ","),
    (r"\\[,;:!]", " "),
    (r"\$", " "),
    (r"(?<=\d)\s*(?<!\*)\*(?!\*)\s*(?=\d)", "×"),
    (r"[{}*_`#~]", ""),
    # English
    (r"\b(can)(?:not|'?t)\b", r"\1 not"),
    (r"(?<=\w)n't\b", " not"),
    (r"\b(is|are|was|were|do|does|did|has|have|had|would|could|should|wo)nt\b", r"\1 not"),
    (r"(?<=\w)'(?:s|m|d|ll|re|ve|t)\b", ""),
    (r"\b(dr|mr|mrs|ms|st|prof|mt|jr|sr|vs|approx)\.", r"\1 "),
    # Numbers
    (r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)", _without_marks),  # 1,000
    (r"(?<![\d.,])(\d+),(\d+)(?!\d|,\d)", r"\1.\2"),  # 3,14
    (r"(?<![\w.)])\.(?=\d)", "0."),
    (r"(?<!\d )\b(?:minus|negative)\s+(?=\d)", "-"),
    # U.S.A.
    (r"(?<!\w)[^\W\d_](?:\.[^\W\d_](?!\w))+\.?", _without_marks),
]
_NUMBERED = re.compile(r"^[ \t]*(\d+)[.)][ \t]+(?=\S)", re.MULTILINE)


def normalise(text: str) -> Phrase:
    """The words of a text as they are compared: without case, accents, markup, punctuation and symbols.

    A number is one word, with its sign, fraction or exponent: "1,000" is "1000"; "-5", "3.14" and "1/2" stay. A "n't"
    becomes "not". Characters of scripts without spaces are words of their own. Symbols are dropped, so "%" has no words.
    """
    return tuple(_read(text)[0])


def _read(text: str) -> tuple[list[str], list[str]]:
    """The words, and what stands before each of them and after the last."""
    text = _plain(text)
    words: list[str] = []
    gaps: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        gaps.append(text[end : match.start()])
        words.append(re.sub("^[−–]", "-", match[0]))
        end = match.end()
    return words, [*gaps, text[end:]]


def _plain(text: str) -> str:
    """The text folded and without markup, its punctuation kept."""
    text = html.unescape(text)
    for pattern, replacement in _BEFORE_FOLDING:
        text = re.sub(pattern, replacement, text)
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    # Only the accents of alphabets: other combining marks (voiced kana, vowel signs) are letters.
    text = unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", text))
    for pattern, rewrite in _AFTER_FOLDING:
        text = re.sub(pattern, rewrite, text)
    if _NUMBERED.findall(text)[:2] == ["1", "2"]:
        text = _NUMBERED.sub("", text)  # the numbers of a list are not answers
    return text


# --- Grades ----------------------------------------------------------------------------------------------------------

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
    return bool(_places(_read(text)[0], _phrases(accept)))


def grade(answer: str, accept: Sequence[str], question: str = "") -> Grade:
    """Whether an answer says one of the accepted phrases, as a run of whole words and as what it holds to be true.

    - Sentences that ask do not count, nor operands ("2 + 2 = 5"), nor a phrase within three or more words in a row of
      the question.
    - Negated is what a negation in the same clause denies: "it isn't Paris", "Paris is wrong", not "Paris, not Lyon".
      One such mention, and the answer is not right.
    - Alternatives are what "or" or "/" joins with anything not accepted, and an enumeration of three or more short items
      of which the phrase is one, unless the question asks for several things or the phrase stands elsewhere by itself.
    """
    words, gaps = _read(answer)
    if not words:
        return Grade(False, "empty")
    accepted = _phrases(accept)
    text = _Text(words, gaps, _echoed(words, normalise(question)), bool(_ASKS_FOR_SEVERAL.search(_plain(question))))
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
