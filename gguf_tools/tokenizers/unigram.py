"""Unigram models (SentencePiece's default, Kudo 2018) as llama.cpp's "t5" tokenizer (`llm_tokenizer_ugm`).

Both sides cut a text into the pieces with the largest sum of scores (Viterbi), give a character without a piece the least score
minus 10, and make consecutive unknown ones one token. llama.cpp has neither byte fallback nor other normalizers than
SentencePiece's: its table of characters (`precompiled_charsmap`), spaces as "▁", a space before a text, and
remove_extra_whitespaces.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import normalizers

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.tokenizers.files import TokenizerFiles, shown, some
from gguf_tools.tokenizers.form import Form
from gguf_tools.tokenizers.piece_model import NAME as MODEL_FILE
from gguf_tools.tokenizers.pretokenizers import Limit, flatten
from gguf_tools.tokenizers.sentencepiece import after_own, no_space_after

SPACE = "▁"
ROUNDING = (
    "SentencePiece adds scores in float32, llama.cpp in float64: of two ways to cut a text either may be taken if their scores "
    "are equal but for rounding"
)
MODEL = "t5"
"""llama.cpp's name of the tokenizer."""
INNER = ({"Regex": " {2,}"}, {"Regex": "  +"})
"""Patterns of a Replace that leaves one of several spaces."""
OUTER = {"Regex": r"\A +| +\z"}


def _blank(char: str) -> bool:
    """Whether the character is a space, or becomes one or nothing by SentencePiece's table (white space, control characters)."""
    return char == SPACE or unicodedata.category(char)[0] in "ZC"


ONLY_SPACES = Limit(
    "a text of white space alone may be tokenized differently", lambda text: bool(text) and all(map(_blank, text))
)
FIRST_SPACE = Limit(
    "the tokenizer adds a space before a text only if there is none, llama.cpp always does: text that begins with a space may"
    " be tokenized differently",
    lambda text: any(map(_blank, text[:1])),
)
WHITE_SPACE = "\t\n\v\f\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's, without the space."""
LAST_SPACE = Limit(
    "llama.cpp drops spaces at the end of a text, the tokenizer does not: such text is tokenized differently",
    lambda text: any(map(_blank, text[-1:])),
)
WRITTEN_SPACE = Limit(
    "text with the character '▁' itself beside spaces may be tokenized differently", lambda text: SPACE in text
)
COMBINED = re.compile(
    "[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff\u200d\uff9e\uff9f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]|\r\n"
)
"""Characters that join others to one grapheme, beside marks (Unicode annex 29)."""


def _is_combined(text: str) -> bool:
    return COMBINED.search(text) is not None or any(unicodedata.category(char)[0] == "M" for char in text)


NO_SPACE = Limit(
    "the vocabulary has no piece '▁': of unknown characters on both sides of a space llama.cpp makes one token, the tokenizer "
    "two",
    lambda text: any(map(_blank, text)),
)
GRAPHEMES = Limit(
    "the tokenizers library and llama.cpp may normalize graphemes of several characters differently (accents and vowel signs as "
    "marks of their own, Korean letters, emoji joined or coloured, CRLF)",
    _is_combined,
)


@dataclass(frozen=True, kw_only=True)
class _Spaces:
    """What the normalizers and the pre-tokenizer do before a text is cut.

    `inner`: of several spaces one is left; `first` and `last`: those at the ends are dropped. `prefix`: a space is put before a
    text, `unless_there` only if there is none. `split`: no piece crosses a space.
    """

    charsmap: bytes = b""
    inner: bool = False
    first: bool = False
    last: bool = False
    prefix: bool = False
    unless_there: bool = False
    first_only: bool = False
    replaced: bool = False
    split: bool = False


def is_unigram(files: TokenizerFiles) -> bool:
    """Whether the tokenizer's model is a Unigram model."""
    return files.model.get("type") == "Unigram"


def rounded(files: TokenizerFiles) -> TokenizerFiles | None:
    """The files with the scores as a GGUF holds them, in float32; None where that changes none."""
    vocab = [[text, float(np.float32(score))] for text, score in files.model["vocab"]]
    same = all(old == new for (_, old), (_, new) in zip(files.model["vocab"], vocab, strict=True))
    return None if same else replace(files, model={**files.model, "vocab": vocab})


def rounding(plain: HFTokenizer, narrow: HFTokenizer) -> Limit:
    """The texts that scores in float32, which `narrow` has, cut otherwise: of two ways with equal scores, another is taken."""
    return Limit(
        "a GGUF holds scores as float32: of two ways to cut a text with equal scores but for rounding another may be taken",
        lambda text: plain.encode(text).ids != narrow.encode(text).ids,
    )


def convert_unigram(files: TokenizerFiles, kinds: Mapping[int, TokenType]) -> Form:
    """The form of a Unigram model; `kinds` are the types of the added tokens.

    Raises TokenizerError for byte fallback, a model without an unknown token, and steps that llama.cpp does not have.
    """
    where = str(files.path)
    if files.model.get("byte_fallback", False) is not False:
        raise TokenizerError(
            f"{where}: model.byte_fallback is {shown(files.model['byte_fallback'])}; llama.cpp's Unigram tokenizer has no byte "
            "fallback (its BPE has): train the tokenizer as BPE, or without byte_fallback"
        )
    unknown = files.model.get("unk_id")
    scores = [score for _, score in files.model["vocab"]]
    if type(unknown) is not int or not 0 <= unknown < len(scores):
        raise TokenizerError(
            f"{where}: model.unk_id is {shown(unknown)}; llama.cpp needs an unknown token among the {len(scores)} pieces"
        )
    spaces = _spaces(files, where)
    all_kinds = {**kinds, unknown: TokenType.UNKNOWN}
    normal = [score for number, score in enumerate(scores) if number not in all_kinds]
    if not normal or min(normal) > min(scores):
        raise TokenizerError(
            f"{where}: the least score, which decides about unknown characters, is that of a control token or one of the user's; "
            "llama.cpp takes the least score of the others"
        )
    if spaces.split:
        inner = next((text for text in files.vocab if SPACE in text[1:] and files.vocab[text] not in all_kinds), None)
        if inner is not None:
            raise TokenizerError(
                f"{where}: Metaspace splits at every space, but there is a piece {shown(inner)}; llama.cpp does not split there"
            )
    control = tuple(
        text for text, number in files.ids.items() if all_kinds.get(number) in (TokenType.CONTROL, TokenType.UNKNOWN)
    )
    sentencepiece = files.path.name == MODEL_FILE
    own = tuple(token.content for token in files.added if not token.special and sentencepiece and spaces.prefix)
    contents = [token.content for token in files.added]
    limits = [in_parts(limit, contents) for limit in _limits(spaces)]
    limits += [no_space_after(contents)] if spaces.first_only else []
    limits += [NO_SPACE] if spaces.split and SPACE not in files.vocab else []
    users = [text for text in contents if all_kinds[files.ids[text]] == TokenType.USER_DEFINED]
    if users := [text for text in users if spaces.charsmap or SPACE in text]:
        limits += [in_parts(also_matched(users, spaces.charsmap), contents)]
    # Steps of tokenizer.json that strip or split do so at any; SentencePiece's own code knows spaces alone.
    stays = _stays(spaces.charsmap) if spaces.charsmap and (spaces.first or spaces.last) and not sentencepiece else ""
    limits += [white_space(stays)] if stays else []
    limits += [_spelled_out(control)] if control else []
    limits += [after_own(own)] if own else []
    return Form(
        model=MODEL,
        pre="default",
        kinds=all_kinds,
        scores=dict(enumerate(scores)),
        add_space_prefix=spaces.prefix,
        remove_extra_whitespaces=spaces.inner,
        charsmap=spaces.charsmap,
        limits=tuple(limits),
        sections=not spaces.first_only,
        notes=(ROUNDING,) if sentencepiece else (),
    )


def _limits(spaces: _Spaces) -> list[Limit]:
    """The texts on which the two sides may differ because of spaces and the table of characters."""
    found = [GRAPHEMES] if spaces.charsmap else []
    if spaces.unless_there:
        found.append(WRITTEN_SPACE)
    if spaces.inner:
        found += [] if spaces.last else [LAST_SPACE]
        return found + ([] if spaces.first or spaces.unless_there else [FIRST_SPACE])
    return found + ([ONLY_SPACES] if spaces.prefix else []) + ([FIRST_SPACE] if spaces.unless_there else [])


def in_parts(limit: Limit, added: Sequence[str]) -> Limit:
    """The limit for a text as a whole, and for each part of it between added tokens, which are treated as texts."""
    if not added:
        return limit
    tokens = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))))
    return Limit(limit.note, lambda text: any(map(limit.affects, (text, *tokens.split(text)))))


def also_matched(tokens: Sequence[str], charsmap: bytes) -> Limit:
    """Tokens of the user's that llama.cpp also takes for pieces of the normalized text; the library finds them before.

    Besides, llama.cpp leaves as it is what begins like one of them (`naive_trie::get_longest_prefix`).
    """
    table = normalizers.Precompiled(charsmap) if charsmap else None

    def changed(text: str) -> str:
        return table.normalize_str(text) if table else text

    # Up to the first character that the table changes, or all where it changes several characters together.
    ends = {
        token: next((n for n, char in enumerate(token, 1) if changed(char) != char), len(token)) for token in tokens
    }
    left = {token[:end] for token, end in ends.items() if changed(token[:end]) != token[:end]}

    def affects(text: str) -> bool:
        normal = changed(text)
        kept = SPACE + normal.replace(" ", SPACE)
        spelled = kept + re.sub(f"{SPACE}+", SPACE, kept)
        found = any(
            normal.count(token) > text.count(token) or (SPACE in token and token in spelled) for token in tokens
        )
        return found or any(begin in text for begin in left)

    return Limit(
        f"llama.cpp also matches {some([shown(token) for token in tokens])} where the text becomes that when it is normalized",
        affects,
    )


def white_space(characters: str) -> Limit:
    """The white space that the table of characters leaves as it is."""
    names = ", ".join(f"U+{ord(char):04X}" for char in characters[:3]) + (", …" if len(characters) > 3 else "")
    return Limit(
        f"white space other than the space itself ({names}) is dropped at the ends of a text or between words by the tokenizers "
        "library; for llama.cpp it is a character like others",
        lambda text: not set(characters).isdisjoint(text),
    )


def _stays(charsmap: bytes) -> str:
    """The white space of which the table makes other white space than spaces."""
    table = normalizers.Precompiled(charsmap)
    return "".join(char for char in WHITE_SPACE if not set(WHITE_SPACE).isdisjoint(table.normalize_str(char)))


def _spelled_out(control: tuple[str, ...]) -> Limit:
    return Limit(
        f"a control token such as {shown(control[0])} spelled out in a text is plain text for llama.cpp unless it is told to "
        "parse control tokens, and that token for the tokenizers library",
        lambda text: any(token in text for token in control),
    )


def _spaces(files: TokenizerFiles, where: str) -> _Spaces:
    """What the steps of tokenizer.json do. Raises TokenizerError for a step, or an order, that llama.cpp does not have."""
    spaces = _Spaces()
    for step in flatten(files.document.get("normalizer"), where, items="normalizers"):
        spaces = _normalized(spaces, step, where)
    for step in flatten(files.document.get("pre_tokenizer"), where):
        scheme = step.get("prepend_scheme", "always")
        if step["type"] == "WhitespaceSplit" and spaces.charsmap and not (spaces.replaced or spaces.prefix):
            spaces = replace(spaces, inner=True, first=True, last=True, split=True)
        elif step["type"] == "Metaspace" and step.get("replacement", SPACE) == SPACE and not spaces.prefix:
            spaces = replace(
                spaces,
                replaced=True,
                prefix=scheme != "never",
                unless_there=scheme != "never",
                first_only=scheme == "first" and not spaces.split,
                split=spaces.split or step.get("split", True) is not False,
            )
        else:
            raise TokenizerError(
                f"{where}: the pre-tokenizer step {shown(step['type'])} splits where llama.cpp's Unigram does not"
            )
    if not spaces.replaced:
        raise TokenizerError(
            f"{where}: no step replaces spaces by '▁'; llama.cpp always does that in a Unigram vocabulary"
        )
    if spaces.inner and not spaces.prefix:
        raise TokenizerError(
            f"{where}: leaves one of several spaces without adding one before a text; llama.cpp adds one whenever it does that"
        )
    if (spaces.first or spaces.last) and not spaces.inner:
        raise TokenizerError(
            f"{where}: drops spaces at the ends of a text alone; llama.cpp drops them within it too, or none"
        )
    return spaces


def _normalized(spaces: _Spaces, step: Mapping[str, Any], where: str) -> _Spaces:
    """`spaces` after one more normalizer."""
    untouched = not (spaces.replaced or spaces.prefix)
    pattern, content = step.get("pattern"), step.get("content")
    if step["type"] == "Precompiled" and spaces == _Spaces():
        return replace(spaces, charsmap=_charsmap(step.get("precompiled_charsmap"), where))
    if step["type"] == "Replace" and untouched and pattern in INNER and content in (" ", SPACE):
        return replace(spaces, inner=True)
    if step["type"] == "Replace" and untouched and pattern == OUTER and content == "":
        return replace(spaces, first=True, last=True)
    # Strip drops any white space, of which the table of characters makes spaces (`white_space` tells of the rest).
    if step["type"] == "Strip" and untouched and spaces.charsmap:
        left, right = step.get("strip_left") is True, step.get("strip_right") is True
        return replace(spaces, first=spaces.first or left, last=spaces.last or right)
    if step["type"] == "Prepend" and step.get("prepend") == SPACE and untouched:
        return replace(spaces, prefix=True)
    if step["type"] == "Replace" and pattern == {"String": " "} and content == SPACE:
        return replace(spaces, replaced=True)
    raise TokenizerError(
        f"{where}: llama.cpp's Unigram tokenizer has no equivalent of the normalizer {shown(step['type'])} here; it has "
        "Precompiled, then Replace of several spaces by one, Prepend '▁' and Replace ' ' by '▁'"
    )


def _charsmap(value: object, where: str) -> bytes:
    """SentencePiece's table of characters. Raises CheckpointError if a text could lead out of it, where both libraries fail."""
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError as error:
        raise CheckpointError(f"{where}: precompiled_charsmap is not base64 ({error})") from error
    size = int.from_bytes(data[:4], "little")
    texts = data[4 + size :]
    if size % 4 or not texts.endswith(b"\0") or not _stays_within(data[4 : 4 + size], len(texts)):
        raise CheckpointError(
            f"{where}: precompiled_charsmap of {len(data)} bytes is broken; expected the length of a table, the table and texts"
        )
    return data


def _stays_within(table: bytes, texts: int) -> bool:
    """Whether no path through the table leads out of it, and its values lie within so many bytes of texts.

    The table is a double array of 32-bit units (darts-clone): the child of unit i for byte c is i ^ offset ^ c, and where bit 8
    is set, the unit i ^ offset holds a value, with bit 31 set (`xcda_array_view` of llama.cpp).
    """
    units = np.frombuffer(table, "<u4").astype(np.int64)
    inner = units < 1 << 31
    target = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))
    # A byte changes the last eight bits.
    if not len(units) or (target[inner] | 255).max(initial=0) >= len(units):
        return False
    leaves = target[inner & (units & 256 != 0)]
    return bool((units[leaves] >= 1 << 31).all() and ((units[~inner] & 0x7FFFFFFF) < texts).all())
