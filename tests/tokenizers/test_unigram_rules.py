"""Unigram models: small ones, each made for one rule of what llama.cpp does to spaces and characters before it cuts a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.tokenizers.pretokenizers import Limit
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.unigram import (
    FIRST_SPACE,
    GRAPHEMES,
    LAST_SPACE,
    NO_SPACE,
    ONLY_SPACES,
    ROUNDING,
    WHITE_SPACE,
    WRITTEN_SPACE,
    in_parts,
    white_space,
)
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import llama_vocabulary

LEAF = 1 << 31
PIECES = [
    ["<unk>", 0.0],
    ["</s>", 0.0],
    ["▁", -2.0],
    ["a", -3.0],
    ["b", -3.5],
    ["▁a", -4.0],
    ["ab", -5.0],
    ["▁b", -9.0],
]
ROWS = 12
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
INNER = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
OUTER = {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}
STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
WORDS = {"type": "WhitespaceSplit"}


def metaspace(scheme: str | None = "always", *, split: bool = True, **more: Any) -> dict[str, Any]:
    step = {"type": "Metaspace", "replacement": "▁", "split": split, **more}
    return step if scheme is None else {**step, "prepend_scheme": scheme}


def table(units: Mapping[int, int], size: int = 256, texts: bytes = b"x\0") -> dict[str, Any]:
    """A table of characters whose units are zeros but for these."""
    packed = b"".join(units.get(n, 0).to_bytes(4, "little") for n in range(size))
    data = len(packed).to_bytes(4, "little") + packed + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


TABLE = table({97: 1 << 10 | 256 | 97, 96: LEAF}, texts=b"b\0")
"""Makes "a" a "b": unit 97, which "a" leads to, has the offset 1, so that its value is unit 96, the text at 0."""


def written(
    folder: Path,
    normalizers: Sequence[Mapping[str, Any]] = (),
    steps: Sequence[Mapping[str, Any]] = (),
    *,
    pieces: Sequence[Any] = PIECES,
    added: Sequence[Mapping[str, Any]] = (),
    **model: Any,
) -> Path:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    control = [{"id": n, "content": text, "special": True, **flags} for n, text in enumerate(("<unk>", "</s>"))]
    more = [{**flags, "special": False, "id": n, **token} for n, token in enumerate(added, len(pieces))]
    document = {
        "version": "1.0",
        "added_tokens": [*control, *more],
        "normalizer": {"type": "Sequence", "normalizers": list(normalizers)} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)} if steps else None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": list(pieces), **model},
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}), "utf-8")
    return folder


TEXTS = [
    "".join(parts) for length in (1, 2, 3) for parts in product(["a", "b", " ", "  ", "▁", "c", "\n"], repeat=length)
]


def differing(folder: Path, tokenizer: Tokenizer, texts: Sequence[str] = TEXTS) -> list[str]:
    """The texts that llama.cpp cuts in another way, of those that no limit excludes."""
    llama = llama_vocabulary(folder, tokenizer)
    fair = [text for text in texts if not any(limit.affects(text) for limit in tokenizer.limits)]
    assert len(fair) > 10
    return [
        text
        for text in fair
        if any(llama.encode(text, special) != tokenizer.encode(text, special=special) for special in (False, True))
    ]


WHITE = white_space(WHITE_SPACE).note
ONLY, FIRST, LAST, THERE, ALL = ONLY_SPACES.note, FIRST_SPACE.note, LAST_SPACE.note, WRITTEN_SPACE.note, GRAPHEMES.note


@pytest.mark.parametrize(
    ("normalizers", "steps", "prefix", "removed", "limits"),
    [
        ([REPLACE], [], False, False, []),
        ([PREPEND, REPLACE], [], True, False, [ONLY]),
        ([], [metaspace("never")], False, False, []),
        ([], [metaspace("always")], True, False, [THERE, ONLY, FIRST]),
        ([], [metaspace(None)], True, False, [THERE, ONLY, FIRST]),
        ([INNER], [metaspace("always")], True, True, [THERE, LAST]),
        ([{**INNER, "content": "▁"}], [metaspace("always")], True, True, [THERE, LAST]),
        ([{**INNER, "pattern": {"Regex": "  +"}}, PREPEND, REPLACE], [], True, True, [LAST, FIRST]),
        ([INNER, OUTER, PREPEND, REPLACE], [], True, True, []),
        ([TABLE, INNER, PREPEND, REPLACE], [], True, True, [ALL, LAST, FIRST]),
        ([TABLE, STRIP, INNER], [metaspace("always")], True, True, [ALL, THERE, WHITE]),
        ([TABLE, {**STRIP, "strip_left": True}, INNER, PREPEND, REPLACE], [], True, True, [ALL, WHITE]),
        (
            [TABLE, {**STRIP, "strip_left": True, "strip_right": False}, INNER, PREPEND, REPLACE],
            [],
            True,
            True,
            [ALL, LAST, WHITE],
        ),
        ([TABLE], [WORDS, metaspace("always")], True, True, [ALL, THERE, WHITE]),
    ],
)
def test_what_is_done_to_spaces(
    tmp_path: Path, normalizers: Any, steps: Any, prefix: bool, removed: bool, limits: list[str]
) -> None:
    folder = written(tmp_path, normalizers, steps)
    tokenizer = load_tokenizer(folder, ROWS)
    assert (tokenizer.model, tokenizer.pre) == ("t5", "default")
    assert (tokenizer.add_space_prefix, tokenizer.remove_extra_whitespaces) == (prefix, removed)
    assert [limit.note for limit in tokenizer.limits][: len(limits)] == limits
    assert "a control token such as '<unk>' spelled out" in tokenizer.limits[len(limits)].note
    assert len(tokenizer.limits) == len(limits) + 1
    assert tokenizer.token_types[:9] == (2, 3, 1, 1, 1, 1, 1, 1, 5)
    assert tokenizer.scores is not None
    assert tokenizer.scores[:8] == tuple(score for _, score in PIECES)
    assert bool(tokenizer.charsmap) == (TABLE in normalizers)
    assert tokenizer.probe_tokens == ("<unk>", "</s>")
    assert not differing(folder, tokenizer)


@pytest.mark.parametrize("steps", [[metaspace("always")], [metaspace("first")], [metaspace("never")]])
@pytest.mark.parametrize("flags", [{}, {"special": True}, {"normalized": True}])
def test_text_after_added_tokens(tmp_path: Path, steps: Any, flags: Mapping[str, bool]) -> None:
    folder = written(tmp_path, [], steps, added=[{"content": "<x>", **flags}])
    tokenizer = load_tokenizer(folder, ROWS)
    texts = ["".join(parts) for length in (1, 2, 3) for parts in product(["a", " ", "b", "<x>", "▁"], repeat=length)]
    assert not differing(folder, tokenizer, texts)


@pytest.mark.parametrize(
    ("normalizers", "added", "named"),
    [
        # with the space before a text it is spelled, without it not
        ([PREPEND, REPLACE], "▁ab", {"ab": True, "b ab": True, "b  ab": True, "bab": False, "<x>ab": True}),
        ([INNER, PREPEND, REPLACE], "▁b▁b", {"b b": True, "a b  b": True, "bb": False}),
        ([REPLACE], "▁ab", {"bab": False, " ab": True, "▁ab": True}),
        # "a" becomes "b", but llama.cpp keeps what begins as one of these does
        ([TABLE, PREPEND, REPLACE], "ca", {"ca": True, "xca": True, "cb": False, "ba": False}),
        ([TABLE, PREPEND, REPLACE], "xbb", {"xab": True, "xbb": False, "ab": False}),
        ([TABLE, PREPEND, REPLACE], "abc", {"ca": True, "bc": False}),
        ([PREPEND, REPLACE], "xbb", {"xab": False, "xbb": False}),
    ],
)
def test_tokens_that_the_normalized_text_spells(
    tmp_path: Path, normalizers: Any, added: str, named: Mapping[str, bool]
) -> None:
    tokens: list[Mapping[str, Any]] = [{"content": added}, {"content": "<x>", "special": True}]
    tokenizer = load_tokenizer(written(tmp_path, normalizers, added=tokens), ROWS)
    limits = [limit for limit in tokenizer.limits if "where the text becomes that when it is normalized" in limit.note]
    assert {text: any(limit.affects(text) for limit in limits) for text in named} == named
    assert all(f"also matches {added!r} where" in limit.note for limit in limits)
    parts = ["a", "b", "c", "x", " ", "▁", "<x>", added]
    assert not differing(tmp_path, tokenizer, ["".join(made) for made in product(parts, repeat=3)])


@pytest.mark.parametrize(("pieces", "split", "named"), [(2, True, True), (3, True, False), (2, False, False)])
def test_a_vocabulary_without_the_space(tmp_path: Path, pieces: int, split: bool, named: bool) -> None:
    kept = [*PIECES[:pieces], *PIECES[3:5]]
    tokenizer = load_tokenizer(written(tmp_path, [], [metaspace(split=split)], pieces=kept), ROWS)
    assert (NO_SPACE in tokenizer.limits) is named
    assert [NO_SPACE.affects(text) for text in ("a b", "ab", "a▁b")] == [True, False, True]
    assert not differing(tmp_path, tokenizer)


def test_a_space_before_the_first_text_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, [], [metaspace("first")]), ROWS)
    assert any("after an added token llama.cpp adds a space" in note for note in tokenizer.notes)
    assert tokenizer.probe_tokens == ()
    words = load_tokenizer(written(tmp_path, [TABLE], [WORDS, metaspace("first")]), ROWS)
    assert not any("after an added token llama.cpp adds a space" in note for note in words.notes)


@pytest.mark.parametrize(
    ("normalizers", "steps", "message"),
    [
        ([TABLE, TABLE, REPLACE], [], "no equivalent of the normalizer 'Precompiled' here"),
        ([INNER, TABLE], [metaspace()], "'Precompiled' here"),
        ([REPLACE, INNER], [], "'Replace' here"),
        ([PREPEND, INNER, REPLACE], [], "'Replace' here"),
        ([{**INNER, "content": "x"}], [metaspace()], "'Replace' here"),
        ([{**INNER, "pattern": {"Regex": " {3,}"}}], [metaspace()], "'Replace' here"),
        ([{**OUTER, "content": " "}], [metaspace()], "'Replace' here"),
        ([PREPEND, OUTER, REPLACE], [], "'Replace' here"),
        ([STRIP], [metaspace()], "'Strip' here"),
        ([TABLE, PREPEND, STRIP, REPLACE], [], "'Strip' here"),
        ([{**PREPEND, "prepend": "x"}, REPLACE], [], "'Prepend' here"),
        ([REPLACE, PREPEND], [], "'Prepend' here"),
        ([{**REPLACE, "content": "_"}], [metaspace()], "'Replace' here"),
        ([{**REPLACE, "pattern": {"String": "a"}}], [metaspace()], "'Replace' here"),
        ([{"type": "NFKC"}], [metaspace()], "'NFKC' here"),
        ([], [], "no step replaces spaces by '▁'"),
        ([PREPEND], [], "no step replaces spaces"),
        ([], [WORDS, metaspace()], "the pre-tokenizer step 'WhitespaceSplit' splits"),
        ([TABLE, REPLACE], [WORDS, metaspace()], "'WhitespaceSplit' splits"),
        ([TABLE, PREPEND], [WORDS, metaspace()], "'WhitespaceSplit' splits"),
        ([], [metaspace(), metaspace()], "'Metaspace' splits"),
        ([PREPEND, REPLACE], [metaspace()], "'Metaspace' splits"),
        ([], [metaspace(replacement="_")], "'Metaspace' splits"),
        ([], [{"type": "Digits"}], "'Digits' splits"),
        ([INNER, REPLACE], [], "leaves one of several spaces without adding one"),
        ([OUTER], [metaspace()], "drops spaces at the ends of a text alone"),
        ([TABLE, STRIP], [metaspace()], "drops spaces at the ends of a text alone"),
        ([TABLE, {**STRIP, "strip_left": True, "strip_right": False}], [metaspace()], "drops spaces at the ends"),
    ],
)
def test_what_llama_cpp_does_not_do(tmp_path: Path, normalizers: Any, steps: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(written(tmp_path, normalizers, steps), ROWS)


LEAST = "the least score, which decides about unknown characters"


@pytest.mark.parametrize(
    ("pieces", "added", "model", "message"),
    [
        (PIECES, (), {"byte_fallback": True}, r"model\.byte_fallback is True"),
        (PIECES, (), {"unk_id": None}, r"model\.unk_id is None"),
        (PIECES, (), {"unk_id": True}, r"model\.unk_id is True"),
        (PIECES, (), {"unk_id": -1}, r"model\.unk_id is -1"),
        (PIECES, (), {"unk_id": len(PIECES)}, "model.unk_id is 8; llama.cpp needs an unknown token among the 8 pieces"),
        ([*PIECES, ["▁a▁b", -1.0]], (), {}, "Metaspace splits at every space, but there is a piece '▁a▁b'"),
        ([*PIECES, ["a▁", -1.0]], (), {}, "Metaspace splits at every space, but there is a piece 'a▁'"),
        ([["<unk>", 0.0], ["</s>", 0.0]], (), {}, LEAST),
        ([["<unk>", -9.0], ["</s>", 0.0], ["a", -8.0]], (), {}, LEAST),
        ([["<unk>", 0.0], ["</s>", -9.0], ["a", -8.0]], (), {}, LEAST),
    ],
)
def test_models_that_llama_cpp_does_not_have(
    tmp_path: Path, pieces: Any, added: Any, model: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(written(tmp_path, [], [metaspace()], pieces=pieces, added=added, **model), ROWS)


@pytest.mark.parametrize(
    ("pieces", "steps", "model"),
    [
        ([["<unk>", -9.0], ["</s>", 0.0], ["a", -9.0]], [metaspace()], {}),
        ([*PIECES[:2], ["a", -1.0]], [metaspace()], {"unk_id": 1}),
        ([*PIECES[:2], ["a", -1.0]], [metaspace()], {"unk_id": 0}),
        ([*PIECES, ["▁a▁b", -1.0]], [metaspace(split=False)], {}),
        ([*PIECES, ["▁▁", -1.0]], [metaspace(split=False)], {}),
    ],
)
def test_models_that_llama_cpp_has(tmp_path: Path, pieces: Any, steps: Any, model: Mapping[str, Any]) -> None:
    folder = written(tmp_path, [], steps, pieces=pieces, **model)
    assert load_tokenizer(folder, ROWS).token_types[model.get("unk_id", 0)] == 2


def test_flags_that_are_absent_have_the_librarys_values(tmp_path: Path) -> None:
    """Bytes are no fallback, and Metaspace splits: both sides then give the same."""
    folder = written(tmp_path, [], [{key: value for key, value in metaspace().items() if key != "split"}])
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    del document["model"]["byte_fallback"]
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    tokenizer = load_tokenizer(folder, ROWS)
    assert ROUNDING not in tokenizer.notes  # which is of SentencePiece's own sums
    assert not differing(folder, tokenizer)
    document["model"]["vocab"].append(["a▁b", -1.0])
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(TokenizerError, match="Metaspace splits at every space, but there is a piece 'a▁b'"):
        load_tokenizer(folder, ROWS)


def test_words_that_are_split_stay_so(tmp_path: Path) -> None:
    """WhitespaceSplit has split already, whatever a Metaspace after it does."""
    folder = written(tmp_path, [TABLE], [WORDS, metaspace(split=False)], pieces=[*PIECES, ["a▁b", -1.0]])
    with pytest.raises(TokenizerError, match="Metaspace splits at every space, but there is a piece 'a▁b'"):
        load_tokenizer(folder, ROWS)


def test_the_longest_added_token_parts_a_text() -> None:
    limit = in_parts(Limit("", lambda text: text.startswith(" ")), ["a", "ab"])
    assert limit.affects("cab c")
    assert not limit.affects("cabc c")


def test_an_added_token_may_have_a_space_in_it(tmp_path: Path) -> None:
    pieces = [*PIECES, ["x▁y", -1.0]]
    folder = written(tmp_path, [], [metaspace()], pieces=pieces)
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    document["added_tokens"].append({**document["added_tokens"][0], "id": 8, "content": "x▁y", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    assert load_tokenizer(folder, ROWS).token_types[8] == 4


@pytest.mark.parametrize(
    ("step", "good"),
    [
        (TABLE, True),
        (table({}), True),
        # 255 units: a byte may lead beyond them
        (table({}, 255), False),
        (table({0: 255 << 10}), True),
        (table({0: 1}), True),  # the byte after the length is not of it
        (table({0: 256 << 10}), False),
        (table({0: 256 << 10}, 512), True),
        (table({0: 1 << 10 | 512}), False),
        (table({0: 1 << 10 | 512}, 512), True),
        # what is a value may lead anywhere
        (table({1: LEAF | 1}), True),
        (table({1: LEAF | 2}), False),
        # unit 97 says that unit 97 ^ 1 is a value
        (table({97: 1 << 10 | 256, 96: LEAF}), True),
        (table({97: 1 << 10 | 256}), False),
        (table({97: 1 << 10 | 256, 96: LEAF - 1}), False),
        (table({}, texts=b"x"), False),
        (table({}, texts=b"\0"), True),
        (table({}, texts=b""), False),
        (table({}, 0), False),
        ({"type": "Precompiled", "precompiled_charsmap": None}, False),
        ({"type": "Precompiled", "precompiled_charsmap": ""}, False),
        ({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\2\0\0\0abx\0").decode()}, False),
    ],
)
def test_tables_of_characters(tmp_path: Path, step: Any, good: bool) -> None:
    folder = written(tmp_path, [step, PREPEND, REPLACE])
    if not good:
        with pytest.raises(CheckpointError, match=r"precompiled_charsmap of .* bytes is broken"):
            load_tokenizer(folder, ROWS)
        return
    tokenizer = load_tokenizer(folder, ROWS)
    assert tokenizer.charsmap == base64.b64decode(step["precompiled_charsmap"])


STRAY = TABLE["precompiled_charsmap"][:4] + "!" + TABLE["precompiled_charsmap"][4:]
"""A table with a character between that base64 does not have."""


@pytest.mark.parametrize("value", ["A", "é", "AAA?", STRAY])
def test_a_table_that_is_no_base64(tmp_path: Path, value: str) -> None:
    step = {"type": "Precompiled", "precompiled_charsmap": value}
    with pytest.raises(CheckpointError, match="precompiled_charsmap is not base64"):
        load_tokenizer(written(tmp_path, [step, REPLACE]), ROWS)


def test_white_space_that_the_table_leaves(tmp_path: Path) -> None:
    """One that makes a space of a tab, as SentencePiece's own do of most white space."""
    spaces = table({9: 1 << 10 | 256 | 9, 8: LEAF}, texts=b" \0")
    tokenizer = load_tokenizer(written(tmp_path, [spaces], [WORDS, metaspace()]), ROWS)
    (limit,) = [limit for limit in tokenizer.limits if "white space other than the space itself" in limit.note]
    assert [limit.affects(text) for text in ("a\tb", "a b", "a\nb", "\x85", "\u2000")] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert "(U+000A, U+000B, U+000C, …)" in limit.note
    separators = {chr(code) for code in range(0x1C, 0x20)}  # white space for Python alone
    every = {chr(code) for code in range(0x10000) if chr(code).isspace()}
    assert set(WHITE_SPACE) == every - separators - {" "}
    assert "(U+0085)" in white_space("\x85").note
    assert "(U+0085, U+00A0, U+2000)" in white_space("\x85\xa0\u2000").note
    assert "(U+0085, U+00A0, U+2000, …)" in white_space("\x85\xa0\u2000\u2001").note
    assert not differing(tmp_path, tokenizer, ["".join(parts) for parts in product("ab \t\n", repeat=3)])


def test_scores_that_a_gguf_rounds(tmp_path: Path) -> None:
    """1e-9 is lost beside 1, so that "ab" by two pieces becomes as good as by one."""
    pieces = [*PIECES[:2], ["a", -0.5], ["b", -0.5], ["ab", -1.0 - 1e-9]]
    tokenizer = load_tokenizer(written(tmp_path, [REPLACE], pieces=pieces), ROWS)
    limit = tokenizer.limits[-1]
    assert "holds scores as float32" in limit.note
    assert limit.affects("ab") != (tokenizer.encode("ab") == [4])
    assert not limit.affects("ba")
    exact = load_tokenizer(written(tmp_path, [REPLACE]), ROWS)
    assert not any("holds scores as float32" in note for note in exact.notes)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a b", set()),
        ("", set()),
        (" ", {ONLY, FIRST, LAST}),
        ("\t\n", {ONLY, FIRST, LAST}),
        (" a", {FIRST}),
        ("a\u3000", {LAST}),
        ("\x00a", {FIRST}),
        ("▁", {ONLY, FIRST, LAST, THERE}),
        ("a▁b", {THERE}),
        ("a\x85b", set()),
        ("e\u0301", {ALL}),
        ("\r\n", {ALL, ONLY, FIRST, LAST}),
        ("\r", {ONLY, FIRST, LAST}),
        ("각", set()),
        ("\u1100", {ALL}),
        ("👍", set()),
        ("👍🏽", {ALL}),
        ("🇩🇪", {ALL}),
        ("a\u200db", {ALL}),
    ],
)
def test_texts_that_differ(text: str, named: set[str]) -> None:
    limits = (ONLY_SPACES, FIRST_SPACE, LAST_SPACE, WRITTEN_SPACE, GRAPHEMES)
    assert {limit.note for limit in limits if limit.affects(text)} == named


def test_control_tokens_in_plain_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, [REPLACE]), ROWS)
    (limit,) = tokenizer.limits
    assert [limit.affects(text) for text in ("a</s>", "<unk>", "a<s>")] == [True, True, False]


def test_a_panic_of_the_library_is_one_line(tmp_path: Path) -> None:
    """An added token that is looked for in what a table has made of a NUL; and a table whose texts are not UTF-8."""
    added = [{"content": " ", "normalized": True}]
    tokenizer = load_tokenizer(written(tmp_path, [TABLE, STRIP, INNER], [metaspace()], added=added), ROWS)
    assert tokenizer.encode("ab")
    said = f"{tokenizer.path}: the tokenizers library fails on a text: 'AddedVocabulary bad split'"
    for special in (False, True):
        with pytest.raises(CheckpointError) as error:
            tokenizer.encode("\xe9\0", special=special)
        assert str(error.value) == said
    with pytest.raises(CheckpointError) as error:
        probe(tokenizer, lambda text, special: [], "\xe9\0")
    assert str(error.value) == said
    with pytest.raises(
        CheckpointError, match=r"the tokenizers library fails on a text: .*Cannot parse precompiled_charsmap"
    ):
        load_tokenizer(written(tmp_path, [table({}, texts=b"\xff\0"), STRIP, INNER], [metaspace()]), ROWS)
