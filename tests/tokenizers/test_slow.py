"""vocab.json and merges.txt without tokenizer.json, and tokens that the model has no row for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.tokenizers.probe import probe, probe_pieces
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from tests.tokenizers.tokenizers_for_tests import (
    change_json,
    gpt2_style,
    llama_vocabulary,
    style_of,
    train_byte_level,
    write_folder,
)

SIZE = 400
ADDED = {"<|endoftext|>": 300, "<|im_start|>": 301, "<tool>": 302}


def slow_folder(folder: Path, kind: str, **config: Any) -> Path:
    """A vocabulary trained with the class's own way to cut text, saved as its Python tokenizer saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = train_byte_level(style_of("qwen2") if kind == "Qwen2Tokenizer" else gpt2_style(), 300)
    trained.model.save(str(folder))
    (folder / "added_tokens.json").write_text(json.dumps(ADDED), "utf-8")
    stated = {"tokenizer_class": kind, "eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | config), "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "GPT2Tokenizer", "CodeGenTokenizer"])
def test_as_transformers_puts_it_together(tmp_path: Path, kind: str) -> None:
    folder = slow_folder(tmp_path, kind)
    tokenizer, theirs = load_tokenizer(folder, SIZE), AutoTokenizer.from_pretrained(folder)
    texts = [*probe_pieces(), "a<|im_start|>b <tool>c<|endoftext|>", "Łódź café ١٢٣ 12345 don't\n\n  x"]
    for text in texts:
        assert tokenizer.encode(text, special=True) == theirs(text, add_special_tokens=False).input_ids, text
    assert tokenizer.eos_id == theirs.eos_token_id == 300
    assert any("built from vocab.json and merges.txt" in note for note in tokenizer.notes)
    probe(tokenizer, llama_vocabulary(folder, tokenizer).encode)
    # <tool> has no role, so that it is found in text and shown; the others are control tokens.
    assert [tokenizer.token_types[number] for number in (300, 301, 302)] == [3, 3, 4]


def test_the_class_by_the_model_where_none_is_named(tmp_path: Path) -> None:
    folder = slow_folder(tmp_path, "Qwen2Tokenizer")
    change_json(folder, {"tokenizer_class": None}, "tokenizer_config.json")
    with pytest.raises(TokenizerError, match="no file names the tokenizer's class"):
        load_tokenizer(folder, SIZE)
    change_json(folder, {"model_type": "qwen3"}, "config.json")
    assert load_tokenizer(folder, SIZE).pre == "qwen2"


def test_the_end_of_text_that_the_class_has_by_itself(tmp_path: Path) -> None:
    folder = slow_folder(tmp_path, "GPT2Tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    theirs = AutoTokenizer.from_pretrained(folder)
    found = load_tokenizer(folder, SIZE)
    assert (found.bos_id, found.eos_id) == (theirs.bos_token_id, theirs.eos_token_id) == (300, 300)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"tokenizer_class": "CLIPTokenizer"},
            TokenizerError,
            "class is CLIPTokenizer; expected one of",
        ),
        ({"add_prefix_space": True}, TokenizerError, "add_prefix_space=true"),
    ],
)
def test_what_is_not_known_is_refused(
    tmp_path: Path, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    folder = slow_folder(tmp_path, "GPT2Tokenizer")
    with pytest.raises(kind, match=message):
        load_tokenizer(change_json(folder, change, "tokenizer_config.json"), SIZE)


def test_broken_merges(tmp_path: Path) -> None:
    folder = slow_folder(tmp_path, "GPT2Tokenizer")
    (folder / "merges.txt").write_text("#version: 0.2\na b c\n", "utf-8")
    with pytest.raises(CheckpointError, match=r"merges\.txt: line 2 is 'a b c'; expected two tokens"):
        load_tokenizer(folder, SIZE)
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_tokenizer(folder, SIZE)


def test_tokens_beyond_the_embedding_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train_byte_level(gpt2_style(), 300), ("<|endoftext|>", "<|PAD|>", "<extra>"))
    change_json(folder, {"pad_token": "<|PAD|>"}, "tokenizer_config.json")
    with pytest.raises(TokenizerError, match=r"none for '<\|PAD\|>' \(301\), '<extra>' \(302\); .*--drop-tokens"):
        load_tokenizer(folder, 301)
    found = load_tokenizer(folder, 301, drop_tokens=True)
    assert (found.vocab_size, found.eos_id, found.pad_id) == (301, 300, None)
    assert found.encode("x<|PAD|>", special=True) == found.encode("x<|PAD|>")
    assert any("tokens beyond the 301 rows" in note for note in found.notes)
    probe(found, llama_vocabulary(folder, found).encode)
    assert load_tokenizer(folder, 303, drop_tokens=True).pad_id == 301


def test_merges_of_tokens_beyond_the_embedding_go_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train_byte_level(gpt2_style(), 300), ())
    whole, cut = load_tokenizer(folder, 300), load_tokenizer(folder, 290, drop_tokens=True)
    assert cut.tokens == whole.tokens[:290]
    assert len(cut.merges) == len(whole.merges) - 10
    probe(cut, llama_vocabulary(folder, cut).encode)


@pytest.mark.parametrize("role", ["bos", "eos"])
@pytest.mark.parametrize("configured", [None, 300])
def test_adding_a_token_that_the_tokenizer_does_not_name(tmp_path: Path, role: str, configured: int | None) -> None:
    """The model's config may name one: transformers' tokenizer does not look there."""
    folder = write_folder(tmp_path, train_byte_level(gpt2_style(), 300), ("<|im_end|>",), tokenizer_config={})
    change = {f"add_{role}_token": True, f"{role}_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    change_json(folder, change, "tokenizer_config.json")
    found = load_tokenizer(folder, SIZE, config={f"{role}_token_id": configured})
    assert not found.add_bos
    assert not found.add_eos
    assert AutoTokenizer.from_pretrained(folder)("ab").input_ids == found.encode("ab")
    assert any(f"add_{role}_token is true, but no tokenizer file names the token" in note for note in found.notes)
