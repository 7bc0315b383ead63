"""Added tokens that llama.cpp finds elsewhere in a text than the tokenizers library: a note says so; all other texts agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.tokenizers.added_tokens import longest_first
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.test_sentencepiece_rules import BYTES, CONTROL, LETTERS, PREPEND, REPLACE, WORDS
from tests.tokenizers.test_sentencepiece_rules import written as sentencepiece_folder
from tests.tokenizers.tokenizers_for_tests import LlamaVocabulary, byte_level_folder, llama_vocabulary

NFC = {"normalizer": {"type": "NFC"}}
LLAMA3 = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {
                "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            },
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


def control(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "special": True, **flags}


def user(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "special": False, **flags}


def pair(folder: Path) -> tuple[Tokenizer, LlamaVocabulary]:
    tokenizer = load_tokenizer(folder, 400)
    return tokenizer, llama_vocabulary(folder, tokenizer)


def compared(tokenizer: Tokenizer, llama: LlamaVocabulary, parts: Sequence[str]) -> tuple[set[str], set[str]]:
    """Of all texts of up to three parts, those that the two cut differently, and those that a limit names."""
    texts = {"".join(chosen) for length in (1, 2, 3) for chosen in product(parts, repeat=length)}
    named = {text for text in texts if any(limit.affects(text) for limit in tokenizer.limits)}
    differ = {
        text
        for text in texts
        if any(llama.encode(text, special) != tokenizer.encode(text, special=special) for special in (False, True))
    }
    return differ, named


BYTE_LEVEL_CASES: Mapping[str, tuple[Sequence[Mapping[str, Any]], Mapping[str, Any], str, Sequence[str]]] = {
    # added tokens, what else is in the file, a text that the two cut differently, what else texts are made of
    "crossing": ([user("  "), user("<ab"), user("b>cd")], {}, "<ab>cd", ["<a", ">", "cd"]),
    "crossing a run of one character": ([user("=="), user("=>>")], {}, "==>>", ["=", ">", "x"]),
    "beside one that is its end": ([user("q"), user("qXq"), user("qZZZ")], {}, "qXqZZZ", ["X", "Z"]),
    "equally long": ([user("ab"), user("bc"), user("ca")], {}, "cab", ["a", "b", "c"]),
    "raw before normalized": ([user("<a>", normalized=True), user("a")], {}, "<a>", ["<", "a", ">"]),
    "within a control token": ([control("<no>"), user("no")], {}, "<no>", ["<", ">", "n"]),
    "not in NFC": ([user("e\u0301", normalized=True)], NFC, "é", ["é", "x"]),
    "strips on the left": ([user("<l>", lstrip=True)], {}, " <l>", [" ", "\n", "x"]),
    "strips on the right": ([control("<r>", rstrip=True)], {}, "<r>\n", [" ", "\n", "x"]),
    "whole words": ([user("be", single_word=True)], {}, "bex", ["x", " ", "-", "é"]),
    "a piece where merges are ignored": (
        [user("th"), user("plain"), control("P\nD"), control("<|D|>"), control("PAD")],
        {"pre_tokenizer": LLAMA3, "model": {"ignore_merges": True}},
        "PAD",
        ["P", "AD", " ", "!"],
    ),
    "stored as a space and a letter": (
        [user("Ġq")],
        {"pre_tokenizer": LLAMA3, "model": {"ignore_merges": True}},
        " q",
        ["q", " ", "!", "Ġ"],
    ),
}


def case(folder: Path, name: str) -> tuple[Tokenizer, LlamaVocabulary, str, Sequence[str]]:
    added, more, text, parts = BYTE_LEVEL_CASES[name]
    more = dict(more)
    model = more.pop("model", {})
    # No merge gives "xy", so that it matters whether merges are ignored.
    made = byte_level_folder(folder, added, more=["th", "xy"], model=model, document=more)
    return *pair(made), text, parts


@pytest.mark.parametrize("name", BYTE_LEVEL_CASES)
def test_what_is_found_differently_is_named(tmp_path: Path, name: str) -> None:
    tokenizer, llama, text, parts = case(tmp_path, name)
    contents = [token["content"] for token in BYTE_LEVEL_CASES[name][0]]
    differ, named = compared(tokenizer, llama, [*parts, *contents])
    assert text in differ
    assert differ <= named
    # No limit names a text without any of these tokens.
    assert all(any(token in one for token in (text, *contents)) for one in named)
    (limit,) = tokenizer.limits
    assert limit.note in tokenizer.notes
    probe(tokenizer, llama.encode)


def test_a_control_token_that_stands_for_a_byte_without_a_token(tmp_path: Path) -> None:
    """llama.cpp takes the character for the byte, whose text is among the tokens; the library drops it."""
    vocab = {char: n for n, char in enumerate(char for char in [*byte_characters(), "th"] if char != "q")}
    tokens = [{**control("q"), "id": 256}, {**control("qw"), "id": 257}]
    tokenizer, llama = pair(byte_level_folder(tmp_path, tokens, model={"vocab": vocab}))
    (limit,) = [limit for limit in tokenizer.limits if "also matches" in limit.note]
    assert "matches 'q' where plain text has 'q'" in limit.note
    assert (llama.encode("aq"), tokenizer.encode("aq")) == ([vocab["a"], 256], [vocab["a"]])
    assert [limit.affects(text) for text in ("aq", "qw", "a", "w")] == [True, True, False, False]
    probe(tokenizer, llama.encode)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("crossing", "tokens such as '<ab' and 'b>cd' overlap"),
        ("crossing a run of one character", "tokens such as '==' and '=>>' overlap"),
        ("raw before normalized", "tokens such as '<a>' and 'a' overlap"),
        ("within a control token", "in plain text it finds 'no' within '<no>'"),
        ("not in NFC", "in the normalized text, llama.cpp in the text as it is"),
        ("strips on the left", "spaces beside '<l>' are stripped"),
        ("whole words", "'be' must be whole words"),
        ("a piece where merges are ignored", "also matches 'PAD' where plain text has 'PAD'"),
        ("stored as a space and a letter", "also matches 'Ġq' where plain text has ' q'"),
    ],
)
def test_what_the_note_says(tmp_path: Path, name: str, note: str) -> None:
    tokenizer = case(tmp_path, name)[0]
    assert len([said for said in tokenizer.notes if note in said]) == 1


@pytest.mark.parametrize(
    ("added", "more"),
    [
        ([user("ab"), user("abc"), user("b")], {}),
        ([user("  "), user("   "), user("\n\n"), control("\t")], {}),
        ([user("aba")], {}),
        ([user("a"), user("ab"), user("b")], {}),
        ([user("<a>"), user("a", normalized=True)], {}),
        ([control("<a>"), control("a")], {}),
        ([user("<a>"), control("a")], {}),
        ([user("é", normalized=True), user("e\u0301")], NFC),
        ([control("<|PAD|>")], {"pre_tokenizer": LLAMA3, "model": {"ignore_merges": True}}),
        ([user("PAD")], {"pre_tokenizer": LLAMA3, "model": {"ignore_merges": True}}),
        ([control("P\nD")], {"pre_tokenizer": LLAMA3, "model": {"ignore_merges": True}}),
        ([control("PAD")], {"pre_tokenizer": LLAMA3}),
    ],
)
def test_tokens_that_both_find_alike(tmp_path: Path, added: list[dict[str, Any]], more: Mapping[str, Any]) -> None:
    more = dict(more)
    model = more.pop("model", {})
    made = byte_level_folder(tmp_path, added, more=["th", "xy"], model=model, document=more)
    tokenizer, llama = pair(made)
    assert tokenizer.limits == ()
    parts = ["a", "b", "c", " ", "\n", "<", *(token["content"] for token in added)]
    assert compared(tokenizer, llama, parts) == (set(), set())


@pytest.mark.parametrize(
    ("normalizers", "added", "text", "note"),
    [
        ([PREPEND, REPLACE], [user("c?!", normalized=True)], "ac?!", "looks for 'c?!' in the normalized text"),
        ([REPLACE], [user("c c", normalized=True)], "c▁c", "looks for 'c c' in the normalized text"),
        ([REPLACE], [user("c▁c", normalized=True)], "c c", "looks for 'c▁c' in the normalized text"),
        ([REPLACE], [control("é")], "é", "also matches 'é' in plain text"),
        ([PREPEND, REPLACE], [user("c?!", normalized=False)], None, ""),
        ([REPLACE], [user("c?!", normalized=True)], None, ""),
    ],
)
def test_sentencepiece(tmp_path: Path, normalizers: list[Any], added: list[Any], text: str | None, note: str) -> None:
    tokens = [
        {**token, "id": len(CONTROL) + len(BYTES) + len(LETTERS) + len(WORDS) + n} for n, token in enumerate(added)
    ]
    tokenizer, llama = pair(sentencepiece_folder(tmp_path, normalizers=normalizers, added=tokens))
    differ, named = compared(tokenizer, llama, ["a", "c", " ", "▁", "?!", *(token["content"] for token in added)])
    assert differ <= named
    if text is None:
        assert named == set()
        assert not any("in the normalized text" in said for said in tokenizer.notes)
    else:
        assert text in differ
        assert sum(note in said for said in tokenizer.notes) == 1
    probe(tokenizer, llama.encode)


def test_an_unknown_token_that_is_no_added_token(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, more=["?!"], unk_token="?!")
    tokenizer, llama = pair(folder)
    differ, named = compared(tokenizer, llama, ["?", "!", "a"])
    assert differ == named == {text for text in named if "?!" in text}
    assert differ


def test_longest_first() -> None:
    assert longest_first(["a", "aa", "éé"], "aaaéééa") == [(0, 2, "aa"), (2, 3, "a"), (3, 5, "éé"), (6, 7, "a")]
    # By bytes: two of é are four.
    assert longest_first(["bcd", "éé", "éb"], "ééb") == [(0, 2, "éé")]
    assert longest_first(["abc", "bé"], "abcbé") == [(0, 3, "abc"), (3, 5, "bé")]
    assert longest_first(["cdx", "béc"], "béc") == [(0, 3, "béc")]
    assert longest_first(["ab", "bc"], "abc") == [(0, 2, "ab")]
    assert longest_first(["bc", "ab"], "abc") == [(1, 3, "bc")]
    assert longest_first(["abc"], "ab") == longest_first([], "ab") == []


def test_of_equally_long_tokens_either_may_come_first(tmp_path: Path) -> None:
    """llama.cpp sorts by length alone, so that no order is promised."""
    tokenizer, _ = pair(byte_level_folder(tmp_path, [user("ab"), user("bc"), user("ca")]))
    (limit,) = tokenizer.limits
    assert [limit.affects(text) for text in ("abc", "bca", "cab", "abab", "acbd")] == [True, True, True, False, False]
