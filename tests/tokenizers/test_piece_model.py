"""SentencePiece's tokenizer.model, held against the sentencepiece library and llama.cpp."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_tools.errors import CheckpointError, InputError, TokenizerError
from gguf_tools.tokenizers.piece_model import NAME, parse_piece_model, put_together
from gguf_tools.tokenizers.probe import probe, probe_pieces
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import llama_vocabulary

SIZE = 420
CORPUS = [
    f"the quick brown fox {n} jumps over the lazy dog, and then  the dog sleeps in the inn {n * 7} times; café, naïve"
    for n in range(300)
]
TEXT = st.lists(
    st.sampled_from(
        ["the", " the", " ", "  ", "\n", "fox jumps", "▁", "12", "é", "中", "😀", "<sep>", "<0x41>", "s></s>"]
    )
    | st.text(max_size=3)
).map("".join)


@cache
def trained(**options: Any) -> bytes:
    """A model trained as llama2.c trains its own, with other options where they are given."""
    out = io.BytesIO()
    defaults = {
        "vocab_size": 370,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": "<sep>",
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "split_digits": True,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **{**defaults, **options},
    )
    return out.getvalue()


def written(folder: Path, data: bytes, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_bytes(data)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def differing(tokenizer: Tokenizer, theirs: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> list[str]:
    return [text for text in texts if tokenizer.encode(text) != theirs.encode(text)]


@pytest.mark.parametrize("options", [{}, {"remove_extra_whitespaces": True}, {"add_dummy_prefix": False}])
def test_cuts_text_as_the_library(tmp_path: Path, options: dict[str, Any]) -> None:
    data = trained(**options)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    folder = written(tmp_path / "tokenizer", data)
    tokenizer = load_tokenizer(folder, SIZE)
    plain = [text for text in (*probe_pieces(), *CORPUS[:5]) if "\0" not in text]
    assert not differing(tokenizer, theirs, plain)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (theirs.bos_id(), theirs.eos_id(), theirs.unk_id())
    assert (tokenizer.add_bos, tokenizer.add_eos) == (True, False)
    assert tokenizer.model == "llama"
    # Around a piece of the user's the two differ where a space is put before a text, and a note says so.
    around = ["<sep>", "a<sep>b", "<sep>b"]
    said = any("puts no space after '<sep>'" in note for note in tokenizer.notes)
    assert said == bool(differing(tokenizer, theirs, around)) == ("add_dummy_prefix" not in options)
    assert all(any(limit.affects(text) for limit in tokenizer.limits) for text in differing(tokenizer, theirs, around))
    assert tokenizer.token_types[theirs.piece_to_id("<sep>")] == 4
    assert any("built from tokenizer.model" in note for note in tokenizer.notes)
    assert any("remove_extra_whitespaces" in note for note in tokenizer.notes) == bool(
        options.get("remove_extra_whitespaces")
    )
    probe(tokenizer, llama_vocabulary(folder, tokenizer).encode)


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False}])
def test_puts_text_together_as_the_library(tmp_path: Path, options: dict[str, Any]) -> None:
    data = trained(**options)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = load_tokenizer(written(tmp_path / "tokenizer", data), SIZE)
    for text in ("the fox", " the fox", "  the fox ", "the  inn  ", "naïve 中"):
        assert tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text)) == text


@pytest.mark.parametrize(("kind", "size"), [("bpe", 110), ("unigram", 50)])
def test_unknown_characters_are_those_of_the_library(kind: str, size: int) -> None:
    """Without bytes to fall back to, which llama.cpp needs for BPE: the document alone says it."""
    data = trained(model_type=kind, byte_fallback=False, vocab_size=size)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    document, _ = put_together(data, Path(NAME), {})
    ours = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", **document}))
    for text in ("the 中 fox", "中文 the", "the 😀😀中"):
        assert ours.encode(text).ids == theirs.encode(text)
        assert theirs.unk_id() in theirs.encode(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(text=TEXT)
def test_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained())
    tokenizer, vocabulary = _loaded(tmp_path_factory)
    wanted = theirs.encode(text)
    if not any(limit.affects(text) for limit in tokenizer.limits):
        assert tokenizer.encode(text) == wanted
        assert vocabulary.encode(text, special=False) == wanted


_LOADED: list[tuple[Tokenizer, Any]] = []


def _loaded(factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    if not _LOADED:
        folder = written(factory.mktemp("model") / "tokenizer", trained())
        tokenizer = load_tokenizer(folder, SIZE)
        _LOADED.append((tokenizer, llama_vocabulary(folder, tokenizer)))
    return _LOADED[0]


def test_what_the_config_says_wins(tmp_path: Path) -> None:
    folder = written(tmp_path, trained(), {"add_bos_token": False, "eos_token": "<sep>"})
    tokenizer = load_tokenizer(folder, SIZE)
    assert (tokenizer.add_bos, tokenizer.tokens[tokenizer.eos_id or 0]) == (False, "<sep>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 305}, "model.byte_fallback is True"),
        ({"model_type": "char"}, "is a character model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "no equivalent of the normalizer 'Precompiled'"),
        ({"byte_fallback": False, "vocab_size": 110}, "byte_fallback is off|has no token <0x00>"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is true"),
    ],
)
def test_what_llama_cpp_has_no_form_for(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as error:
        load_tokenizer(written(tmp_path, trained(**options)), SIZE)
    assert NAME in str(error.value)
    assert "\n" not in str(error.value)


@given(st.data())
@settings(max_examples=150)
def test_damaged_models_are_refused_or_read(data: st.DataObject) -> None:
    good = trained()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(st.sampled_from([good[:at], good[:at] + data.draw(st.binary(max_size=4)) + good[at + 1 :]]))
    try:
        model = parse_piece_model(bad, Path(NAME))
    except CheckpointError:
        return
    assert model.pieces


@pytest.mark.parametrize("data", [b"", b"not a model at all", b"\xff" * 40])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.model: is no SentencePiece model"):
        load_tokenizer(written(tmp_path, data), SIZE)


PIECE = b"\x0a\x05\x0a\x01a\x18\x01"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PIECE + b"\x1a\x07\x10\xff\xff\xff\xff\xff\x3f", "a number stands in place of a text"),
        (PIECE + b"\x12\x04\xc2\x02\x01x", "a text stands in place of a number"),
        (b"\x0a\x06\x08\xff\xff\xff\xff\x7f", "a number stands in place of a text"),
        (b"\x0a\x05\x0a\x01a\x1a\x00", "a text stands in place of a number"),
        (b"\x0a\x0a\x0a\x01a\x15\x00\x00\xc0\x7f\x18\x01", "a piece has the score nan"),
        (b"\x0a\x87\x10\x0a\x84\x10" + b"a" * 2052, "a piece has 2,052 characters; expected 1,024 at most"),
    ],
)
def test_fields_of_another_type_or_size(data: bytes, message: str) -> None:
    """Such a number would be a count of zeros to allocate; the ways to cut a long piece take the square of its length."""
    with pytest.raises(CheckpointError, match=message):
        parse_piece_model(data, Path(NAME))
