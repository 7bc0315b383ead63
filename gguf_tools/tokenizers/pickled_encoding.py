"""nanochat's `tokenizer.pkl`: a pickled `tiktoken.Encoding`, of which the state is read as data and nothing is run.

Source: openai/tiktoken, `core.py` (`Encoding.__getstate__`: name, pat_str, mergeable_ranks, special_tokens); karpathy/nanochat,
`nanochat/tokenizer.py` (every text begins with <|bos|>, and an answer ends at <|assistant_end|> or the next <|bos|>).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.formats.inert import PlainState
from gguf_tools.formats.plain_pickle import read_plain_pickle
from gguf_tools.text import shortened
from gguf_tools.tokenizers import rank_model

NAME = "tokenizer.pkl"
CLASS = "tiktoken.core.Encoding"
BOS, ANSWER_END, TEXT_END = "<|bos|>", "<|assistant_end|>", "<|endoftext|>"
EXPORT = (
    "write it as plain data: `import pickle; enc = pickle.load(open('tokenizer.pkl', 'rb')); pickle.dump({'pat_str': "
    "enc._pat_str, 'mergeable_ranks': enc._mergeable_ranks, 'special_tokens': enc._special_tokens}, "
    "open('plain/tokenizer.pkl', 'wb'))`"
)


def put_together(data: bytes, path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What tokenizer.json would hold, and `config` with the special tokens of nanochat or GPT-2, where they are there.

    The file holds the object, or a dict of its state. Raises CheckpointError for other contents, TokenizerError for an encoding
    that is pickled by its name alone.
    """
    read = read_plain_pickle(data, path, {CLASS})
    state = read.values if isinstance(read, PlainState) else read
    if isinstance(read, PlainState) and not state:
        raise TokenizerError(f"{path}: holds an encoding of tiktoken by its name alone, without its tokens; {EXPORT}")
    if not isinstance(state, dict) or not {"pat_str", "mergeable_ranks", "special_tokens"} <= state.keys():
        raise CheckpointError(f"{path}: holds no tiktoken.Encoding; {EXPORT}")
    pattern, ranks, special = state["pat_str"], state["mergeable_ranks"], state["special_tokens"]
    if not isinstance(pattern, str):
        raise CheckpointError(f"{path}: pat_str is a {type(pattern).__name__}; expected a text")
    _check(ranks, bytes, "mergeable_ranks", path)
    _check(special, str, "special_tokens", path)
    rank_model.check_bytes(ranks, path)
    known = {text for text in (BOS, ANSWER_END, TEXT_END) if text in special}
    own: dict[str, Any] = {}
    if BOS in known:
        own |= {"bos_token": BOS, "eos_token": ANSWER_END if ANSWER_END in known else BOS, "add_bos_token": True}
    elif TEXT_END in known:
        own |= {"bos_token": TEXT_END, "eos_token": TEXT_END, "add_bos_token": False}
    return rank_model.document(ranks, pattern, special), {**own, **config}


def ends(document: Mapping[str, Any]) -> dict[str, list[int]]:
    """What generation_config.json would say: an answer of nanochat ends at either of two tokens."""
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    return {"eos_token_id": [ids[ANSWER_END], ids[BOS]]} if {BOS, ANSWER_END} <= ids.keys() else {}


def _check(entries: object, kind: type, key: str, path: Path) -> None:
    """Raise CheckpointError unless `entries` maps texts or byte strings of 1 to LONGEST bytes to numbers from 0."""
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: {key} is a {type(entries).__name__}; expected a dict")
    for token, number in entries.items():
        fits = isinstance(token, kind) and 0 < len(token) <= rank_model.LONGEST  # type: ignore[arg-type]
        if not fits or type(number) is not int or not 0 <= number < 1 << 31:
            what = f"{shortened(repr(token), 40)}: {shortened(repr(number), 20)}"
            raise CheckpointError(
                f"{path}: {key} has {what}; expected a token of 1 to {rank_model.LONGEST} bytes and its id"
            )
