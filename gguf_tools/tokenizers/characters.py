"""nanoGPT's `meta.pkl`: every character is a token (`itos`, `stoi` of data/*_char/prepare.py).

In llama.cpp that is a byte-level BPE ("gpt2") whose only merges put a character together from its bytes. UTF-8 makes it exact: no
character's bytes begin another's, and no merge crosses from one character to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.formats.inert import PlainState
from gguf_tools.formats.plain_pickle import read_plain_pickle
from gguf_tools.text import shortened
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.form import Form
from gguf_tools.tokenizers.pretokenizers import Limit

NAME = "meta.pkl"
GPT2 = "gpt-2"
"""llama.cpp's name of a pre-tokenizer; any other would do, as none cuts a character."""


def put_together(data: bytes, path: Path) -> dict[str, Any]:
    """The equivalent tokenizer.json: a vocabulary of characters without merges.

    Raises CheckpointError where `itos` and `stoi` are not each other's inverse, TokenizerError for entries other than one
    character.
    """
    read = read_plain_pickle(data, path)
    if not isinstance(read, dict) or not isinstance(read.get("itos"), dict):
        raise CheckpointError(f"{path}: has no dict 'itos'; expected nanoGPT's meta.pkl with itos, stoi and vocab_size")
    vocab: dict[str, int] = {}
    for number, text in read["itos"].items():
        if type(number) is not int or not isinstance(text, str) or isinstance(text, PlainState):
            raise CheckpointError(
                f"{path}: itos has {_shown(number)}: {_shown(text)}; expected a token id and its character"
            )
        if len(text) != 1 or "\ud800" <= text <= "\udfff":
            raise TokenizerError(
                f"{path}: the token {number} is {_shown(text)}; expected one character; write the vocabulary as tokenizer.json"
            )
        if text in vocab:
            raise CheckpointError(f"{path}: the character {_shown(text)} has the ids {vocab[text]} and {number}")
        vocab[text] = number
    if not vocab:
        raise CheckpointError(f"{path}: itos has no characters; write the file again")
    inverse = read.get("stoi")
    if inverse is not None and inverse != vocab:
        raise CheckpointError(f"{path}: stoi is not the inverse of itos; write the file again")
    return {
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }


def _shown(value: object) -> str:
    return shortened(repr(value) if isinstance(value, str | int) else type(value).__name__, 40)


def convert_characters(vocab: Mapping[str, int], kinds: Mapping[int, TokenType]) -> Form:
    """The form of a vocabulary of characters: by the characters that stand for their bytes, with the merges of these."""
    stands_for = byte_characters()
    merges: dict[str, None] = {}
    ids = {}
    for text, number in vocab.items():
        spelled = "".join(stands_for[byte] for byte in text.encode("utf-8"))
        merges |= dict.fromkeys(f"{spelled[:cut]} {spelled[cut]}" for cut in range(1, len(spelled)))
        ids[spelled] = number
    others = Limit(
        f"the vocabulary has {len(vocab)} characters: llama.cpp leaves out all others, on which nanoGPT's code fails",
        lambda text: not vocab.keys() >= set(text),
    )
    return Form(model="gpt2", pre=GPT2, kinds=kinds, ids=ids, merges=tuple(merges), limits=(others,))
