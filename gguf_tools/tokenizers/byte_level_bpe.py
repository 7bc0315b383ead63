"""Byte-level BPE (GPT-2's characters for bytes): the regexes of tokenizer.json decide which pre-tokenizer of llama.cpp it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import TokenizerError
from gguf_tools.tokenizers import digits, pretokenizers
from gguf_tools.tokenizers.backend import build_backend, unreachable
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.files import TokenizerFiles, shown
from gguf_tools.tokenizers.form import Form
from gguf_tools.tokenizers.pretokenizers import Limit


def convert_byte_level(
    files: TokenizerFiles, kinds: Mapping[int, TokenType], *, approximate: bool
) -> tuple[Form, tuple[HFTokenizer, HFTokenizer]]:
    """The form of a byte-level BPE, and its backends (`build_backend`).

    Raises TokenizerError for a normalizer other than NFC, or a pre-tokenizer that llama.cpp does not have; with `approximate`
    the nearest one is accepted for digits cut in twos.
    """
    where, notes = str(files.path), list[str]()
    nfc = pretokenizers.normalizes_to_nfc(files.document.get("normalizer"), where)
    steps = pretokenizers.split_steps(files.document.get("pre_tokenizer"), where)
    plain, parsing = build_backend(files, kinds)
    threes = digits.in_threes(steps, where)
    if threes and approximate:
        pre, limits = _pre_tokenizer(files, threes, plain)
        limits = (*limits, digits.measured(files, kinds, plain, pre))
    else:
        pre, limits = _exact(files, steps, plain, threes)
    if strays := _whole_pieces(files, kinds, plain, pre):
        limits = (*limits, strays)
    merges = _byte_level_merges(files, notes)
    bytes_known = _bytes_known(files, notes)
    if nfc:
        notes.append(
            "the tokenizer normalizes text to NFC, llama.cpp does not: text in another form is tokenized differently"
        )
    form = Form(
        model="gpt2",
        pre=pre,
        kinds=kinds,
        merges=merges,
        limits=limits,
        nfc=nfc,
        bytes_known=bytes_known,
        approximation=f"digits cut in threes, not in twos ({pre})" if threes and approximate else None,
        notes=tuple(notes),
    )
    return form, (plain, parsing)


def _exact(
    files: TokenizerFiles, steps: Sequence[str], plain: HFTokenizer, threes: Sequence[str] | None
) -> tuple[str, tuple[Limit, ...]]:
    """As `_pre_tokenizer`; the error offers the one for the regexes `threes`, if there is one."""
    try:
        return _pre_tokenizer(files, steps, plain)
    except TokenizerError as error:
        if threes is None:
            raise
        name, _ = _pre_tokenizer(files, threes, plain)
        raise TokenizerError(
            f"{error}; --allow-approximate accepts {name!r}, which cuts digits in threes: numbers of three digits and more may "
            "be tokenized differently"
        ) from None


def _pre_tokenizer(files: TokenizerFiles, steps: Sequence[str], plain: HFTokenizer) -> tuple[str, tuple[Limit, ...]]:
    """llama.cpp's name for the pre-tokenizer, which also decides whether it ignores merges, and its limits.

    Raises TokenizerError if llama.cpp has no pre-tokenizer with these regexes and this ignore_merges.
    """
    where = str(files.path)
    wanted = files.model.get("ignore_merges", False)
    rows = pretokenizers.find(steps, where)
    row = rows[0]
    if row.ignore_merges != wanted:
        # ignore_merges makes no difference if merging gives every entry of the vocabulary.
        lost = unreachable(plain, files.vocab)
        if lost:
            exact = [other for other in rows if other.ignore_merges == wanted]
            if not exact:
                does = "is off with" if wanted else "is on with"
                raise TokenizerError(
                    f"{where}: model.ignore_merges is {str(wanted).lower()}, and {len(lost)} tokens, such as"
                    f" {shown(lost[0])}, do not result from merging their text; in llama.cpp the pre-tokenizer's name decides"
                    f" about ignore_merges, and it {does} {row.name!r}"
                )
            row = exact[0]
    return row.name, () if row.limit is None else (row.limit,)


def _whole_pieces(files: TokenizerFiles, kinds: Mapping[int, TokenType], plain: HFTokenizer, name: str) -> Limit | None:
    """Added tokens that llama.cpp also takes for a piece of plain text that spells them.

    Where it ignores merges it looks whole pieces up, else what merging gives, single bytes that is. It does so among all tokens,
    the tokenizers library in `model.vocab`, both by the characters that stand for bytes.
    """
    ignores = any(row.ignore_merges for row in pretokenizers.TABLE if row.name == name)
    stands_for = byte_characters()
    byte_of = {char: byte for byte, char in enumerate(stands_for)}
    tokens = []
    for token in files.added:
        if token.content in files.vocab or not byte_of.keys() >= set(token.content):
            continue
        spelled = bytes(byte_of[char] for char in token.content).decode("utf-8", "replace")
        # One of the user's own that is spelled as it is stored is cut out of any text before.
        if kinds[token.id] == TokenType.USER_DEFINED and spelled == token.content:
            continue
        if len(token.content) == 1 or (ignores and len(plain.pre_tokenizer.pre_tokenize_str(spelled)) == 1):
            tokens.append((token.content, spelled))
    if not tokens:
        return None
    return Limit(
        f"llama.cpp also matches {shown(tokens[0][0])} where plain text has {shown(tokens[0][1])}, the tokenizer does not",
        lambda text: any(spelled in text for _, spelled in tokens),
    )


def _byte_level_merges(files: TokenizerFiles, notes: list[str]) -> tuple[str, ...]:
    """The merges as llama.cpp reads them: split at the first space; the first of equal merges counts."""
    spaced = sum(" " in left or " " in right for left, right in files.merges)
    if spaced:
        notes.append(f"{spaced} merges have tokens with a space, which byte-level text never contains: left out")
    # Of equal merges the tokenizers library keeps the last one (it fills a hash map in order).
    last = {pair: rank for rank, pair in enumerate(files.merges)}
    if len(last) < len(files.merges):
        notes.append(
            f"{len(files.merges) - len(last)} merges are listed twice: the later rank is used, as the tokenizer does"
        )
    kept = [pair for rank, pair in enumerate(files.merges) if last[pair] == rank]
    return tuple(f"{left} {right}" for left, right in kept if " " not in left and " " not in right)


def _bytes_known(files: TokenizerFiles, notes: list[str]) -> frozenset[int]:
    """The bytes that have a token. Both sides drop other bytes, but only tokenizers merges across the gap."""
    known = frozenset(byte for byte, char in enumerate(byte_characters()) if char in files.vocab)
    # UTF-8 uses neither C0, C1 nor F5 to FF
    missing = [byte for byte in range(0xF5) if byte not in known and byte not in (0xC0, 0xC1)]
    if missing:
        what = "llama.cpp drops" if files.model.get("unk_token") is not None else "both sides drop, not always alike"
        notes.append(f"the vocabulary has no token for {len(missing)} of 256 bytes, which {what}")
    return known
