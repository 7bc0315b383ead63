"""Byte-level BPE: small vocabularies, each made for one rule of the conversion and of the library's tokenizer beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.tokenizers import digits
from gguf_tools.tokenizers.backend import NOT_ADDED, build_backend, build_finder, guarded, unreachable
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.byte_level_bpe import convert_byte_level
from gguf_tools.tokenizers.files import TokenizerFiles, read_files
from gguf_tools.tokenizers.form import Form
from gguf_tools.tokenizers.pretokenizers import LLAMA3, QWEN2
from gguf_tools.tokenizers.probe import probe_pieces
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from tests.tokenizers.tokenizers_for_tests import byte_level_folder, llama_vocabulary

CONTROL = TokenType.CONTROL
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split_by(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTES]}}


def form_of(folder: Path, *, approximate: bool = False) -> Form:
    files = read_files(folder)
    kinds = {token.id: CONTROL if token.special else TokenType.USER_DEFINED for token in files.added}
    return convert_byte_level(files, kinds, approximate=approximate)[0]


def test_a_plain_vocabulary(tmp_path: Path) -> None:
    form = form_of(byte_level_folder(tmp_path))
    assert (form.model, form.pre, form.merges, form.notes) == ("gpt2", "gpt-2", ("t h",), ())
    assert (form.limits, form.nfc, form.approximation) == ((), False, None)
    assert form.bytes_known == frozenset(range(256))
    nfc = form_of(byte_level_folder(tmp_path, document={"normalizer": {"type": "NFC"}}))
    assert nfc.nfc is True
    assert ["normalizes text to NFC" in note for note in nfc.notes] == [True]


MORE = ("ab", "bc", "abc", "a b", "a bc")


@pytest.mark.parametrize(
    ("merges", "kept", "notes"),
    [
        ([("a", "b"), ("b", "c"), ("ab", "c")], ("a b", "b c", "ab c"), []),
        # Of equal merges the last counts.
        ([("a", "b"), ("b", "c"), ("a", "b")], ("b c", "a b"), ["1 merges are listed twice"]),
        ([("a", "b"), ("a", "b"), ("a", "b")], ("a b",), ["2 merges are listed twice"]),
        ([("a b", "c"), ("b", "c")], ("b c",), ["1 merges have tokens with a space"]),
        ([("a", " b"), ("b", "c")], ("b c",), ["1 merges have tokens with a space"]),
    ],
)
def test_merges(tmp_path: Path, merges: Sequence[tuple[str, str]], kept: tuple[str, ...], notes: Sequence[str]) -> None:
    folder = byte_level_folder(tmp_path, (), more=[*MORE, " b"], merges=merges)
    form = form_of(folder)
    assert form.merges == kept
    assert len(form.notes) == len(notes)
    assert all(part in said for part, said in zip(notes, form.notes, strict=True))
    tokenizer = load_tokenizer(folder, 300)
    llama = llama_vocabulary(folder, tokenizer)
    for text in ("abc", "bcab", "abab c", "a bc"):
        assert llama.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ((0xC0, 0xC1, 0xF5, 0xFF), None),
        ((0xF4,), "no token for 1 of 256 bytes"),
        ((0xBF, 0xC2), "no token for 2 of 256 bytes"),
        ((0,), "no token for 1 of 256 bytes"),
    ],
)
def test_bytes_without_a_token(tmp_path: Path, missing: Sequence[int], note: str | None) -> None:
    characters = byte_characters()
    kept = [char for byte, char in enumerate(characters) if byte not in missing]
    vocab = {token: n for n, token in enumerate([*kept, "th"])}
    for unknown in (None, "t"):
        form = form_of(byte_level_folder(tmp_path, (), model={"vocab": vocab, "unk_token": unknown}))
        assert form.bytes_known == frozenset(range(256)) - set(missing)
        assert len(form.notes) == (note is not None)
        if note is not None:
            assert note in form.notes[0]
            assert ("llama.cpp drops" in form.notes[0]) == (unknown is not None)


@pytest.mark.parametrize(
    ("regex", "wanted", "reachable", "name"),
    [
        (LLAMA3, True, True, "llama-bpe"),
        (LLAMA3, True, False, "llama-bpe"),
        (LLAMA3, False, True, "llama-bpe"),
        (LLAMA3, False, False, "dbrx"),
        (QWEN2, False, False, "qwen2"),
        (QWEN2, False, True, "qwen2"),
        (QWEN2, True, True, "qwen2"),
        (QWEN2, True, False, "ignore_merges is true, and 1 tokens, such as 'xy', .* it is off with 'qwen2'"),
    ],
)
def test_whether_merges_are_ignored(tmp_path: Path, regex: str, wanted: bool, reachable: bool, name: str) -> None:
    more = ["th"] if reachable else ["th", "xy"]
    folder = byte_level_folder(tmp_path, (), more=more, model={"ignore_merges": wanted}, document=split_by(regex))
    if name.isidentifier() or "-" in name[:6]:
        assert form_of(folder).pre == name
        return
    with pytest.raises(TokenizerError, match=name):
        form_of(folder)


def test_merges_that_must_be_made_where_llama_cpp_ignores_them(tmp_path: Path) -> None:
    steps = [{"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False}]
    word = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps += [{**steps[0], "pattern": {"Regex": word}}, BYTES]
    document = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    assert form_of(byte_level_folder(tmp_path, (), document=document)).pre == "minicpm5"
    with pytest.raises(TokenizerError, match=r"ignore_merges is false, .* it is on with 'minicpm5'"):
        form_of(byte_level_folder(tmp_path, (), more=["th", "xy"], document=document))


TWOS = LLAMA3.replace("{1,3}", "{1,2}")


def test_digits_in_twos_need_the_users_consent(tmp_path: Path) -> None:
    folder = byte_level_folder(
        tmp_path, (), more=["12", "23", "th"], merges=[("1", "2"), ("2", "3")], document=split_by(TWOS)
    )
    with pytest.raises(
        TokenizerError, match=r"--allow-approximate accepts '(llama-bpe|dbrx)', which cuts digits in threes"
    ):
        form_of(folder)
    files = read_files(folder)
    form, (plain, _) = convert_byte_level(files, {}, approximate=True)
    threes = HFTokenizer.from_str(plain.to_str().replace("{1,2}", "{1,3}"))
    assert threes.encode("12123").ids != plain.encode("12123").ids
    numbers = sum(plain.encode(str(n)).ids != threes.encode(str(n)).ids for n in range(10_000))
    pieces = [piece for piece in probe_pieces() if plain.encode(piece).ids != threes.encode(piece).ids]
    (limit,) = form.limits
    assert f"({numbers:,} of the numbers from 0 to 9,999 are, and {len(pieces)} of " in limit.note
    assert numbers > 0
    assert form.approximation == f"digits cut in threes, not in twos ({form.pre})"


def test_consent_changes_nothing_else(tmp_path: Path) -> None:
    form = form_of(byte_level_folder(tmp_path, (), document=split_by(LLAMA3)), approximate=True)
    assert (form.approximation, form.limits, form.pre) == (None, (), "llama-bpe")
    other = byte_level_folder(tmp_path, (), document=split_by(TWOS + "|x"))
    for approximate in (False, True):
        with pytest.raises(TokenizerError, match="no pre-tokenizer that splits by") as error:
            form_of(other, approximate=approximate)
        assert "--allow-approximate" not in str(error.value)


def test_which_steps_cut_digits_in_twos() -> None:
    assert digits.in_threes([TWOS], "file") == (LLAMA3,)
    assert digits.in_threes([LLAMA3], "file") is None
    assert digits.in_threes(["x" + TWOS], "file") is None
    assert digits.in_threes([], "file") is None


@pytest.mark.parametrize(
    ("text", "long"),
    [
        ("12", False),
        ("123", True),
        ("a1b2c3", False),
        ("1½Ⅷ", True),
        ("12 34", False),
        ("abc", False),
        ("", False),
        ("x1234y", True),
    ],
)
def test_long_numbers(text: str, long: bool) -> None:
    assert digits.has_long_number(text) is long


def kinds_of(files: TokenizerFiles, **changed: TokenType) -> Mapping[int, TokenType]:
    return {token.id: changed.get(token.content, TokenType.USER_DEFINED) for token in files.added}


def test_the_library_parses_control_tokens_only_if_told_to(tmp_path: Path) -> None:
    added = [{"content": name, "special": name in "AB"} for name in ("A_", "B_", "C_")]
    files = read_files(byte_level_folder(tmp_path, added))
    plain, parsing = build_backend(files, kinds_of(files, A_=CONTROL, B_=TokenType.UNKNOWN, C_=TokenType.USER_DEFINED))
    ids = {token.content: token.id for token in files.added}
    assert parsing.encode("A_B_C_").ids == [ids["A_"], ids["B_"], ids["C_"]]
    found = set(plain.encode("A_B_C_").ids)
    assert found & set(ids.values()) == {ids["C_"]}


def test_byte_tokens_are_no_added_tokens(tmp_path: Path) -> None:
    files = read_files(byte_level_folder(tmp_path, [{"content": "th"}]))
    for kind in (TokenType.BYTE, TokenType.USER_DEFINED):
        finder = build_finder(files, kinds_of(files, th=kind))[1]
        assert (finder.encode("ath").ids != [NOT_ADDED]) == (kind != TokenType.BYTE)
        assert build_backend(files, kinds_of(files, th=kind))[1].token_to_id("th") == 256


def test_what_added_tokens_do_is_kept_and_the_rest_is_switched_off(tmp_path: Path) -> None:
    added = [
        {"content": "<l>", "lstrip": True},
        {"content": "<r>", "rstrip": True},
        {"content": "word", "single_word": True},
    ]
    document = {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 50},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["a", 97],
            "cls": ["b", 98],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
    }
    files = read_files(byte_level_folder(tmp_path, added, document=document, model={"dropout": 0.9}))
    tokens = {token.content: token.id for token in files.added}
    for backend in build_backend(files, kinds_of(files)):
        assert backend.encode("th" * 20).ids == [256] * 20
        assert backend.encode("a <l> <r> b").ids == [97, tokens["<l>"], backend.encode(" ").ids[0], tokens["<r>"], 98]
        assert tokens["word"] in backend.encode("a word").ids
        assert tokens["word"] not in backend.encode("aword").ids
    for finder in build_finder(files, kinds_of(files)):
        assert finder.encode(" <l> xwordx<r> ").tokens == ["", "<l>", "", "word", "", "<r>", ""]


def test_an_id_with_a_gap_before_it_is_refused(tmp_path: Path) -> None:
    files = read_files(byte_level_folder(tmp_path, [{"content": "<x>", "id": 300}]))
    with pytest.raises(CheckpointError, match=r"'<x>' has id 300, but the tokenizers library gives it id 257; "):
        build_backend(files, kinds_of(files))


def test_tokens_that_merging_does_not_give(tmp_path: Path) -> None:
    files = read_files(byte_level_folder(tmp_path, (), more=["th", "xy", "the"], model={"ignore_merges": True}))
    plain, _ = build_backend(files, {})
    assert unreachable(plain, files.vocab) == ["xy", "the"]
    assert unreachable(plain, ["th", "a"]) == []


def test_failures_of_the_library_are_one_short_line() -> None:
    with (
        pytest.raises(CheckpointError, match=r"^file: the tokenizers library fails on a text: 'one two'$"),
        guarded(Path("file")),
    ):
        raise Exception("one\n two")
    with pytest.raises(CheckpointError) as error, guarded(Path("file"), "rejects it"):
        raise Exception("x" * 300)
    assert str(error.value) == f"file: the tokenizers library rejects it: '{'x' * 198}…"
    panic = type("PanicException", (BaseException,), {})  # of pyo3_runtime, which cannot be imported
    with pytest.raises(CheckpointError, match="fails on a text"), guarded(Path("file")):
        raise panic
    for other in (KeyboardInterrupt, ValueError, MemoryError, TokenizerError):
        with pytest.raises(other), guarded(Path("file")):
            raise other


def test_what_holds_unless_a_form_says_otherwise() -> None:
    """All bytes have tokens, text is not normalized, and the text after control tokens is tokenized alike."""
    form = Form(model="llama", pre="default", kinds={})
    assert (form.sections, form.nfc, form.bytes_known) == (True, False, frozenset(range(256)))
    assert (form.ids, form.scores, form.add_space_prefix, form.remove_extra_whitespaces) == (None, None, None, None)
