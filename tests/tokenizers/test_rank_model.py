"""Llama 3's tokenizer.model, held against tiktoken and llama.cpp."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken._educational import bpe_train

from gguf_tools.errors import CheckpointError
from gguf_tools.tokenizers.probe import probe, probe_pieces
from gguf_tools.tokenizers.rank_model import PATTERN, RESERVED, SPECIAL
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from tests.tokenizers.tokenizers_for_tests import llama_vocabulary

BASE = 700
SIZE = BASE + RESERVED + 4
TEXT = st.lists(
    st.sampled_from(["the", " the", "  ", "\n", "'s", "123456", "é", "中", "😀"]) | st.text(max_size=3)
).map("".join)


@cache
def ranks() -> dict[bytes, int]:
    text = "the quick brown fox jumps over the lazy dog; there are 1234 foxes, aaaa aaab naïve café 中文中文\n" * 20
    return dict(bpe_train(text + "".join(probe_pieces()), BASE, PATTERN, visualise=None))


@cache
def theirs() -> tiktoken.Encoding:
    special = {text: BASE + n for n, text in enumerate(SPECIAL)}
    return tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=ranks(), special_tokens=special)


def lines(change: dict[int, bytes] | None = None) -> bytes:
    each = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks().items()]
    for number, line in (change or {}).items():
        each[number] = line
    return b"\n".join(each) + b"\n"


def written(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("ranks") / "tokenizer", lines())


def test_cuts_text_as_tiktoken(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, SIZE)
    for text in probe_pieces():
        assert tokenizer.encode(text) == theirs().encode(text, disallowed_special=()), text
    marked = "<|begin_of_text|>hi<|eot_id|>"
    assert tokenizer.encode(marked, special=True) == theirs().encode(marked, allowed_special="all")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (BASE, BASE + 1, True)
    assert (tokenizer.model, tokenizer.pre) == ("gpt2", "llama-bpe")
    assert tokenizer.tokens[BASE + RESERVED - 1] == "<|reserved_special_token_245|>"
    probe(tokenizer, llama_vocabulary(folder, tokenizer).encode)


@settings(max_examples=80)
@given(text=TEXT)
def test_any_text(folder: Path, text: str) -> None:
    assert load_cached(folder).encode(text) == theirs().encode(text, disallowed_special=())


@cache
def load_cached(folder: Path):  # type: ignore[no-untyped-def]
    return load_tokenizer(folder, SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({300: b"not a line"}, "line 301 is b'not a line'; expected base64 and a rank"),
        ({300: b"YWJj " + b"9" * 5000}, "line 301 is .*; expected base64 and a rank"),
        ({300: b"YQ 300"}, "line 301 .*not base64"),
        ({300: b"YWJj 7"}, "line 301 .*with the rank 300"),
        ({300: b"YQ== 300"}, "line 301 .*a token of its own"),
        ({97: b"enp6eg== 97"}, "has no token for the byte"),
    ],
)
def test_broken_lines(tmp_path: Path, change: dict[int, bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(written(tmp_path, lines(change)), SIZE)
    assert "\n" not in str(error.value)
