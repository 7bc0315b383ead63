"""The source's tokenizer as an object of the tokenizers library, set up to behave like `llama_tokenize`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import CheckpointError
from gguf_tools.tokenizers.files import TokenizerFiles, shown
from gguf_tools.tokenizers.unigram import is_unigram


def build_backend(files: TokenizerFiles, kinds: Mapping[int, TokenType]) -> tuple[HFTokenizer, HFTokenizer]:
    """Two tokenizers from the same files: the first treats control tokens in a text as plain text, the second parses them.

    Truncation, padding, dropout and the post-processor are switched off; `kinds` gives the type of each added token.
    Raises CheckpointError if the library rejects the file, or gives an added token another id than the file does.
    """
    added = [
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
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": files.document.get("normalizer"),
        "pre_tokenizer": files.document.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": files.document.get("decoder"),
        "model": dict(files.model) if is_unigram(files) else {**files.model, "type": "BPE", "dropout": None},
    }
    text = json.dumps(document)
    plain, parsing = _load(text, files), _load(text, files)
    plain.encode_special_tokens = True
    for token in files.added:
        got = parsing.token_to_id(token.content)
        if got != token.id:
            raise CheckpointError(
                f"{files.path}: the added token {shown(token.content)} has id {token.id}, but the tokenizers library gives it"
                f" id {got}; the ids of added tokens must follow those of the vocabulary without gaps"
            )
    return plain, parsing


def _load(text: str, files: TokenizerFiles) -> HFTokenizer:
    try:
        return HFTokenizer.from_str(text)
    except BaseException as error:
        # The library raises plain Exception for invalid files, and a BaseException if its Rust code panics.
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = shown(" ".join(str(error).split()), 200)
        raise CheckpointError(f"{files.path}: the tokenizers library rejects the file: {reason}") from error


def unreachable(backend: HFTokenizer, tokens: Iterable[str]) -> list[str]:
    """The tokens whose text the merges encode as more than that one token."""
    document = json.loads(backend.to_str())
    document["model"]["ignore_merges"] = False
    model = HFTokenizer.from_str(json.dumps(document)).model
    return [token for token in tokens if [part.value for part in model.tokenize(token)] != [token]]
