"""Checks on a varied text that another implementation gives the same token ids as the source's tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from tokenizers import normalizers

from gguf_tools.errors import TokenizerError
from gguf_tools.tokenizers.backend import guarded

if TYPE_CHECKING:
    from gguf_tools.tokenizers.vocabulary import Tokenizer

Encode = Callable[[str, bool], list[int]]
"""(text, whether control tokens in it are parsed, as by `parse_special` of llama.cpp) → token ids."""

MAX_TRIES = 200
"""Upper bound on the encodings used to shorten a differing text."""
MAX_SPECIAL = 256
"""Upper bound on the added tokens that are compared (some vocabularies reserve thousands)."""
SHOWN = 6


def probe_pieces() -> list[str]:
    """The pieces of the built-in text: code, numbers, contractions, spaces, many scripts, emoji."""
    pieces = json.loads(
        resources.files("gguf_tools.tokenizers").joinpath("data/probe.json").read_text(encoding="utf-8")
    )
    return [str(piece) for piece in pieces]


def probe(tokenizer: Tokenizer, encode_other: Encode, text: str | None = None) -> None:
    """Compare `encode_other` with the tokenizer on the probe text, by pieces and as a whole, and on the added tokens.

    `text` replaces the built-in text; each line is a piece. Pieces on which the two are known to differ
    (`tokenizer.limits`) are left out, and so are those with bytes that the vocabulary has no token for. The text is
    normalized to NFC if the tokenizer does so. Raises TokenizerError with a short snippet that differs, and both sides'
    tokens around the first difference.
    """
    pieces = probe_pieces() if text is None else re.findall(r"[^\n]*\n|[^\n]+", text)
    for piece, special in _texts(tokenizer, pieces):
        if _differs(tokenizer, encode_other, piece, special):
            raise TokenizerError(
                _explain(tokenizer, encode_other, _shrink(tokenizer, encode_other, piece, special), special)
            )


def _texts(tokenizer: Tokenizer, pieces: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The texts to compare, short ones first, each with whether control tokens in it are parsed."""
    tokens = list(tokenizer.probe_tokens)
    if tokenizer.nfc:
        pieces = [normalizers.NFC().normalize_str(piece) for piece in pieces]
        tokens = [token for token in tokens if normalizers.NFC().normalize_str(token) == token]
    fair = [piece for piece in pieces if _fair(tokenizer, piece)]
    yield from ((piece, False) for piece in fair)
    yield from ((piece[:-1], False) for piece in fair if piece.endswith("\n") and _fair(tokenizer, piece[:-1]))
    whole = "".join(fair)
    if _fair(tokenizer, whole):
        yield whole, False
    tokens = [token for token in tokens[:MAX_SPECIAL] if _fair(tokenizer, token)]
    if tokens:
        # With other text on both sides, and with line ends on both sides, which a token may strip.
        for around in ("x{}y", "\n{}\n"):
            each = [around.format(token) for token in tokens]
            marks = "".join(each)
            for text in [marks] if _fair(tokenizer, marks) else [one for one in each if _fair(tokenizer, one)]:
                yield text, True
                yield text, False


def _fair(tokenizer: Tokenizer, piece: str) -> bool:
    with guarded(tokenizer.path):
        return tokenizer.bytes_known.issuperset(piece.encode("utf-8")) and not any(
            limit.affects(piece) for limit in tokenizer.limits
        )


def _differs(tokenizer: Tokenizer, encode_other: Encode, piece: str, special: bool) -> bool:
    return list(encode_other(piece, special)) != tokenizer.encode(piece, special=special)


def _shrink(tokenizer: Tokenizer, encode_other: Encode, piece: str, special: bool) -> str:
    """A short substring of `piece` that still differs: cuts off either end by half the length, then by less."""
    step, tries = len(piece) // 2, 0
    while step and tries < MAX_TRIES:
        for part in (piece[step:], piece[:-step]):
            tries += 1
            if part and _fair(tokenizer, part) and _differs(tokenizer, encode_other, part, special):
                piece = part
                break
        else:
            step //= 2
    return piece


def _explain(tokenizer: Tokenizer, encode_other: Encode, piece: str, special: bool) -> str:
    ours, theirs = tokenizer.encode(piece, special=special), list(encode_other(piece, special))
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    kind = f"{piece!r} (control tokens parsed)" if special else repr(piece)
    return (
        f"{tokenizer.path}: with pre-tokenizer {tokenizer.pre!r}, llama.cpp tokenizes {kind} differently from token {first} on:"
        f" it gives {_listed(tokenizer, theirs, first)}, the tokenizer {_listed(tokenizer, ours, first)}"
    )


def _listed(tokenizer: Tokenizer, ids: Sequence[int], first: int) -> str:
    start = max(0, first - 1)
    names = [
        f"{number} {tokenizer.tokens[number]!r}" if 0 <= number < len(tokenizer.tokens) else f"{number} (no token)"
        for number in ids[start : start + SHOWN]
    ]
    before, after = "… " if start else "", " …" if start + SHOWN < len(ids) else ""
    return f"[{before}{', '.join(names)}{after}]"
