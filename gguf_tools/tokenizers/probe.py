"""Proof on a text of many kinds that another implementation tokenizes as the source's tokenizer does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from tokenizers import normalizers

from gguf_tools.errors import TokenizerError

if TYPE_CHECKING:
    from gguf_tools.tokenizers.vocabulary import Tokenizer

Encode = Callable[[str, bool], list[int]]
"""Ids of a text; the second argument says whether control tokens in it are to be found (`parse_special`)."""

MAX_TRIES = 200
"""Encodings spent on making a difference small."""
MAX_SPECIAL = 256
"""Added tokens tried out (some vocabularies reserve thousands)."""
SHOWN = 6


def probe_pieces() -> list[str]:
    """The built-in text in pieces: code, numbers, contractions, spaces, many scripts, emoji."""
    pieces = json.loads(
        resources.files("gguf_tools.tokenizers").joinpath("data/probe.json").read_text(encoding="utf-8")
    )
    return [str(piece) for piece in pieces]


def probe(tokenizer: Tokenizer, encode_other: Encode, text: str | None = None) -> None:
    """Compares `encode_other` with the tokenizer on the probe text, piece by piece and whole, and on its added tokens.

    `text` replaces the built-in text, a line being a piece. Left out are pieces for which the two are known to differ
    (`tokenizer.limits`) and those with bytes that the vocabulary cannot spell; text is brought into NFC where the tokenizer
    does that. Raises TokenizerError with the smallest differing snippet found, and both sides' tokens around the first
    difference.
    """
    pieces = probe_pieces() if text is None else re.findall(r"[^\n]*\n|[^\n]+", text)
    for piece, special in _texts(tokenizer, pieces):
        if _differs(tokenizer, encode_other, piece, special):
            raise TokenizerError(
                _explain(tokenizer, encode_other, _shrink(tokenizer, encode_other, piece, special), special)
            )


def _texts(tokenizer: Tokenizer, pieces: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """What is compared, small texts first, and whether control tokens are to be found in it."""
    if tokenizer.nfc:
        pieces = [normalizers.NFC().normalize_str(piece) for piece in pieces]
    fair = [piece for piece in pieces if _fair(tokenizer, piece)]
    yield from ((piece, False) for piece in fair)
    yield from ((piece[:-1], False) for piece in fair if piece.endswith("\n") and _fair(tokenizer, piece[:-1]))
    yield "".join(fair), False
    tokens = [token for token in tokenizer.probe_tokens[:MAX_SPECIAL] if _fair(tokenizer, token)]
    if tokens:
        # Spaces on both sides of each, so that it shows which of them a token swallows.
        for marks in ("".join(f"x{token}y" for token in tokens), "\n".join(["", *tokens, ""])):
            yield marks, True
            yield marks, False


def _fair(tokenizer: Tokenizer, piece: str) -> bool:
    return tokenizer.bytes_known.issuperset(piece.encode("utf-8")) and not any(
        limit.affects(piece) for limit in tokenizer.limits
    )


def _differs(tokenizer: Tokenizer, encode_other: Encode, piece: str, special: bool) -> bool:
    return list(encode_other(piece, special)) != tokenizer.encode(piece, special=special)


def _shrink(tokenizer: Tokenizer, encode_other: Encode, piece: str, special: bool) -> str:
    """A part of `piece` that still differs: ends are cut off, by halves and then by less, while that lasts."""
    step, tries = len(piece) // 2, 0
    while step and tries < MAX_TRIES:
        for part in (piece[step:], piece[:-step]):
            tries += 1
            if part and _fair(tokenizer, part) and _differs(tokenizer, encode_other, part, special):
                piece = part
                break
        else:
            step //= 2
        step = min(step, len(piece) // 2 or 1) if len(piece) > 1 else 0
    return piece


def _explain(tokenizer: Tokenizer, encode_other: Encode, piece: str, special: bool) -> str:
    ours, theirs = tokenizer.encode(piece, special=special), list(encode_other(piece, special))
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    kind = f"{piece!r} (control tokens parsed)" if special else repr(piece)
    return (
        f"{tokenizer.path}: as {tokenizer.pre!r}, llama.cpp tokenizes {kind} otherwise, from token {first} on: it gives"
        f" {_listed(tokenizer, theirs, first)}, the tokenizer {_listed(tokenizer, ours, first)}"
    )


def _listed(tokenizer: Tokenizer, ids: Sequence[int], first: int) -> str:
    start = max(0, first - 1)
    names = [
        f"{number} {tokenizer.tokens[number]!r}" if 0 <= number < len(tokenizer.tokens) else f"{number} (no token)"
        for number in ids[start : start + SHOWN]
    ]
    before, after = "… " if start else "", " …" if start + SHOWN < len(ids) else ""
    return f"[{before}{', '.join(names)}{after}]"
