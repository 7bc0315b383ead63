"""The form of a vocabulary in a GGUF: which of llama.cpp's tokenizers it is for, and the data that this one reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf.constants import TokenType

from gguf_tools.tokenizers.pretokenizers import Limit


@dataclass(frozen=True, kw_only=True)
class Form:
    """What `convert_…` of each kind of tokenizer gives.

    `model` and `pre` are llama.cpp's names; `kinds` are the types of the tokens that are not normal ones. `ids` are the tokens
    by their text in the GGUF, or None where it is the source's. `sections`: whether both sides tokenize the text after a control
    token alike. `strays`: added tokens that llama.cpp also merges from ordinary pieces if a text spells them out. `nfc`,
    `bytes_known`, `limits` and `approximation` are those of `Tokenizer`.
    """

    model: str
    pre: str
    kinds: Mapping[int, TokenType]
    ids: Mapping[str, int] | None = None
    scores: Mapping[int, float] | None = None
    merges: tuple[str, ...] = ()
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    charsmap: bytes = b""
    limits: tuple[Limit, ...] = ()
    sections: bool = True
    strays: frozenset[str] = frozenset()
    nfc: bool = False
    bytes_known: frozenset[int] = frozenset(range(256))
    approximation: str | None = None
    notes: tuple[str, ...] = ()
