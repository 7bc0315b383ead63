"""The source's tokenizer as an object of the tokenizers library, set up to behave like `llama_tokenize`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import CheckpointError
from gguf_tools.tokenizers.files import TokenizerFiles, shown
from gguf_tools.tokenizers.unigram import is_unigram

NOT_ADDED = 0
"""The id that a tokenizer of `build_finder` gives for text between added tokens."""


def build_backend(files: TokenizerFiles, kinds: Mapping[int, TokenType]) -> tuple[HFTokenizer, HFTokenizer]:
    """Two tokenizers from the same files: the first treats control tokens in a text as plain text, the second parses them.

    Truncation, padding, dropout and the post-processor are switched off; `kinds` gives the type of each added token.
    Raises CheckpointError if the library rejects the file, or gives an added token another id than the file does.
    """
    document = {
        "truncation": None,
        "padding": None,
        "added_tokens": _added(files, kinds),
        "normalizer": files.document.get("normalizer"),
        "pre_tokenizer": files.document.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": files.document.get("decoder"),
        "model": dict(files.model) if is_unigram(files) else {**files.model, "type": "BPE", "dropout": None},
    }
    plain, parsing = _both(document, files)
    for token in files.added:
        got = parsing.token_to_id(token.content)
        if got != token.id:
            raise CheckpointError(
                f"{files.path}: the added token {shown(token.content)} has id {token.id}, but the tokenizers library gives it"
                f" id {got}; the ids of added tokens must follow those of the vocabulary without gaps"
            )
    return plain, parsing


def build_finder(files: TokenizerFiles, kinds: Mapping[int, TokenType]) -> tuple[HFTokenizer, HFTokenizer]:
    """As `build_backend`, but of a text they only find the added tokens: all else is `NOT_ADDED`.

    What added tokens strip, and whether they must be whole words, is left out.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    document = {
        "added_tokens": [{**token, **flags} for token in _added(files, kinds)],  # (the library numbers them anew)
        "normalizer": files.document.get("normalizer"),
        "model": {"type": "WordLevel", "vocab": {"": NOT_ADDED}, "unk_token": ""},
    }
    return _both(document, files)


def _added(files: TokenizerFiles, kinds: Mapping[int, TokenType]) -> list[dict[str, Any]]:
    """The added tokens as tokenizer.json lists them; special are those that llama.cpp finds only if it is told to."""
    return [
        {
            "id": token.id,
            "content": token.content,
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "special": kinds[token.id] in (TokenType.CONTROL, TokenType.UNKNOWN),
        }
        for token in files.added
        # (some trainers list byte tokens as special tokens; llama.cpp never matches "<0x41>" in a text)
        if kinds[token.id] != TokenType.BYTE
    ]


def _both(document: Mapping[str, Any], files: TokenizerFiles) -> tuple[HFTokenizer, HFTokenizer]:
    """The tokenizer twice: one that treats control tokens as plain text, and one that parses them."""
    text = json.dumps({"version": "1.0", **document})
    plain, parsing = _load(text, files), _load(text, files)
    plain.encode_special_tokens = True
    return plain, parsing


def _load(text: str, files: TokenizerFiles) -> HFTokenizer:
    with guarded(files.path, "rejects the file"):
        return HFTokenizer.from_str(text)


@contextmanager
def guarded(path: Path, does: str = "fails on a text") -> Iterator[None]:
    """Turns failures of the tokenizers library, plain Exceptions and panics of its Rust code, into one line."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = shown(" ".join(str(error).split()), 200)
        raise CheckpointError(f"{path}: the tokenizers library {does}: {reason}") from error


def unreachable(backend: HFTokenizer, tokens: Iterable[str]) -> list[str]:
    """The tokens whose text the merges encode as more than that one token."""
    document = json.loads(backend.to_str())
    document["model"]["ignore_merges"] = False
    model = HFTokenizer.from_str(json.dumps(document)).model
    return [token for token in tokens if [part.value for part in model.tokenize(token)] != [token]]
