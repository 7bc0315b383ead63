"""Llama 3's tokenizer.model, held against tiktoken and llama.cpp."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import TikTokenConverter

from gguf_tools.errors import CheckpointError
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.probe import probe, probe_pieces
from gguf_tools.tokenizers.rank_model import LONGEST, PATTERN, RESERVED, SPECIAL, is_rank_model, put_together
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from tests.tokenizers.tokenizers_for_tests import llama_vocabulary, regex_split, train_byte_level

BASE = 700
SIZE = BASE + RESERVED + 4
TEXT = st.lists(
    st.sampled_from(["the", " the", "  ", "\n", "'s", "123456", "é", "中", "😀"]) | st.text(max_size=3)
).map("".join)


@cache
def ranks() -> dict[bytes, int]:
    """A vocabulary trained with Llama 3's pattern: all bytes, then what merges give, in order."""
    back = {char: byte for byte, char in enumerate(byte_characters())}
    trained = json.loads(train_byte_level(regex_split(PATTERN), BASE + 100).to_str())["model"]
    merged = dict.fromkeys(bytes(back[char] for char in left + right) for left, right in trained["merges"])
    tokens = [*(bytes([byte]) for byte in range(256)), *merged][:BASE]
    return {token: rank for rank, token in enumerate(tokens)}


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


def test_transformers_makes_the_same_of_it(folder: Path) -> None:
    path = folder / "tokenizer.model"
    special = list(SPECIAL)
    converter = TikTokenConverter(str(path), PATTERN, add_prefix_space=False, extra_special_tokens=special)  # type: ignore[no-untyped-call]
    theirs = json.loads(converter.converted().to_str())
    ours, _ = put_together(path.read_bytes(), path, {})
    for key in ("normalizer", "pre_tokenizer"):
        assert ours[key] == theirs[key]
    assert ours["decoder"]["type"] == theirs["decoder"]["type"]
    assert ours["added_tokens"][: len(SPECIAL)] == theirs["added_tokens"]
    for key in ("type", "ignore_merges", "vocab", "merges"):
        assert ours["model"][key] == theirs["model"][key], key


def test_all_special_tokens_have_a_name_of_their_own(folder: Path) -> None:
    made, config = put_together(lines(), folder, {"eos_token": "<|eot_id|>"})
    names = [token["content"] for token in made["added_tokens"]]
    assert [token["id"] for token in made["added_tokens"]] == list(range(BASE, BASE + RESERVED))
    assert len(set(names)) == RESERVED
    assert names[len(SPECIAL) : len(SPECIAL) + 2] == ["<|reserved_special_token_2|>", "<|reserved_special_token_3|>"]
    assert config == {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "add_bos_token": True}


@pytest.mark.parametrize("size", [LONGEST, LONGEST + 1])
def test_the_longest_token(folder: Path, size: int) -> None:
    data = lines() + base64.b64encode(b"x" * size) + b" %d\n" % BASE
    if size == LONGEST:
        made, _ = put_together(data, folder, {})
        assert made["model"]["vocab"]["x" * size] == BASE
    else:
        with pytest.raises(CheckpointError, match=f"line {BASE + 1} .* 1 to 512 bytes .*rank {BASE}"):
            put_together(data, folder, {})


def test_empty_lines_and_carriage_returns_say_nothing(folder: Path) -> None:
    plain = put_together(lines(), folder, {})
    assert put_together(b"\n \n" + lines().replace(b"\n", b"\r\n"), folder, {}) == plain


@pytest.mark.parametrize("byte", [0, 97, 255])
def test_every_byte_has_a_token(folder: Path, byte: int) -> None:
    ranked = [token for token in ranks() if token != bytes([byte])]
    data = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranked))
    with pytest.raises(CheckpointError, match=f"has no token for the byte {byte};"):
        put_together(data, folder, {})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"YQ== 0\nnothing else", True),
        (b"YQ== 0\r\n", True),
        (b"YQ== 0", True),
        (b"\nYQ== 0", False),
        (b"{}", False),
        (b"A" * 4094 + b" 1", True),
        (b"A" * 4095 + b" 1", False),
    ],
)
def test_how_such_a_file_begins(data: bytes, expected: bool) -> None:
    assert is_rank_model(data) is expected
