"""The tokenizers library's side: the source's own tokenizer, set up to do what `llama_tokenize` is asked to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import CheckpointError
from gguf_tools.tokenizers.files import TokenizerFiles, shown


def build_backend(files: TokenizerFiles, kinds: Mapping[int, TokenType]) -> tuple[HFTokenizer, HFTokenizer]:
    """Two tokenizers of the same files: one that takes control tokens in a text for text, one that finds them.

    Truncation, padding, dropout and the post-processor are left out; `kinds` decides which added tokens are control tokens.
    Raises CheckpointError if the library refuses the file, or numbers an added token in another way than the file does.
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
        # (some trainers list byte tokens among the special ones; llama.cpp finds "<0x41>" in no text)
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
        "model": {**files.model, "type": "BPE", "dropout": None},
    }
    text = json.dumps(document)
    plain, parsing = _load(text, files), _load(text, files)
    plain.encode_special_tokens = True
    for token in files.added:
        got = parsing.token_to_id(token.content)
        if got != token.id:
            raise CheckpointError(
                f"{files.path}: the added token {shown(token.content)} has id {token.id}, but the tokenizers library numbers it"
                f" {got}; ids of added tokens must follow the vocabulary's without gaps"
            )
    return plain, parsing


def _load(text: str, files: TokenizerFiles) -> HFTokenizer:
    try:
        return HFTokenizer.from_str(text)
    except BaseException as error:
        # The library reports what it refuses as a plain Exception, and a panic of its Rust code as a BaseException.
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = shown(" ".join(str(error).split()), 200)
        raise CheckpointError(f"{files.path}: the tokenizers library refuses it: {reason}") from error


def unreachable(backend: HFTokenizer, tokens: Iterable[str]) -> list[str]:
    """The tokens whose text the merges do not bring back to the one token."""
    document = json.loads(backend.to_str())
    document["model"]["ignore_merges"] = False
    model = HFTokenizer.from_str(json.dumps(document)).model
    return [token for token in tokens if [part.value for part in model.tokenize(token)] != [token]]
