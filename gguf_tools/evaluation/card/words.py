"""Normalises text into the words by which answers are compared: without case, accents, markup, punctuation and symbols."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable

Phrase = tuple[str, ...]

# Scripts without spaces, and Hangul, where particles are attached to nouns: each character is a word.
_SINGLE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Combining marks such as vowel signs, which `\w` does not match.
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
    (r"https?://\S+", " "),
    # LaTeX
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2"),
    (r"\\sqrt\b", "√"),
    (r"\\(?:times|cdot|div)\b", "×"),
    (r"\\(?:f?boxed|text\w*|math\w+|mbox|operatorname|left|right|displaystyle)(?![a-z])\*?", ""),
    (r"\$", " "),
    (r"(?<=\d)\s*(?<!\*)\*(?!\*)\s*(?=\d)", "×"),
    (r"[{}*_`#~]", ""),
    # English
    (r"\b(can)(?:not|'?t)\b", r"\1 not"),
    (r"(?<=\w)n't\b", " not"),
    (r"\b(is|are|was|were|do|does|did|has|have|had|would|could|should|wo)nt\b", r"\1 not"),
    (r"(?<=\w)'(?:s|m|d|ll|re|ve|t)\b", ""),
    # Numbers
    (r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)", _without_marks),  # 1,000
    (r"(?<![\d.,])(\d+),(\d+)(?!\d|,\d)", r"\1.\2"),  # 3,14
    (r"(?<![\w.)])\.(?=\d)", "0."),
    (r"(?<![\d.])(\d+)\.0+(?![\d.])", r"\1"),
    (r"(?<!\d )\b(?:minus|negative)\s+(?=\d)", "-"),
    # U.S.A.
    (r"(?<!\w)[^\W\d_](?:\.[^\W\d_](?!\w))+\.?", _without_marks),
]
_MARKER = re.compile(r"^[ \t]*\(?(\d+|[a-z])[.)](?:[ \t]+|$)|\s\(?([a-z])\)[ \t]+", re.MULTILINE)


def normalise(text: str) -> Phrase:
    """The normalised words of a text, without case, accents, markup, punctuation and symbols.

    A number is one word, with its sign, fraction or exponent: "1,000" becomes "1000"; "-5", "3.14" and "1/2" stay. "n't"
    becomes "not". In scripts without spaces each character is a word. Symbols are dropped, so "%" has no words.
    """
    return tuple(read(text)[0])


def read(text: str) -> tuple[list[str], list[str]]:
    """The words, and the text before each of them and after the last."""
    text = plain(text)
    words: list[str] = []
    gaps: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        gaps.append(text[end : match.start()])
        words.append(re.sub("^[−–]", "-", match[0]))
        end = match.end()
    return words, [*gaps, text[end:]]


def plain(text: str) -> str:
    """The text case-folded and without markup, with its punctuation."""
    text = html.unescape(text)
    for pattern, replacement in _BEFORE_FOLDING:
        text = re.sub(pattern, replacement, text)
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    # Removes accents of alphabetic scripts only: other combining marks (voiced kana, vowel signs) count as letters.
    text = unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", text))
    for pattern, rewrite in _AFTER_FOLDING:
        text = re.sub(pattern, rewrite, text)
    if list(map("".join, _MARKER.findall(text)))[:2] in (["1", "2"], ["a", "b"]):
        text = _MARKER.sub(", ", text)  # list markers are not answers
    return text
