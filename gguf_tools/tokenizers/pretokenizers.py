"""Finds the pre-tokenizer of llama.cpp that splits text as a tokenizer.json does, by comparing their regexes.

llama.cpp selects a pre-tokenizer by name (`tokenizer.ggml.pre`) and has its regexes in `llm_tokenizer_bpe`
(src/llama-vocab.cpp). Each regex is applied to the pieces that the previous one left; matches and the gaps between them
become pieces (`unicode_regex_split`). The tokenizers library does the same for a `Sequence` of `Split` steps with behavior
"Isolated". So a pre-tokenizer is reduced to the list of its regexes in a canonical form, which is looked up in `TABLE`.

Facts that hold for all of them (llama.cpp of llama-cpp-python 0.3.36, tokenizers 0.23):

- Both sides agree on `\\s` and on `\\p{L}`, `\\p{N}`, `\\p{M}`, `\\p{P}`, `\\p{S}` for every character of Unicode 15.0;
  tokenizers also knows characters added since, which for llama.cpp are neither letters nor numbers.
- `(?i:'s)` of tokenizers also matches the long s (U+017F), in llama.cpp it does not.
- Where llama.cpp has no hand-written splitter it uses std::regex, which has no general categories: upper and lower case are
  then distinguished within ASCII only, see `Limit`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from gguf_tools.errors import CheckpointError, TokenizerError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{SPACES}"
QWEN2 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}|{_SIGNS}|{SPACES}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{tail}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{tail}}"
).replace("{tail}", "%s")
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
GPT4O = _CASED % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?") + rf"|\p{{N}}{{1,3}}|{_PATHS}|{SPACES}"
TEKKEN = _CASED % ("", "") + rf"|\p{{N}}|{_PATHS}|{SPACES}"
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK_WORD = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
DEEPSEEK3 = rf"{_DEEPSEEK_WORD}[\r\n]*|{SPACES}"
SPARK = rf"{_DEEPSEEK_WORD}|[\r\n]|\s+(?!\S)|\s+"
_DEEPSEEK_LETTERS = (
    # as escapes, because Unicode normalization would change several of these characters
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_HAN_TO_HANGUL = "[一-龥ࠀ-一가-퟿]+"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
DIGITS3 = r"\p{N}{1,3}"
PUNCTUATION = "<Punctuation Contiguous>"
BYTES = "<ByteLevel>"
"""A marker in a list of steps: the steps after it run on the byte characters."""

MAX_DEPTH = 8

SPELLINGS: tuple[tuple[str, str], ...] = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("\t", r"\t"),
    (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS),
    (r"'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS),
    (r"'(?i:s|t|re|ve|m|ll|d)", CONTRACTIONS),
    (r"(?i:'s|'d|'m|'t|'ll|'ve|'re)", CONTRACTIONS),
    (r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])", CONTRACTIONS),
    (r"'(?:[sdmt]|ll|ve|re)", r"'s|'t|'re|'ve|'m|'ll|'d"),
    # a possessive quantifier equals a greedy one if the next element cannot match the same character
    (r"?+\p{L}", r"?\p{L}"),
    (r"]++[", r"]+["),
    # \s* matches all line ends up to the last one, so both match the same run
    (r"\s*[\r\n]|", r"\s*[\r\n]+|"),
    (r"\p{N}{1}|", r"\p{N}|"),
    (r"[^\s\p{L}\p{N}\r\n]", r"[^\s\p{L}\p{N}]"),
    (r"[^(\s|[.,!?…。，、।۔،])]", r"[^(\s|.,!?…。，、।۔،)]"),
)
"""Equivalent spellings, replaced in this order; for instance, some patterns write (?i:…) out."""


_WORD_PIECES = re.compile("[Uo]*[lo]+|[Uo]+[lo]*")
"""How the GPT-4o pattern splits a run of letters and marks: U is upper case, l lower case, o neither."""


def _by_category(char: str) -> str:
    return {"Lu": "U", "Lt": "U", "Ll": "l"}.get(unicodedata.category(char), "o")


def _by_ascii(char: str) -> str:
    return "U" if "A" <= char <= "Z" else "l" if "a" <= char <= "z" else "o"


def _case_differs(text: str) -> bool:
    """Whether words are split differently if case is known within ASCII only ("éHello", "ÉCOLE")."""
    for is_word, run in groupby(text, key=lambda char: unicodedata.category(char)[0] in "LM"):
        if is_word:
            word = list(run)
            cuts = [
                [m.end() for m in _WORD_PIECES.finditer("".join(map(case, word)))] for case in (_by_category, _by_ascii)
            ]
            if cuts[0] != cuts[1]:
                return True
    return False


def _case_or_marks_differ(text: str) -> bool:
    return _case_differs(text) or any(unicodedata.category(char)[0] == "M" for char in text)


def _has_far_space(text: str) -> bool:
    return any(char > "\u07ff" and char.isspace() for char in text)


def _has_foreign_digit(text: str) -> bool:
    return any(char > "\x7f" and char.isdecimal() for char in text)


@dataclass(frozen=True)
class Limit:
    """Texts that llama.cpp's pre-tokenizer is known to split differently: described in a note, and left out of the probe."""

    note: str
    affects: Callable[[str], bool]


ASCII_CASE = Limit(
    "llama.cpp distinguishes upper and lower case only within ASCII here, so words that mix other capitals with ASCII letters "
    "(ÉCOLE) may be tokenized differently",
    _case_differs,
)
ASCII_CASE_NO_MARKS = Limit(
    ASCII_CASE.note + ", as may scripts with combining marks (Devanagari, Thai, …), whose words it splits at the marks",
    _case_or_marks_differ,
)
# llama.cpp gives std::wregex a vertical tab for every non-ASCII space, so the range U+0800 to U+4E00 does not match these.
FAR_SPACES = Limit(
    "llama.cpp may tokenize Unicode spaces from U+0800 on (thin, ideographic, …) differently", _has_far_space
)
ASCII_DIGITS = Limit("llama.cpp may group non-ASCII digits differently", _has_foreign_digit)


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """A pre-tokenizer name of llama.cpp, the regexes it implements, and how it deviates from them.

    `ignore_merges`: whether llama.cpp uses a piece that is in the vocabulary as one token, without merging.
    `refused`: why llama.cpp does not implement these regexes (the row then only serves the error message).
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    limit: Limit | None = None
    refused: str = ""


_CASE_LOST = "splits no word where its case changes (HelloWorld stays one piece)"

TABLE: tuple[PreTokenizer, ...] = (
    # For each list of regexes, the most exact or best-known name comes first; rows below it differ in ignore_merges. Names with
    # the same regexes and ignore_merges tokenize alike and are left out: phi-2, mpt, olmo, jais, … (gpt-2); refact,
    # command-r, smollm, codeshell, exaone, minerva-7b, … (starcoder); deepseek-r1-qwen, megrez, hunyuan, stablelm2, … (qwen2);
    # falcon3, lfm2, pixtral, glm4, … (llama-bpe); smaug-bpe, chatglm-bpe (dbrx); llama4, kanana2, minimax-m2 (gpt-4o);
    # hunyuan-dense, joyai-llm, hy_v4 (deepseek-v3); poro-chat, gpt3-finnish (bloom); bailingmoe, grok-2 (qwen2).
    PreTokenizer(name="gpt-2", steps=(GPT2,)),
    PreTokenizer(name="starcoder", steps=(DIGIT, GPT2)),
    PreTokenizer(name="llama-bpe", steps=(LLAMA3,), ignore_merges=True),
    PreTokenizer(name="dbrx", steps=(LLAMA3,)),
    PreTokenizer(name="qwen2", steps=(QWEN2,)),
    PreTokenizer(name="qwen35", steps=(QWEN35,)),
    PreTokenizer(name="granite-embed-multi-97m", steps=(GPT4O,), ignore_merges=True, limit=ASCII_CASE),
    PreTokenizer(name="gpt-4o", steps=(GPT4O,), limit=ASCII_CASE_NO_MARKS),
    PreTokenizer(name="tekken", steps=(TEKKEN,), ignore_merges=True, limit=ASCII_CASE_NO_MARKS),
    PreTokenizer(name="deepseek-v3", steps=(DIGITS3, _CJK, DEEPSEEK3)),
    PreTokenizer(name="spark2_5", steps=(DIGITS3, _CJK, SPARK, DIGIT)),
    # llama.cpp matches digits by \p{N}+: the same if no merge joins two digits, which training with these steps ensures.
    PreTokenizer(
        name="deepseek-llm",
        steps=(
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _HAN_TO_HANGUL,
            DIGIT,
        ),
        limit=FAR_SPACES,
    ),
    PreTokenizer(
        name="deepseek-coder", steps=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_TO_HANGUL, DIGIT), limit=FAR_SPACES
    ),
    # llama.cpp omits the step that separates digits from the space before them: the same if no merge joins the two.
    PreTokenizer(name="falcon", steps=(PUNCTUATION, GPT2, BYTES, DIGITS, "[0-9][0-9][0-9]")),
    PreTokenizer(name="bloom", steps=(BLOOM,)),
    PreTokenizer(name="viking", steps=(BLOOM, DIGIT)),
    PreTokenizer(name="superbpe", steps=(DIGITS, r"(?=(\d{3})+(?!\d))"), limit=ASCII_DIGITS),
    PreTokenizer(
        name="jais-2",
        steps=(
            rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|\s{{512}}(?!\S)|\s{{256}}(?!\S)|\s{{128}}(?!\S)"
            r"|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        ),
    ),
    PreTokenizer(name="seed-coder", steps=(rf"{CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}",)),
    PreTokenizer(name="ufakzeka", steps=(rf"{_WORD}|\p{{N}}|{_SIGNS}|{SPACES}",)),
    PreTokenizer(name="laguna", steps=(r"[^\n]+|[\n]+", QWEN2)),
    PreTokenizer(
        name="minicpm5", steps=(DIGITS3, rf"{CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SIGNS}|{SPACES}"), ignore_merges=True
    ),
    PreTokenizer(
        name="exaone-moe",
        steps=(
            rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|{SPACES}",
        ),
    ),
    PreTokenizer(name="tiny_aya", steps=(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O), refused=_CASE_LOST),
    PreTokenizer(
        name="kimi-k2",
        steps=(
            r"[\p{Han}]+|"
            + (_CASED % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?")).replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]")
            + rf"|\p{{N}}{{1,3}}|{_SIGNS}|{SPACES}",
        ),
        refused=_CASE_LOST,
    ),
    PreTokenizer(
        name="youtu",
        steps=(
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + _CJK,
            _CASED % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?") + rf"|\p{{N}}|{_PATHS}|{SPACES}",
        ),
        refused=_CASE_LOST,
    ),
)


def canonical(pattern: str) -> str:
    """`pattern` in the canonical form of `TABLE`; only known spelling variants are recognised."""
    for found, written in SPELLINGS:
        pattern = pattern.replace(found, written)
    # The whitespace that `\s+(?!\S)` leaves over is one character before a word; as a match or as a gap it is one piece.
    if pattern.endswith(r"|\s+(?!\S)"):
        return pattern + r"|\s+"
    return pattern + "+" if pattern.endswith(r"|\s+(?!\S)|\s") else pattern


_ROWS = tuple(
    PreTokenizer(
        name=row.name,
        steps=tuple(canonical(step) for step in row.steps),
        ignore_merges=row.ignore_merges,
        limit=row.limit,
        refused=row.refused,
    )
    for row in TABLE
)


def split_steps(pre_tokenizer: Mapping[str, Any] | None, where: str) -> tuple[str, ...]:
    """The canonical regexes of a tokenizer.json's `pre_tokenizer`, in order.

    `where` names the file in errors. Raises TokenizerError, naming the step, for one without an equivalent in llama.cpp.
    """
    steps: list[str] = []
    byte_levels = 0
    for step in flatten(pre_tokenizer, where):
        kind = step.get("type")
        if kind == "ByteLevel":
            byte_levels += 1
            if step.get("add_prefix_space", True) is not False:
                raise TokenizerError(
                    f"{where}: ByteLevel has add_prefix_space=true, which adds a space before every text; llama.cpp never does"
                    " that for byte-level BPE. Set it to false if the model was trained without it"
                )
            steps += [GPT2] if step.get("use_regex", True) is not False else []
            steps.append(BYTES)
        else:
            steps.append(_step(step, where))
    if byte_levels != 1:
        found = "no ByteLevel step" if not byte_levels else f"{byte_levels} ByteLevel steps"
        raise TokenizerError(
            f"{where}: the pre-tokenizer has {found} ({_names(pre_tokenizer, where)}); expected one, as in GPT-2, Llama 3 or Qwen"
        )
    return tuple(steps[:-1] if steps[-1] == BYTES else steps)


def find(steps: Sequence[str], where: str) -> tuple[PreTokenizer, ...]:
    """The rows of `TABLE` that split as `steps` do, the most exact first; they differ in `ignore_merges`.

    Raises TokenizerError, with the regexes and the most similar known ones, if there is none.
    """
    rows = [row for row in _ROWS if row.steps == tuple(steps)]
    if not rows:
        shown = " → ".join(steps) or "ByteLevel without a regex"
        known = {" → ".join(row.steps): row.name for row in _ROWS}
        near = get_close_matches(shown, known, n=1, cutoff=0.0)
        raise TokenizerError(
            f"{where}: llama.cpp has no pre-tokenizer that splits by {shown!r}; the most similar is {known[near[0]]!r}, which "
            f"splits by {near[0]!r}"
        )
    faithful = [row for row in rows if not row.refused]
    if not faithful:
        raise TokenizerError(
            f"{where}: the pre-tokenizer corresponds to llama.cpp's {rows[0].name!r}, but that one {rows[0].refused}"
        )
    return tuple(faithful)


def flatten(
    node: Mapping[str, Any] | None, where: str, depth: int = 0, items: str = "pretokenizers"
) -> list[Mapping[str, Any]]:
    """The steps of a pre-tokenizer or normalizer, with nested Sequences flattened."""
    if node is None:
        return []
    if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
        raise CheckpointError(f"{where}: an entry of {items} is not an object with a type")
    if node["type"] != "Sequence":
        return [node]
    inner = node.get(items)
    if not isinstance(inner, list):
        raise CheckpointError(f"{where}: {items} is not a list")
    if depth == MAX_DEPTH:
        raise CheckpointError(f"{where}: {items} nests Sequences more than {MAX_DEPTH} deep")
    return [step for item in inner for step in flatten({} if item is None else item, where, depth + 1, items)]


def _names(node: Mapping[str, Any] | None, where: str) -> str:
    return ", ".join(str(step["type"]) for step in flatten(node, where)) or "none at all"


def _step(step: Mapping[str, Any], where: str) -> str:
    """A step of a pre-tokenizer as a regex or a marker. Raises TokenizerError for a step that llama.cpp cannot do."""
    kind = step["type"]
    if kind == "Digits":
        return DIGIT if step.get("individual_digits", False) is True else DIGITS
    if kind == "Punctuation":
        return f"<Punctuation {step.get('behavior', 'Isolated')}>"
    if kind != "Split":
        raise TokenizerError(
            f"{where}: llama.cpp has no equivalent of the pre-tokenizer step {kind!r}; it has Split, Digits, Punctuation and"
            " ByteLevel"
        )
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(regex, str):
        raise TokenizerError(
            f"{where}: the pattern of a Split step is {str(pattern)[:80]!r}; expected a regex, as llama.cpp splits by regexes"
        )
    behavior, invert = step.get("behavior"), step.get("invert", False)
    regex = canonical(regex)
    # "Removed" with invert keeps the matches and drops the gaps; there are no gaps if the regex matches every character.
    total = regex.endswith(r"|\s+") and any(
        sign in regex for sign in (r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{M}\p{N}]+")
    )
    if (behavior == "Isolated" and invert is False) or (behavior == "Removed" and invert is True and total):
        return regex
    raise TokenizerError(
        f"{where}: a Split step has behavior {str(behavior)[:40]!r} with invert={str(invert)[:10]};"
        " expected 'Isolated', which is how llama.cpp splits"
    )


def normalizes_to_nfc(normalizer: Mapping[str, Any] | None, where: str) -> bool:
    """Whether the tokenizer normalizes text to NFC, which llama.cpp never does for byte-level BPE.

    Raises TokenizerError for any other normalizer: it would change ordinary text, and llama.cpp has no equivalent.
    """
    nfc = [_normalizer(step, where) for step in flatten(normalizer, where, items="normalizers")]
    return any(nfc)


def _normalizer(step: Mapping[str, Any], where: str) -> bool:
    if step["type"] == "NFC":
        return True
    raise TokenizerError(
        f"{where}: the normalizer {str(step['type'])[:40]!r} changes text before it is split; llama.cpp does not normalize for"
        " byte-level BPE (only NFC is accepted, because most text is in that form)"
    )
