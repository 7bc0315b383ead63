"""Keeps llama.cpp from recognising a model by its `general.name`, which changes how it tokenizes.

Source: `llama_vocab::impl::load` of llama.cpp (src/llama-vocab.cpp, "set attributes by model/tokenizer/architecture name").
If the name contains "phi-3" or "phi3" (ignoring case), all special tokens but three strip the spaces after them (rstrip), and
loading fails if the vocabulary lacks one of four tokens. If it contains "modern-bert", [MASK] strips the spaces before it
(lstrip). llama.cpp reads no other free text of the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gguf.constants import TokenType

from gguf_tools.errors import TinyqError
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.text import shortened
from gguf_tools.tokenizers.special import FORCED_CONTROL, FORCED_TEXT

if TYPE_CHECKING:
    from gguf_tools.tokenizers.vocabulary import Tokenizer

NAME = "general.name"
KEEP_SPACES = ("<unk>", "<s>", "<|endoftext|>")
"""Special tokens that do not strip the spaces after them in a model named Phi-3."""
REQUIRED = ("</s>", *KEEP_SPACES)
"""Tokens without which llama.cpp does not load a model named Phi-3."""
MASK = "[MASK]"

_PHI3 = re.compile("(phi)-?(3)", re.IGNORECASE | re.ASCII)
_MODERN_BERT = re.compile("(modern)-(bert)", re.IGNORECASE | re.ASCII)
_NAMED_ELSEWHERE = ("jina-v2-de", "jina-v2-es", "jina-v2-code"), ("nomic-bert-moe", "jina-bert-v3")
"""Pre-tokenizers and architectures that llama.cpp checks first; if one of them matches, it does not read the name."""
_SPECIAL = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


@dataclass(frozen=True)
class SettledName:
    """The name to write, the tokenizer as llama.cpp reads it under that name, and notes on what was changed."""

    name: str
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()


def settled_name(name: str, tokenizer: Tokenizer) -> SettledName:
    """`name` itself if llama.cpp tokenizes correctly under it; otherwise a changed name that it does not recognise."""
    if not _means_something(name):
        return SettledName(name, tokenizer)
    missing = _missing(name, tokenizer.tokens)
    special = {
        text
        for text, kind in zip(tokenizer.tokens, tokenizer.token_types, strict=True)
        if kind in _SPECIAL or text in FORCED_CONTROL or text in FORCED_TEXT
    }
    left, right = _stripping(name, special)
    had = tokenizer.stripping
    if not missing and (left, right) == (had.left & special, had.right & special):
        notes = tuple(note for note in tokenizer.notes if note != had.note)
        limits = tuple(limit for limit in tokenizer.limits if limit.note != had.note)
        probes = (*tokenizer.probe_tokens, *had.probes)
        return SettledName(name, replace(tokenizer, notes=notes, limits=limits, probe_tokens=probes))
    if not missing and not left and not right:
        return SettledName(name, tokenizer)
    plain = plain_name(name)
    if missing:
        why = f"does not load the vocabulary, which has no {_listed(missing)}"
    else:
        where = "after special tokens" if right else f"before {MASK}"
        why = f"strips spaces {where}, unlike this tokenizer"
    return SettledName(plain, tokenizer, (_renamed(name, plain, why),))


def plain_name(name: str) -> str:
    """The name with a space inserted, so that llama.cpp does not recognise a model: "my-phi3" becomes "my-phi 3"."""
    return _MODERN_BERT.sub(r"\1 \2", _PHI3.sub(r"\1 \2", name))


def refused_name(path: Path) -> str | None:
    """Why llama.cpp does not load a GGUF file because of its name, and what to do; None for all other files."""
    try:
        name, missing = _refused(read_header(path).get)
    except TinyqError:
        return None
    if not missing:
        return None
    return (
        f"{NAME} is {_quoted(name)}, which llama.cpp recognises as Phi-3, but the vocabulary has no {_listed(missing)}: give "
        "the model another name, as tinyq quantize and tinyq surgery do"
    )


def repaired_name(get: Callable[[str], object]) -> tuple[str, str] | None:
    """A new name for a GGUF that llama.cpp does not load because of its name, and a note; None for all other files."""
    name, missing = _refused(get)
    if not missing:
        return None
    plain = plain_name(name)
    return plain, _renamed(name, plain, f"does not load the vocabulary, which has no {_listed(missing)}")


def _refused(get: Callable[[str], object]) -> tuple[str, tuple[str, ...]]:
    name = get(NAME)
    if not isinstance(name, str) or not _means_something(name):
        return "", ()
    texts = (get("tokenizer.ggml.pre"), get("general.architecture"))
    named = any(part in str(text) for text, parts in zip(texts, _NAMED_ELSEWHERE, strict=True) for part in parts)
    tokens = get("tokenizer.ggml.tokens")
    if named or not isinstance(tokens, tuple | list) or get("tokenizer.ggml.model") in ("none", "no_vocab"):
        return name, ()
    return name, _missing(name, tokens)


def _means_something(name: str) -> bool:
    return bool(_PHI3.search(name) or _MODERN_BERT.search(name))


def _missing(name: str, tokens: Collection[str]) -> tuple[str, ...]:
    if not _PHI3.search(name):
        return ()
    present = set(tokens)
    return tuple(text for text in REQUIRED if text not in present)


def _stripping(name: str, special: Collection[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The special tokens before and after which llama.cpp strips spaces because of the name."""
    if _PHI3.search(name):
        return frozenset(), frozenset(special) - frozenset(KEEP_SPACES)
    return frozenset(special) & {MASK}, frozenset()


def _renamed(name: str, plain: str, why: str) -> str:
    model = "Phi-3" if _PHI3.search(name) else "ModernBERT"
    return f"{NAME} is {_quoted(plain)}, not {_quoted(name)}: llama.cpp recognises the latter as {model} and {why}"


def _quoted(name: str) -> str:
    return repr(shortened(name, 60))


def _listed(tokens: Collection[str]) -> str:
    return ", ".join(tokens)
