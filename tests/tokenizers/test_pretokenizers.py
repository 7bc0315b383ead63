"""Which pre-tokenizer of llama.cpp a tokenizer.json's steps are: the forms that are accepted, refusals, and known differences."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.formats.gguf.header import string
from gguf_tools.tokenizers.pretokenizers import (
    ASCII_CASE,
    ASCII_CASE_NO_MARKS,
    ASCII_DIGITS,
    BYTES,
    DIGIT,
    DIGITS,
    FAR_SPACES,
    GPT2,
    GPT4O,
    LLAMA3,
    MAX_DEPTH,
    QWEN2,
    TABLE,
    canonical,
    find,
    flatten,
    normalizes_to_nfc,
    split_steps,
)
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from tests.tokenizers.tokenizers_for_tests import byte_level_folder, llama_vocabulary

Step = dict[str, Any]
BYTE_LEVEL: Step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def split(regex: Any = QWEN2, **more: Any) -> Step:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False, **more}


def sequence(*steps: Any) -> Step:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("pre_tokenizer", "steps"),
    [
        ({**BYTE_LEVEL, "use_regex": True}, (GPT2,)),
        ({"type": "ByteLevel", "add_prefix_space": False}, (GPT2,)),
        (BYTE_LEVEL, ()),
        (sequence(split(), BYTE_LEVEL), (QWEN2,)),
        (sequence(split(), sequence(sequence(BYTE_LEVEL))), (QWEN2,)),
        (sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL), (DIGIT,)),
        (sequence({"type": "Digits", "individual_digits": False}, BYTE_LEVEL), (DIGITS,)),
        (sequence({"type": "Digits"}, BYTE_LEVEL), (DIGITS,)),
        (sequence(BYTE_LEVEL, {"type": "Digits"}), (BYTES, DIGITS)),
        (sequence({"type": "Punctuation"}, BYTE_LEVEL), ("<Punctuation Isolated>",)),
        (sequence({"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL), ("<Punctuation Contiguous>",)),
        (sequence(split(behavior="Removed", invert=True), BYTE_LEVEL), (QWEN2,)),
        (sequence(split(GPT2, behavior="Removed", invert=True), BYTE_LEVEL), (GPT2,)),
        (sequence({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated"}, BYTE_LEVEL), ("a",)),
    ],
)
def test_steps(pre_tokenizer: Step, steps: tuple[str, ...]) -> None:
    assert split_steps(pre_tokenizer, "file") == steps


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [
        ({"type": "ByteLevel"}, "add_prefix_space=true"),
        ({**BYTE_LEVEL, "add_prefix_space": True}, "add_prefix_space=true"),
        (None, r"no ByteLevel step \(none at all\)"),
        (split(), r"no ByteLevel step \(Split\)"),
        (sequence(BYTE_LEVEL, split(), BYTE_LEVEL), r"2 ByteLevel steps \(ByteLevel, Split, ByteLevel\)"),
        (sequence({"type": "Whitespace"}, BYTE_LEVEL), "no equivalent of the pre-tokenizer step 'Whitespace'"),
        (sequence(split(3), BYTE_LEVEL), "the pattern of a Split step is"),
        (sequence({**split(), "pattern": " "}, BYTE_LEVEL), "the pattern of a Split step is ' '"),
        (sequence({**split(), "pattern": {"String": " "}}, BYTE_LEVEL), "expected a regex"),
        (sequence(split(invert=True), BYTE_LEVEL), "behavior 'Isolated' with invert=True"),
        (sequence(split(behavior="Removed"), BYTE_LEVEL), "behavior 'Removed' with invert=False"),
        (sequence(split(behavior="MergedWithNext"), BYTE_LEVEL), "behavior 'MergedWithNext'"),
        # what the regex does not match would be dropped
        (
            sequence(split(r"\p{L}+|\s+", behavior="Removed", invert=True), BYTE_LEVEL),
            "behavior 'Removed' with invert=T",
        ),
        (sequence(split(r" ?[^\s\p{L}\p{N}]+", behavior="Removed", invert=True), BYTE_LEVEL), "behavior 'Removed'"),
    ],
)
def test_steps_that_llama_cpp_does_not_have(pre_tokenizer: Step | None, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as error:
        split_steps(pre_tokenizer, "file")
    assert str(error.value).startswith("file: ")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ([], "an entry of pretokenizers is not an object with a type"),
        ({}, "is not an object with a type"),
        ({"type": 3}, "is not an object with a type"),
        (sequence(None), "is not an object with a type"),
        ({"type": "Sequence"}, "pretokenizers is not a list"),
    ],
)
def test_broken_steps(node: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        flatten(node, "file")


def test_how_deep_sequences_may_be() -> None:
    node: Step = {"type": "Digits"}
    for _ in range(MAX_DEPTH):
        node = sequence(node)
    assert MAX_DEPTH == 8
    assert flatten(node, "file") == [{"type": "Digits"}]
    with pytest.raises(CheckpointError, match="nests Sequences more than 8 deep"):
        flatten(sequence(node), "file")
    inner = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFD"}]}
    assert [step["type"] for step in flatten(inner, "file", items="normalizers")] == ["NFC", "NFD"]


def test_normalizers() -> None:
    assert normalizes_to_nfc(None, "file") is False
    assert normalizes_to_nfc({"type": "Sequence", "normalizers": []}, "file") is False
    assert normalizes_to_nfc({"type": "NFC"}, "file") is True
    assert normalizes_to_nfc({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "file") is True
    for kind in ("NFKC", "Lowercase", "Prepend"):
        with pytest.raises(TokenizerError, match=f"the normalizer '{kind}' changes text"):
            normalizes_to_nfc({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": kind}]}, "file")


CONTRACTIONS = ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "'(?i:[sdmt]|ll|ve|re)")


@pytest.mark.parametrize(
    ("pattern", "same"),
    [
        *((LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", spelled), LLAMA3) for spelled in CONTRACTIONS),
        (LLAMA3.replace("]+[", "]++[").replace(r"?\p{L}", r"?+\p{L}"), LLAMA3),
        (GPT2.removesuffix(r"|\s+"), GPT2),
        (GPT2.removesuffix("+"), GPT2),
        (LLAMA3, LLAMA3),
        (r"a|\s+", r"a|\s+"),
        ("a|\r\n\t", r"a|\r\n\t"),
    ],
)
def test_spellings_that_come_to_the_same(pattern: str, same: str) -> None:
    assert canonical(pattern) == same


@pytest.mark.parametrize("name", [row.name for row in TABLE if not row.refused])
def test_whether_llama_cpp_ignores_merges_under_a_name(tmp_path: Path, name: str) -> None:
    """The piece is in the vocabulary, and no merge gives it."""
    row = next(row for row in TABLE if row.name == name)
    folder = byte_level_folder(tmp_path, more=["th", "xy"])
    tokenizer = load_tokenizer(folder, 300)
    ids = llama_vocabulary(tmp_path, tokenizer, pre=string(row.name)).encode("xy")
    assert (len(ids) == 1) == row.ignore_merges


def test_rows_of_the_same_regexes() -> None:
    assert [row.name for row in find([LLAMA3], "file")] == ["llama-bpe", "dbrx"]
    assert [row.name for row in find([GPT4O], "file")] == ["granite-embed-multi-97m", "gpt-4o"]
    assert [row.limit for row in find([GPT4O], "file")] == [ASCII_CASE, ASCII_CASE_NO_MARKS]


def test_the_nearest_row_is_named() -> None:
    with pytest.raises(TokenizerError) as error:
        find([QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,2}|")], "file")
    assert "no pre-tokenizer that splits by" in str(error.value)
    assert re.search("the most similar is '(qwen2|dbrx)'", str(error.value))
    with pytest.raises(TokenizerError, match="splits by 'ByteLevel without a regex'"):
        find([], "file")


@pytest.mark.parametrize("row", [row for row in TABLE if row.refused], ids=lambda row: row.name)
def test_rows_that_llama_cpp_does_otherwise(row: Any) -> None:
    with pytest.raises(TokenizerError, match=f"corresponds to llama.cpp's '{row.name}', but that one splits no word"):
        find([canonical(step) for step in row.steps], "file")


def test_words_whose_case_only_unicode_knows() -> None:
    """Against the two regexes of a word: the tokenizer's, and llama.cpp's, which knows letters and ASCII's case alone."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    exact = Split(Regex(f"{upper}*{lower}+|{upper}+{lower}*"), "isolated")
    ours = Split(
        Regex(
            r"((?=[\p{L}\p{M}])([^a-z]))*((?=[\p{L}\p{M}])([^A-Z]))+|((?=[\p{L}\p{M}])([^a-z]))+((?=[\p{L}\p{M}])([^A-Z]))*"
        ),
        "isolated",
    )
    words = ["".join(chars) for length in (1, 2, 3, 4) for chars in product("AZazÉéǅ中", repeat=length)]
    for word in words:
        differs = exact.pre_tokenize_str(word) != ours.pre_tokenize_str(word)
        assert ASCII_CASE.affects(word) == differs, word
        assert ASCII_CASE_NO_MARKS.affects(word) == differs, word
    for text in ("Hello World 12 É", "", "12", "a É"):
        assert not ASCII_CASE.affects(text)
    assert ASCII_CASE.affects("Hello éHello")
    # Marks are part of a word for both regexes, but not for the name that has no marks.
    assert not ASCII_CASE.affects("e\u0301t")
    assert ASCII_CASE_NO_MARKS.affects("e\u0301t")
    assert ASCII_CASE.affects("e\u0301tÉt") == ASCII_CASE.affects("etÉt") is True


@pytest.mark.parametrize(
    ("text", "far", "digit"),
    [
        ("a b\u00a0c", False, False),
        ("\u2009", True, False),
        ("a\u3000", True, False),
        ("\u0800\u4e00", False, False),
        ("12", False, False),
        ("٣", False, True),
        ("a३", False, True),
        ("½ⅷ²", False, False),
    ],
)
def test_spaces_and_digits_that_differ(text: str, far: bool, digit: bool) -> None:
    assert (FAR_SPACES.affects(text), ASCII_DIGITS.affects(text)) == (far, digit)
