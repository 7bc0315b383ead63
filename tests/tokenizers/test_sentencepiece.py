"""SentencePiece-like vocabularies: llama.cpp's own algorithm where it is exact, its plain BPE or a refusal where not."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from gguf_tools.errors import TokenizerError
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import (
    LlamaVocabulary,
    change_json,
    llama_vocabulary,
    train_sentencepiece,
    write_folder,
)

SIZE = 2100
REPLACE = normalizers.Replace(" ", "▁")
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
TEXT = st.lists(
    st.sampled_from(["the", " ", "  ", "\n", "fox", "▁", "'s", "12", "é", "中", "नम", "😀", "<0x41>", "<s>", "<"])
    | st.text(max_size=3)
).map("".join)


def metaspace(scheme: str, split: bool) -> PreTokenizer:
    return pre_tokenizers.Metaspace("▁", scheme, split)


# name: normalizer, pre-tokenizer, whether every join is a merge, and what it becomes: model, pre, space before a text
KINDS: dict[str, tuple[Normalizer | None, PreTokenizer | None, bool, tuple[str, str, bool]]] = {
    "llama-2": (
        normalizers.Sequence([normalizers.Prepend("▁"), REPLACE]),
        None,
        True,
        ("llama", "default", True),
    ),
    "gemma": (
        REPLACE,
        pre_tokenizers.Split(" ", "merged_with_previous"),
        True,
        ("llama", "default", False),
    ),
    "replaced-twice": (
        REPLACE,
        pre_tokenizers.Sequence([metaspace("never", False), pre_tokenizers.Split(" ", "merged_with_previous")]),
        True,
        ("llama", "default", False),
    ),
    "metaspace-first": (None, metaspace("first", False), True, ("llama", "default", True)),
    "metaspace-always": (None, metaspace("always", True), True, ("llama", "default", True)),
    "trained": (None, metaspace("never", True), False, ("gpt2", "sarvam-moe", False)),
    "trained-unsplit": (REPLACE, None, False, ("gpt2", "sarvam-moe", False)),
}


@cache
def _trained_folder(name: str) -> Path:
    normalizer, pre_tokenizer, every_join, _ = KINDS[name]
    backend = train_sentencepiece(normalizer, pre_tokenizer, every_join=every_join)
    return write_folder(Path(mkdtemp()), backend, (), tokenizer_config=CONFIG)


def folder_of(name: str) -> Path:
    """A copy of the kind's folder, which may be changed."""
    return Path(shutil.copytree(_trained_folder(name), Path(mkdtemp()) / "tokenizer"))


@cache
def trained(name: str) -> tuple[Tokenizer, LlamaVocabulary]:
    folder = folder_of(name)
    tokenizer = load_tokenizer(folder, SIZE)
    return tokenizer, llama_vocabulary(folder, tokenizer)


@pytest.mark.parametrize("name", KINDS)
def test_probe_passes(name: str) -> None:
    folder = folder_of(name)
    tokenizer = load_tokenizer(folder, SIZE)
    llama = llama_vocabulary(folder, tokenizer)
    assert (tokenizer.model, tokenizer.pre, tokenizer.add_space_prefix) == KINDS[name][3]
    probe(tokenizer, llama.encode)
    assert tokenizer.token_types[tokenizer.tokens.index("<0x0A>")] == 6
    assert tokenizer.token_types[tokenizer.tokens.index("<unk>")] == 2
    assert llama.encode("the", add_special=True)[0] == tokenizer.bos_id


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXT)
def test_any_text_tokenizes_alike(name: str, text: str) -> None:
    tokenizer, llama = trained(name)
    if not any(limit.affects(text) for limit in tokenizer.limits):
        assert llama.encode(text) == tokenizer.encode(text)


def test_runs_of_a_character_that_share_a_score() -> None:
    folder = folder_of("gemma")
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"]
    runs = ["¶" * length for length in range(1, 9)]  # (a character that the training text lacks)
    for run in runs:
        vocab[run] = len(vocab)
    pairs = [[run[:cut], run[cut:]] for run in runs for cut in range(1, len(run))]
    pairs.sort(key=lambda pair: (-len(pair[0]), -len(pair[1])))  # as transformers' conversion lists them
    change_json(folder, {"model.vocab": vocab, "model.merges": [*pairs, *document["model"]["merges"]]})
    tokenizer = load_tokenizer(folder, SIZE)
    assert tokenizer.model == "llama"
    llama = llama_vocabulary(folder, tokenizer)
    for length in range(1, 30):
        text = "a" + "¶" * length + "b"
        assert llama.encode(text) == tokenizer.encode(text)


def test_byte_tokens_listed_as_special_are_found_in_no_text() -> None:
    folder = folder_of("gemma")
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, added = document["model"]["vocab"], document["added_tokens"]
    entries = [{**added[0], "id": vocab[token], "content": token} for token in vocab if token.startswith("<0x")]
    change_json(folder, {"added_tokens": [*added, *entries]})
    tokenizer = load_tokenizer(folder, SIZE)
    llama = llama_vocabulary(folder, tokenizer)
    for special in (False, True):
        # No NUL: where training happened to give it a token, llama.cpp cannot hold that, which is noted.
        text = "a<0x41>\x01\x7f🦙"
        assert llama.encode(text, special) == tokenizer.encode(text, special=special)


def test_a_space_that_is_there_already_is_noted() -> None:
    tokenizer, llama = trained("metaspace-always")
    assert any("begins with a space" in note for note in tokenizer.notes)
    assert llama.encode(" the") != tokenizer.encode(" the")


def test_incomplete_merges_with_a_space_before_are_refused() -> None:
    normalizer, pre_tokenizer, _, _ = KINDS["llama-2"]
    backend = train_sentencepiece(normalizer, pre_tokenizer, every_join=False)
    folder = write_folder(Path(mkdtemp()), backend, (), tokenizer_config=CONFIG)
    with pytest.raises(TokenizerError, match="not those of SentencePiece"):
        load_tokenizer(folder, SIZE)


@pytest.mark.parametrize(("name", "model"), [("gemma", "gpt2"), ("llama-2", None)])
def test_a_single_join_that_is_no_merge_is_seen(name: str, model: str | None) -> None:
    """Of the three ways to cut a token of four characters, the one in the middle is missing; all other joins are merges."""
    folder = folder_of(name)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"]
    for token in (*"¶§¤¦", "¶§", "¤¦", "§¤¦", "¶§¤¦"):  # (characters that the training text lacks)
        vocab.setdefault(token, len(vocab))
    pairs = [["¶", "§"], ["¤", "¦"], ["§", "¤¦"], ["¶", "§¤¦"]]
    change_json(folder, {"model.vocab": vocab, "model.merges": [*document["model"]["merges"], *pairs]})
    if model is None:
        with pytest.raises(TokenizerError, match=r"could also be merged from \('¶§', '¤¦'\)"):
            load_tokenizer(folder, SIZE)
        return
    tokenizer = load_tokenizer(folder, SIZE)
    assert tokenizer.model == model
    assert llama_vocabulary(folder, tokenizer).encode("a¶§¤¦b") == tokenizer.encode("a¶§¤¦b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.byte_fallback": False}, "byte_fallback is off"),
        ({"model.ignore_merges": True}, "ignore_merges is true"),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, "'Prepend' changes text"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "'Whitespace' splits where"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, SPACES]}}, "NFKC"),
    ],
)
def test_what_llama_cpp_does_not_do_is_refused(change: dict[str, object], message: str) -> None:
    folder = folder_of("trained-unsplit")
    change_json(folder, change)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(folder, SIZE)
