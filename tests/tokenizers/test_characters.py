"""nanoGPT's meta.pkl, held against its own dictionaries and llama.cpp."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import CheckpointError, InputError, TokenizerError
from gguf_tools.families.registry import family_named
from gguf_tools.tokenizers.characters import NAME, convert_characters, put_together
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import LlamaVocabulary, llama_vocabulary

CHARACTERS = sorted(set("\n !$&',-.3:;?ABCXYZabcdeghilnorstuwy\t\0\x7f\\▁Ġ ÃÄ©é中文字日😀😁‍\u0301"))
STOI = {char: number for number, char in enumerate(CHARACTERS)}


def written(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"vocab_size": len(STOI), "itos": {n: char for char, n in STOI.items()}, "stoi": STOI, **changed}
    (folder / NAME).write_bytes(pickle.dumps(meta))
    return folder


_LOADED: list[tuple[Tokenizer, LlamaVocabulary]] = []


def loaded(factory: pytest.TempPathFactory) -> tuple[Tokenizer, LlamaVocabulary]:
    if not _LOADED:
        folder = written(factory.mktemp("characters"))
        tokenizer = load_tokenizer(folder, len(STOI))
        _LOADED.append((tokenizer, llama_vocabulary(folder, tokenizer)))
    return _LOADED[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(text=st.text(st.sampled_from(CHARACTERS)))
def test_every_character_is_one_token(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    tokenizer, vocabulary = loaded(tmp_path_factory)
    wanted = [STOI[char] for char in text]
    assert tokenizer.encode(text) == wanted
    assert vocabulary.encode(text) == wanted
    assert tokenizer.decode(wanted) == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(text=st.text(st.sampled_from(CHARACTERS) | st.characters(exclude_categories=["Cs"])))
def test_other_characters_are_left_out(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    tokenizer, vocabulary = loaded(tmp_path_factory)
    assert vocabulary.encode(text) == [STOI[char] for char in text if char in STOI]
    assert any(limit.affects(text) for limit in tokenizer.limits) == (not STOI.keys() >= set(text))


def test_what_is_said(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path), len(STOI) + 2)
    assert tokenizer.model == "gpt2"
    assert any("the characters of meta.pkl are the tokens" in note for note in tokenizer.notes)
    assert any("llama.cpp leaves out all others" in note for note in tokenizer.notes)
    probe(tokenizer, llama_vocabulary(tmp_path, tokenizer).encode)


def test_beside_nanogpt(tmp_path: Path) -> None:
    write = family_named("nanogpt").tiny
    assert write
    write(tmp_path, "plain", 1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    opened = open_source(Request(source=written(tmp_path) / "ckpt.pt", type="f32"))
    assert opened.tokenizer.path == tmp_path / NAME
    assert opened.tokenizer.encode("the cat".replace("t", "n")) == [STOI[char] for char in "nhe can"]


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"itos": {0: "a", 1: "bc"}, "stoi": None}, TokenizerError, "the token 1 is 'bc'; expected one character"),
        ({"itos": {0: "a", 1: "\ud800"}, "stoi": None}, TokenizerError, "expected one character"),
        ({"itos": {0: "a", "1": "b"}}, CheckpointError, "itos has '1': 'b'; expected a token id and its character"),
        ({"itos": {0: "a", 1: "a"}}, CheckpointError, "the character 'a' has the ids 0 and 1"),
        ({"itos": None}, CheckpointError, "has no dict 'itos'"),
        ({"stoi": {"a": 0}}, CheckpointError, "stoi is not the inverse of itos"),
        ({"itos": {-1: "a"}, "stoi": None}, CheckpointError, "expected a token id"),
        ({"itos": {}, "stoi": {}}, InputError, "no characters"),
        ({"path": Path("x")}, CheckpointError, "is not a pickle of plain values"),
    ],
)
def test_refusals(tmp_path: Path, changed: dict[str, Any], kind: type[InputError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        load_tokenizer(written(tmp_path, **changed), len(STOI))
    assert "\n" not in str(error.value)
    assert NAME in str(error.value)


def test_merges_put_a_character_together_from_its_bytes() -> None:
    """By hand: é is C3 A9, è is C3 A8, 中 is E4 B8 AD; these bytes stand for themselves in Latin-1, but for AD, which is ł."""
    form = convert_characters({"a": 0, "é": 1, "中": 2, "è": 3, "\n": 4}, {7: TokenType.CONTROL})
    assert form.merges == ("Ã ©", "ä ¸", "ä¸ Ń", "Ã ¨")
    assert form.ids == {"a": 0, "Ã©": 1, "ä¸Ń": 2, "Ã¨": 3, "Ċ": 4}
    assert (form.model, form.pre, form.kinds) == ("gpt2", "gpt-2", {7: TokenType.CONTROL})
    (limit,) = form.limits
    assert "the vocabulary has 5 characters" in limit.note
    assert [limit.affects(text) for text in ("", "aé", "aé中è\n", "ab")] == [False, False, False, True]


def test_long_texts_are_shortened() -> None:
    with pytest.raises(TokenizerError) as error:
        put_together(pickle.dumps({"itos": {0: "x" * 50}}), Path(NAME))
    assert f"the token 0 is '{'x' * 38}…; expected one character" in str(error.value)


@pytest.mark.parametrize("code", [0xD7FF, 0xD800, 0xDFFF, 0xE000])
def test_characters_at_the_ends_of_the_surrogates(code: int) -> None:
    text = chr(code)
    meta = pickle.dumps({"itos": {0: text}})
    if 0xD800 <= code <= 0xDFFF:
        with pytest.raises(TokenizerError, match="expected one character"):
            put_together(meta, Path(NAME))
        return
    assert put_together(meta, Path(NAME)) == {
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": {text: 0}, "merges": []},
    }


@pytest.mark.parametrize("number", [True, 0.0, "0", None])
def test_ids_are_whole_numbers(number: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a token id and its character"):
        put_together(pickle.dumps({"itos": {number: "a"}}), Path(NAME))
