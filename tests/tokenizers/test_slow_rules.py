"""vocab.json and merges.txt put together: what each class adds, line by line, without loading a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.tokenizers.slow import is_slow, put_together, special_texts

VOCAB = {"a": 0, "b": 1, "ab": 2}
FOLDER = Path("folder")
END = "<|endoftext|>"


def made(
    merges: str = "#version: 0.2\na b\n", config: Any = None, model: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    return put_together(FOLDER, VOCAB, merges, config or {}, model or {})


def test_gpt2_has_bytes_alone() -> None:
    document, config = made(config={"tokenizer_class": "GPT2Tokenizer"})
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert document == {
        "normalizer": None,
        "pre_tokenizer": step,
        "post_processor": None,
        "decoder": {**step, "add_prefix_space": True},
        "model": {"type": "BPE", "vocab": VOCAB, "merges": [["a", "b"]]},
    }
    assert config == {"bos_token": END, "eos_token": END, "tokenizer_class": "GPT2Tokenizer"}


@pytest.mark.parametrize(("name", "marks"), [("Qwen2Tokenizer", False), ("Qwen3_5TokenizerFast", True)])
def test_qwen_splits_before(name: str, marks: bool) -> None:
    document, config = made(config={"tokenizer_class": name, "eos_token": "<e>"})
    assert document["normalizer"] == {"type": "NFC"}
    split, step = document["pre_tokenizer"]["pretokenizers"]
    assert (split["type"], split["behavior"], split["invert"]) == ("Split", "Isolated", False)
    assert (r"\p{M}" in split["pattern"]["Regex"]) is marks
    assert step == {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    assert config == {"eos_token": "<e>", "tokenizer_class": name}


@pytest.mark.parametrize(
    ("config", "model", "regex"),
    [
        ({"tokenizer_class": "CodeGenTokenizer"}, {"model_type": "qwen2"}, False),
        ({}, {"model_type": "codegen"}, False),
        ({}, {"model_type": "qwen3_moe"}, True),
        ({"tokenizer_class": None}, {"model_type": "qwen3_5"}, True),
    ],
)
def test_the_class_is_named_or_the_models(config: Any, model: Any, regex: bool) -> None:
    assert (made(config=config, model=model)[0]["normalizer"] is not None) is regex


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no file names the tokenizer's class"),
        ({"tokenizer_class": "LlamaTokenizer"}, "class is LlamaTokenizer; expected one of GPT2Tokenizer"),
        ({"tokenizer_class": 3}, "class is 3"),
    ],
)
def test_other_classes(config: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        made(config=config, model={"model_type": "llama"})


def test_a_space_before_a_text() -> None:
    for asked in (True, False):
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": asked}
        assert made(config=config)[0]["pre_tokenizer"]["add_prefix_space"] is asked


@pytest.mark.parametrize(
    ("merges", "pairs"),
    [
        ("a b\nb a", [["a", "b"], ["b", "a"]]),
        ("#version: 0.2\n\na b\n \n", [["a", "b"]]),
        ("#versio n\na b\n", [["#versio", "n"], ["a", "b"]]),
        ("a b\n#version: 0.2\n", [["a", "b"], ["#version:", "0.2"]]),
        ("", []),
    ],
)
def test_lines(merges: str, pairs: list[list[str]]) -> None:
    assert made(merges, {"tokenizer_class": "GPT2Tokenizer"})[0]["model"]["merges"] == pairs


@pytest.mark.parametrize(("merges", "line"), [("a b\na", 2), ("a b c", 1), ("\na  b", 2)])
def test_broken_lines(merges: str, line: int) -> None:
    with pytest.raises(CheckpointError, match=rf"merges\.txt: line {line} is .*; expected two tokens"):
        made(merges, {"tokenizer_class": "GPT2Tokenizer"})


def test_texts_with_a_role() -> None:
    config = {
        "eos_token": "<e>",
        "bos_token": {"content": "<b>"},
        "unk_token": "",
        "pad_token": 3,
        "cls_token": None,
        "additional_special_tokens": ["<x>", {"content": "<y>"}, 4],
        "other_token": "<o>",
    }
    assert special_texts(config, {"mask_token": "<m>", "additional_special_tokens": "<z>"}) == {
        "<e>",
        "<b>",
        "<x>",
        "<y>",
        "<m>",
    }
    assert special_texts({}) == frozenset()


def test_both_files_must_be_there(tmp_path: Path) -> None:
    assert not is_slow(tmp_path)
    (tmp_path / "vocab.json").touch()
    assert not is_slow(tmp_path)
    (tmp_path / "merges.txt").touch()
    assert is_slow(tmp_path)
    (tmp_path / "vocab.json").unlink()
    assert not is_slow(tmp_path)
