"""The files of a tokenizer's folder: every value is checked before it is used, and several files are put together."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.files import (
    LARGEST_SCORE,
    AddedToken,
    as_flag,
    as_id,
    as_list,
    as_object,
    as_text,
    read_files,
    read_optional,
    shown,
    some,
    without_beyond,
)
from gguf_tools.tokenizers.piece_model import LONGEST
from tests.tokenizers.tokenizers_for_tests import byte_level_folder

PLAIN = {"special": False, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}


def written(folder: Path, document: Any, **files: Any) -> Path:
    for stem, content in {"tokenizer": document, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), "utf-8")
    return folder


def bpe(vocab: Any = None, merges: Any = (), **more: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2} if vocab is None else vocab, "merges": merges}
    return {"model": model, **more}


def test_names_in_a_note() -> None:
    assert some(["a"]) == "a"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert some(list("abcdef")) == "a, b, c and 3 more"


def test_values_are_shown_in_one_short_line() -> None:
    values: list[object] = ["a\n", 3, 1.5, True, None, [1], {}]
    assert [shown(value) for value in values] == [
        "'a\\n'",
        "3",
        "1.5",
        "True",
        "None",
        "list",
        "dict",
    ]
    assert shown("x" * 58) == repr("x" * 58)
    assert [len(shown("x" * size)) for size in (59, 1000)] == [60, 60]
    assert 10 < len(shown("x" * 1000, 20)) < 30


@pytest.mark.parametrize(
    ("check", "good", "bad", "message"),
    [
        (as_object, [{}, {"a": 1}], [None, [], 3], "file: key is .*; expected an object"),
        (as_list, [[], [1]], [None, {}, "a"], "file: key is .*; expected a list"),
        (as_text, ["", "aé"], [None, 3, b"a", "\ud800"], "file: key is .*; expected a string|lone surrogate"),
        (as_id, [0, 1, (1 << 31) - 1], [None, -1, 1 << 31, True, 1.0, "1"], "file: key is .*; expected a token id"),
        (as_flag, [True, False], [None, 0, 1, "true"], "file: key is .*; expected true or false"),
    ],
)
def test_checked_values(check: Callable[..., Any], good: list[Any], bad: list[Any], message: str) -> None:
    assert [check(value, "file", "key") for value in good] == good
    for value in bad:
        with pytest.raises(CheckpointError, match=message):
            check(value, "file", "key")


def test_a_file_that_may_be_missing(tmp_path: Path) -> None:
    assert read_optional(tmp_path, "a.json") == {}
    (tmp_path / "a.json").write_text('{"b": 1}', "utf-8")
    assert read_optional(tmp_path, "a.json") == {"b": 1}


def test_what_is_read(tmp_path: Path) -> None:
    added = [
        {"id": 4, "content": "<y>", **PLAIN},
        {"id": 3, "content": "<x>", **PLAIN, "special": True, "rstrip": True},
    ]
    folder = written(
        tmp_path,
        bpe(merges=[["a", "b"]], added_tokens=added),
        tokenizer_config={"c": 1},
        special_tokens_map={"s": 2},
        generation_config={"g": 3},
    )
    files = read_files(folder)
    assert (files.config, files.special_map, files.generation, files.notes) == ({"c": 1}, {"s": 2}, {"g": 3}, ())
    assert (files.vocab, files.merges) == ({"a": 0, "b": 1, "ab": 2}, (("a", "b"),))
    assert [(token.id, token.content, token.special, token.lstrip, token.rstrip) for token in files.added] == [
        (3, "<x>", True, False, True),
        (4, "<y>", False, False, False),
    ]
    assert files.ids == {"a": 0, "b": 1, "ab": 2, "<x>": 3, "<y>": 4}
    assert files.path == folder / "tokenizer.json"


@pytest.mark.parametrize("flag", ["special", "normalized", "lstrip", "rstrip", "single_word"])
def test_flags_of_an_added_token(tmp_path: Path, flag: str) -> None:
    written(tmp_path, bpe(added_tokens=[{"id": 3, "content": "<x>", flag: True}]))
    (token,) = read_files(tmp_path).added
    assert token == AddedToken(**{**PLAIN, flag: True}, id=3, content="<x>")


def test_models_by_their_type(tmp_path: Path) -> None:
    model = bpe(merges=["a b"])["model"]
    for left_out, merges in (("", 1), ("type", 1)):
        written(tmp_path, {"model": {key: value for key, value in model.items() if key != left_out}})
        assert len(read_files(tmp_path).merges) == merges
    # Other models are for the caller to refuse.
    for other in ({"type": "WordPiece", "vocab": {"a": 0}}, {"vocab": {"a": 0}}, {"type": "WordLevel", "merges": []}):
        written(tmp_path, {"model": other})
        assert (read_files(tmp_path).vocab, read_files(tmp_path).merges) == ({}, ())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([["a", 0.0], ["b", -1]], None),
        ([["a", LARGEST_SCORE], ["b", -LARGEST_SCORE]], None),
        ([["a", 2 * LARGEST_SCORE]], r"model.vocab\[0\] is list; expected a piece and its score"),
        ([["a", 0.0], ["b", -2 * LARGEST_SCORE]], r"model.vocab\[1\]"),
        ([["a", True]], r"model.vocab\[0\]"),
        ([["a", "1"]], r"model.vocab\[0\]"),
        ([["a"]], r"model.vocab\[0\]"),
        ([["a", 1, 2]], r"model.vocab\[0\]"),
        (["a"], r"model.vocab\[0\] is 'a'"),
        ([[3, 1.0]], r"model.vocab\[0\] is 3; expected a string"),
        ([["a", 0], ["b", 0], ["a", 0]], "model.vocab has 'a' twice"),
        ([["x" * LONGEST, 0]], None),
        ([["x" * (LONGEST + 1), 0]], "has 1,025 characters; expected 1,024 at most"),
    ],
)
def test_pieces_of_unigram(tmp_path: Path, entries: list[Any], message: str | None) -> None:
    written(tmp_path, {"model": {"type": "Unigram", "vocab": entries}})
    if message is None:
        assert read_files(tmp_path).vocab == {entry[0]: n for n, entry in enumerate(entries)}
        return
    with pytest.raises(CheckpointError, match=message):
        read_files(tmp_path)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (["a b", ["a", "b"]], None),
        (["ab"], "expected two tokens"),
        (["a b "], "expected two tokens"),
        ([["a", "b", "c"]], r"model.merges\[0\] is list; expected two tokens"),
        ([["a", 1]], "expected two tokens"),
        (["a b", 3], r"model.merges\[1\] is 3"),
        (["b a"], r"model.merges\[0\] needs the token 'ba'"),
        (["c a"], r"needs the token 'c'"),
        (["a c"], r"needs the token 'c'"),
    ],
)
def test_merges(tmp_path: Path, merges: list[Any], message: str | None) -> None:
    written(tmp_path, bpe(merges=merges))
    if message is None:
        assert read_files(tmp_path).merges == (("a", "b"),) * 2
        return
    with pytest.raises(CheckpointError, match=message):
        read_files(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "added", "message"),
    [
        ({"a": 0, "b": 0}, [], "id 0 belongs to two tokens, 'a' and 'b'"),
        ({"a": 0}, [("b", 0)], "id 0 belongs to two tokens, 'a' and 'b'"),
        ({"a": 0}, [("a", 1)], "'a' has two ids, 0 in model.vocab and 1 in added_tokens"),
        ({"a": 0}, [("a", 0)], None),
        ({"a": 0}, [("b", 1)], None),
        ({"x" * LONGEST: 0}, [("y" * LONGEST, 1)], None),
        ({"x" * (LONGEST + 1): 0}, [], "a token of model.vocab has 1,025 characters"),
        ({"a": 0}, [("y" * (LONGEST + 1), 1)], r"added_tokens\[0\].content has 1,025 characters"),
        ({"a": "0"}, [], r"model.vocab\['a'\] is '0'; expected a token id"),
        ({"a": 0}, [("", 1)], r"added_tokens\[0\] has empty content"),
    ],
)
def test_ids(tmp_path: Path, vocab: dict[str, Any], added: list[tuple[str, int]], message: str | None) -> None:
    written(tmp_path, bpe(vocab, added_tokens=[{"content": text, "id": number} for text, number in added]))
    if message is None:
        assert read_files(tmp_path).ids == {**vocab, **dict(added)}
        return
    with pytest.raises(CheckpointError, match=message):
        read_files(tmp_path)


def test_added_tokens_of_other_files(tmp_path: Path) -> None:
    """Those of tokenizer.json come first; added_tokens.json says nothing but ids, so that roles tell what is special."""
    decoder = {
        "3": {"content": "<x>", "special": True},
        "5": {"content": "<z>", "special": True, "lstrip": True},
        "0": {"content": "a"},
    }
    folder = written(
        tmp_path,
        bpe(added_tokens=[{"content": "<x>", "id": 3}, {"content": "<y>", "id": 4}]),
        tokenizer_config={"added_tokens_decoder": decoder, "eos_token": "<e>"},
        added_tokens={"<y>": 9, "<e>": 6, "<f>": 7},
    )
    files = read_files(folder)
    assert [(token.id, token.content, token.special, token.lstrip) for token in files.added] == [
        (0, "a", False, False),
        (3, "<x>", False, False),
        (4, "<y>", False, False),
        (5, "<z>", True, True),
        (6, "<e>", True, False),
        (7, "<f>", False, False),
    ]
    assert len(files.notes) == 5
    assert "'<y>' is 4 in tokenizer.json and 9 in another file; tokenizer.json is used" in files.notes
    assert "tokenizer.json lacks the added token '<z>' (id 5), which other files list" in files.notes


@pytest.mark.parametrize(
    ("key", "good"),
    [("5", True), ("0000000005", True), ("12345678901", False), ("-5", False), ("x", False), ("٥", False), ("", False)],
)
def test_keys_of_the_decoder(tmp_path: Path, key: str, good: bool) -> None:
    written(tmp_path, bpe(), tokenizer_config={"added_tokens_decoder": {key: {"content": "<x>"}}})
    if good:
        assert read_files(tmp_path).added[0].id == 5
        return
    with pytest.raises(CheckpointError, match="is the key of an added token; expected a token id"):
        read_files(tmp_path)


def test_nothing_in_place_of_a_list(tmp_path: Path) -> None:
    written(tmp_path, bpe(added_tokens=None), tokenizer_config={"added_tokens_decoder": None})
    assert read_files(tmp_path).added == ()
    with pytest.raises(CheckpointError, match="added_tokens_decoder is list; expected an object"):
        read_files(written(tmp_path, bpe(), tokenizer_config={"added_tokens_decoder": [1]}))


def test_tokens_beyond_the_rows_are_left_out(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 1, "ab": 2, "aa": 3}
    files = read_files(written(tmp_path, bpe(vocab, ["a b", "a a"], added_tokens=[{"content": "<x>", "id": 4}])))
    whole = without_beyond(files, 5)
    assert (whole.vocab, whole.merges, whole.added) == (files.vocab, files.merges, files.added)
    cut = without_beyond(files, 3)
    assert (cut.vocab, cut.merges, cut.added) == ({"a": 0, "b": 1, "ab": 2}, (("a", "b"),), ())
    assert (cut.model["vocab"], cut.model["merges"], cut.model["type"]) == (cut.vocab, [["a", "b"]], "BPE")
    assert len(without_beyond(files, 4).added) == 0
    pieces = [["a", 0.0], ["b", -1.0], ["c", -2.0]]
    unigram = read_files(written(tmp_path, {"model": {"type": "Unigram", "vocab": pieces, "unk_id": 0}}))
    assert without_beyond(unigram, 2).model == {"type": "Unigram", "vocab": pieces[:2], "unk_id": 0}


def test_slow_files(tmp_path: Path) -> None:
    folder = written(tmp_path, {}, vocab={"a": 0, "b": 1, "ab": 2, "<e>": 3}, config={"model_type": "gpt2"})
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("#version: 0.2\na b\n", "utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<e>", "bos_token": "<f>"}', "utf-8")
    (folder / "added_tokens.json").write_text('{"<f>": 4, "<e>": 3}', "utf-8")
    files = read_files(folder)
    assert files.path == folder / "vocab.json"
    assert files.merges == (("a", "b"),)
    assert [(token.id, token.content, token.special) for token in files.added] == [(3, "<e>", True), (4, "<f>", True)]
    assert len(files.notes) == 1
    (folder / "added_tokens.json").unlink()
    # A token of the vocabulary that has a role is a special token.
    (token,) = read_files(folder).added
    assert token == AddedToken(**{**PLAIN, "special": True}, id=3, content="<e>")


def test_other_kinds_of_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        read_files(tmp_path)
    itos = {0: "a", 1: "b"}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": itos, "stoi": {"a": 0, "b": 1}}))
    ranks = {bytes([byte]): byte for byte in range(256)}
    special = {"<|bos|>": 256, "<|assistant_end|>": 257}
    state = {"pat_str": "a", "mergeable_ranks": ranks, "special_tokens": special}
    characters = read_files(tmp_path)
    assert (characters.path.name, characters.vocab) == ("meta.pkl", {"a": 0, "b": 1})
    (tmp_path / "meta.pkl").unlink()
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(state))
    encoding = read_files(tmp_path)
    assert encoding.path.name == "tokenizer.pkl"
    assert encoding.vocab == {char: byte for byte, char in enumerate(byte_characters())}
    assert encoding.generation == {"eos_token_id": [257, 256]}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}', "utf-8")
    assert read_files(tmp_path).generation == {"eos_token_id": 3}
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is no SentencePiece model"):
        read_files(tmp_path)
    byte_level_folder(tmp_path)
    assert read_files(tmp_path).path.name == "tokenizer.json"


def test_vocab_alone_is_no_slow_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}", "utf-8")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        read_files(tmp_path)
