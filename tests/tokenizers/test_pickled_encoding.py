"""nanochat's tokenizer.pkl, held against tiktoken, and its digits in twos, which llama.cpp cuts in threes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_tools.conversion.plan import open_source, prepare
from gguf_tools.conversion.request import Request
from gguf_tools.errors import CheckpointError, InputError, TokenizerError
from gguf_tools.families.registry import family_named
from gguf_tools.formats.gguf import keys
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.digits import has_long_number
from gguf_tools.tokenizers.pickled_encoding import NAME, ends, put_together
from gguf_tools.tokenizers.probe import probe, probe_pieces
from gguf_tools.tokenizers.rank_model import LONGEST
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import LlamaVocabulary, llama_vocabulary, regex_split, train_byte_level

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL = ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>")


def ranks() -> dict[bytes, int]:
    """A vocabulary trained with the pattern: all bytes, then what merges give, in order."""
    back = {char: byte for byte, char in enumerate(byte_characters())}
    trained = json.loads(train_byte_level(regex_split(PATTERN), 700).to_str())["model"]
    merged = [bytes(back[char] for char in left + right) for left, right in trained["merges"]]
    return {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *dict.fromkeys(merged)])}


RANKS = ranks()
ENCODING = tiktoken.Encoding(
    name="tiny",
    pat_str=PATTERN,
    mergeable_ranks=RANKS,
    special_tokens={text: len(RANKS) + n for n, text in enumerate(SPECIAL)},
)
ROWS = len(RANKS) + len(SPECIAL) + 3
TEXT = st.lists(
    st.sampled_from([*probe_pieces(), "12", "7", "2024", " 365", "the", "\n", "'s", "é"]) | st.text(max_size=4)
).map("".join)


def written(folder: Path, value: object = ENCODING) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(pickle.dumps(value))
    return folder


_LOADED: list[tuple[Tokenizer, LlamaVocabulary]] = []


def loaded(factory: pytest.TempPathFactory) -> tuple[Tokenizer, LlamaVocabulary]:
    if not _LOADED:
        folder = written(factory.mktemp("encoding"))
        tokenizer = load_tokenizer(folder, ROWS, approximate=True)
        _LOADED.append((tokenizer, llama_vocabulary(folder, tokenizer)))
    return _LOADED[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(text=TEXT)
def test_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    tokenizer, vocabulary = loaded(tmp_path_factory)
    wanted = ENCODING.encode(text, disallowed_special=())
    assert tokenizer.encode(text) == wanted
    if not has_long_number(text):
        assert vocabulary.encode(text) == wanted


def test_the_special_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer, vocabulary = loaded(tmp_path_factory)
    ids = {text: ENCODING.encode(text, allowed_special="all")[0] for text in SPECIAL}
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.add_eos) == (ids["<|bos|>"], True, False)
    assert {tokenizer.eos_id, tokenizer.eot_id} == {ids["<|assistant_end|>"], ids["<|bos|>"]}
    text = "<|bos|><|user_start|>hi 12<|user_end|><|assistant_start|>"
    assert vocabulary.encode(text, special=True) == ENCODING.encode(text, allowed_special="all")
    probe(tokenizer, vocabulary.encode)


def test_how_often_the_two_differ_is_what_the_note_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer, vocabulary = loaded(tmp_path_factory)
    encode = vocabulary.encode
    numbers = sum(encode(str(n)) != ENCODING.encode(str(n)) for n in range(10_000))
    pieces = [piece for piece in probe_pieces() if encode(piece) != ENCODING.encode(piece, disallowed_special=())]
    note = next(note for note in tokenizer.notes if "digits in twos" in note)
    assert f"({numbers:,} of the numbers from 0 to 9,999 are, and {len(pieces)} of {len(probe_pieces())} pieces" in note
    assert numbers > 1000
    assert all(map(has_long_number, pieces))


def test_only_if_the_user_accepts_it(tmp_path: Path) -> None:
    write = family_named("qwen3-from-scratch").tiny
    assert write
    write(tmp_path / "model", next(iter(family_named("qwen3-from-scratch").variants)), 1)
    vocab = {bytes([byte]): byte for byte in range(256)} | {b"12": 256, b"23": 257}
    encoding = tiktoken.Encoding(name="x", pat_str=PATTERN, mergeable_ranks=vocab, special_tokens={"<|bos|>": 258})
    request = Request(source=tmp_path / "model", tokenizer=written(tmp_path / "tokenizer", encoding), type="f32")
    with pytest.raises(
        TokenizerError, match=r"--allow-approximate accepts '(dbrx|llama-bpe)', which cuts digits in threes"
    ):
        open_source(request)
    accepted = Request(source=request.source, tokenizer=request.tokenizer, type="f32", allow_approximate=True)
    metadata = prepare(accepted).metadata
    assert "digits cut in threes" in str(metadata[keys.TOKENIZER_APPROXIMATE].value)
    assert keys.APPROXIMATE not in metadata


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"pat_str": "a"}, CheckpointError, "holds no tiktoken.Encoding; write it as plain data"),
        ({}, CheckpointError, "holds no tiktoken.Encoding"),
        ([1], CheckpointError, "holds no tiktoken.Encoding"),
        (Path("x"), CheckpointError, "is not a pickle of plain values"),
        ({"pat_str": 1, "mergeable_ranks": {}, "special_tokens": {}}, CheckpointError, "pat_str is a int"),
        ({"pat_str": "a", "mergeable_ranks": [], "special_tokens": {}}, CheckpointError, "mergeable_ranks is a list"),
        (
            {"pat_str": "a", "mergeable_ranks": {"a": 1}, "special_tokens": {}},
            CheckpointError,
            "mergeable_ranks has 'a': 1",
        ),
        ({"pat_str": "a", "mergeable_ranks": {b"a": -1}, "special_tokens": {}}, CheckpointError, "has b'a': -1"),
        (
            {"pat_str": "a", "mergeable_ranks": {b"a": 0}, "special_tokens": {}},
            CheckpointError,
            "no token for the byte 0",
        ),
        (
            {"pat_str": "a", "mergeable_ranks": RANKS, "special_tokens": {b"a": 0}},
            CheckpointError,
            "special_tokens has b'a': 0",
        ),
    ],
)
def test_refusals(tmp_path: Path, value: Any, kind: type[InputError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        load_tokenizer(written(tmp_path, value), ROWS)
    assert "\n" not in str(error.value)
    assert NAME in str(error.value)


def test_a_plain_dict_as_the_advice_writes_it(tmp_path: Path) -> None:
    state = {"pat_str": PATTERN, "mergeable_ranks": RANKS, "special_tokens": {"<|bos|>": len(RANKS)}}
    tokenizer = load_tokenizer(written(tmp_path, state), ROWS, approximate=True)
    assert tokenizer.encode("the 12") == ENCODING.encode("the 12")


def test_an_encoding_by_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken pickles the encodings that it knows so."""
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "tiny", ENCODING)
    with pytest.raises(TokenizerError, match="holds an encoding of tiktoken by its name alone"):
        load_tokenizer(written(tmp_path), ROWS)


BYTES = {bytes([byte]): byte for byte in range(256)}


def state(special: dict[Any, Any], ranks: dict[Any, Any] = BYTES) -> bytes:
    return pickle.dumps({"pat_str": "a", "mergeable_ranks": ranks, "special_tokens": special})


@pytest.mark.parametrize(
    ("special", "own", "generation"),
    [
        (
            {"<|bos|>": 256, "<|assistant_end|>": 257, "<|endoftext|>": 258},
            {"bos_token": "<|bos|>", "eos_token": "<|assistant_end|>", "add_bos_token": True},
            {"eos_token_id": [257, 256]},
        ),
        (
            {"<|bos|>": 256, "<|assistant_end|>": 257},
            {"bos_token": "<|bos|>", "eos_token": "<|assistant_end|>", "add_bos_token": True},
            {"eos_token_id": [257, 256]},
        ),
        ({"<|bos|>": 256}, {"bos_token": "<|bos|>", "eos_token": "<|bos|>", "add_bos_token": True}, {}),
        (
            {"<|endoftext|>": 256},
            {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": False},
            {},
        ),
        ({"<|assistant_end|>": 256}, {}, {}),
        ({}, {}, {}),
    ],
)
def test_what_the_special_tokens_are_for(special: Any, own: Any, generation: Any) -> None:
    document, config = put_together(state(special), Path(NAME), {})
    assert (config, ends(document)) == (own, generation)
    assert [(token["content"], token["id"]) for token in document["added_tokens"]] == list(special.items())
    assert put_together(state(special), Path(NAME), {"eos_token": "x", "y": 1})[1] == {**own, "eos_token": "x", "y": 1}


@pytest.mark.parametrize(
    ("special", "ranks", "good"),
    [
        ({"x": 256}, BYTES, True),
        ({"x": (1 << 31) - 1}, BYTES, True),
        ({"x": 1 << 31}, BYTES, False),
        ({"x": -1}, BYTES, False),
        ({"x": True}, BYTES, False),
        ({"x": "256"}, BYTES, False),
        ({"x" * LONGEST: 256}, BYTES, True),
        ({"x" * (LONGEST + 1): 256}, BYTES, False),
        ({"": 256}, BYTES, False),
        ({}, {**BYTES, b"": 256}, False),
        ({}, {**BYTES, b"ab": 256}, True),
        ({}, {"ab": 256}, False),
        ({}, {**BYTES, b"x" * (LONGEST + 1): 256}, False),
        ({}, {key: number + 1 for key, number in BYTES.items()}, True),
    ],
)
def test_tokens_and_ids(special: Any, ranks: Any, good: bool) -> None:
    if good:
        assert put_together(state(special, ranks), Path(NAME), {})[0]["model"]["type"] == "BPE"
        return
    with pytest.raises(CheckpointError, match="expected a token of 1 to 512 bytes and its id"):
        put_together(state(special, ranks), Path(NAME), {})
