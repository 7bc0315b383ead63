"""Which SentencePiece-like vocabularies become which of llama.cpp's two algorithms: small ones, each made for one rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import TokenType

from gguf_tools.errors import TokenizerError
from gguf_tools.tokenizers.files import read_files
from gguf_tools.tokenizers.piece_model import OUTER_SPACES, SEVERAL_SPACES
from gguf_tools.tokenizers.sentencepiece import (
    EXTRA_SPACES,
    after_own,
    convert_sentencepiece,
    is_sentencepiece,
    leading_space,
    merged,
    no_space_after,
)
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import llama_vocabulary

PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
BYTES = [f"<0x{n:02X}>" for n in range(256)]
CONTROL = ["<unk>", "<s>", "</s>"]
LETTERS = ["▁", "a", "b", "c", "\n"]
WORDS = ["ab", "abc", "bc", "▁a", "▁ab"]
EVERY = [["a", "b"], ["ab", "c"], ["a", "bc"], ["b", "c"], ["▁", "a"], ["▁a", "b"], ["▁", "ab"]]
"""Every join of `WORDS`, each token's together."""


def metaspace(scheme: str | None, *, split: bool = False, **more: Any) -> dict[str, Any]:
    step = {"type": "Metaspace", "replacement": "▁", "split": split, **more}
    return step if scheme is None else {**step, "prepend_scheme": scheme}


def written(
    folder: Path,
    *,
    normalizers: Sequence[Mapping[str, Any]] = (REPLACE,),
    steps: Sequence[Mapping[str, Any]] = (),
    merges: Sequence[Sequence[str]] = EVERY,
    more: Sequence[str] = (),
    added: Sequence[Mapping[str, Any]] = (),
    **model: Any,
) -> Path:
    """A folder with such a tokenizer; `more` are further tokens of the vocabulary, `added` further added tokens."""
    vocab = {token: n for n, token in enumerate([*CONTROL, *BYTES, *LETTERS, *WORDS, *more])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [{"id": n, "content": token, "special": True, **flags} for n, token in enumerate(CONTROL)]
    document = {
        "version": "1.0",
        "added_tokens": [
            *tokens,
            *({**flags, "special": False, "id": vocab.get(one["content"]), **one} for one in added),
        ],
        "normalizer": {"type": "Sequence", "normalizers": list(normalizers)} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)} if steps else None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": list(merges),
            **model,
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def size(folder: Path) -> int:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return len(document["model"]["vocab"])


def loaded(folder: Path) -> Tokenizer:
    return load_tokenizer(folder, size(folder))


TEXTS = ["".join(parts) for length in (1, 2, 3, 4) for parts in product("abc ", repeat=length)] + ["é ab", "a\n\nb"]


def differing(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """The texts that llama.cpp cuts in another way, of those that no limit excludes."""
    llama = llama_vocabulary(folder, tokenizer)
    texts = [text for text in TEXTS if not any(limit.affects(text) for limit in tokenizer.limits)]
    assert texts
    return [text for text in texts if llama.encode(text) != tokenizer.encode(text)]


def test_scores_are_the_order_of_the_merged_tokens(tmp_path: Path) -> None:
    folder = written(tmp_path, more=["xyz"])
    tokenizer = loaded(folder)
    assert (tokenizer.model, tokenizer.pre, tokenizer.add_space_prefix) == ("llama", "default", False)
    assert tokenizer.scores is not None
    scores = dict(zip(tokenizer.tokens, tokenizer.scores, strict=True))
    order = ["ab", "abc", "bc", "▁a", "▁ab"]
    assert [scores[token] for token in order] == [0.0, -1.0, -2.0, -3.0, -4.0]
    # Below all merged tokens: characters and what no merge gives; bytes and control tokens have no score.
    assert {scores[token] for token in (*LETTERS, "xyz")} == {-5.0}
    assert {scores[token] for token in (*CONTROL, *BYTES)} == {0.0}
    assert {tokenizer.token_types[tokenizer.tokens.index(token)] for token in BYTES} == {6}
    assert tokenizer.token_types[0] == 2
    assert not differing(folder, tokenizer)


THERE, NONE_AFTER = leading_space(CONTROL).note, no_space_after(CONTROL).note
NO, UNLESS_THERE, ALWAYS, COLLAPSED = (False, ()), (True, (THERE,)), (True, ()), (False, (EXTRA_SPACES.note,))


@pytest.mark.parametrize(
    ("normalizers", "steps", "expected"),
    [
        ([REPLACE], [], NO),
        ([PREPEND, REPLACE], [], ALWAYS),
        ([REPLACE], [SPLIT], NO),
        ([], [metaspace("never")], NO),
        ([], [metaspace("always")], UNLESS_THERE),
        ([], [metaspace("first")], (True, (THERE, NONE_AFTER))),
        ([], [metaspace(None)], UNLESS_THERE),
        ([], [metaspace(None, add_prefix_space=True)], UNLESS_THERE),
        ([PREPEND, REPLACE], [metaspace("never")], ALWAYS),
        ([PREPEND], [metaspace("first")], ALWAYS),
        ([REPLACE], [metaspace("never"), SPLIT], NO),
        ([OUTER_SPACES, SEVERAL_SPACES, REPLACE], [], COLLAPSED),
        ([OUTER_SPACES, SEVERAL_SPACES, PREPEND, REPLACE], [], (True, (EXTRA_SPACES.note,))),
    ],
)
def test_what_is_done_to_spaces(
    tmp_path: Path, normalizers: list[Any], steps: list[Any], expected: tuple[bool, tuple[str, ...]]
) -> None:
    folder = written(tmp_path, normalizers=normalizers, steps=steps)
    assert is_sentencepiece(read_files(folder))
    tokenizer = loaded(folder)
    assert (tokenizer.add_space_prefix, tuple(limit.note for limit in tokenizer.limits)) == expected
    assert bool(tokenizer.probe_tokens) == (NONE_AFTER not in expected[1])
    assert not differing(folder, tokenizer)


@pytest.mark.parametrize(
    ("normalizers", "steps", "message"),
    [
        ([REPLACE, PREPEND], [], "no equivalent of the normalizer 'Prepend'"),
        ([{"type": "Prepend", "prepend": "x"}, REPLACE], [], "no equivalent of the normalizer 'Prepend'"),
        ([REPLACE, SEVERAL_SPACES], [], "no equivalent of the normalizer 'Replace'"),
        ([PREPEND, OUTER_SPACES, REPLACE], [], "no equivalent of the normalizer 'Replace'"),
        ([{**REPLACE, "content": "_"}], [metaspace("never")], "no equivalent of the normalizer 'Replace'"),
        ([], [SPLIT, metaspace("never")], "the pre-tokenizer step 'Split' splits where"),
        ([REPLACE], [{**SPLIT, "pattern": {"String": "a"}}], "the pre-tokenizer step 'Split' splits where"),
        ([], [{**metaspace("never"), "replacement": "_"}], "the pre-tokenizer step 'Metaspace' splits where"),
    ],
)
def test_what_llama_cpp_does_not_do_to_spaces(
    tmp_path: Path, normalizers: list[Any], steps: list[Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        loaded(written(tmp_path, normalizers=normalizers, steps=steps))


def test_a_byte_level_vocabulary_is_another_kind(tmp_path: Path) -> None:
    steps = [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]
    assert not is_sentencepiece(read_files(written(tmp_path, steps=steps)))
    assert not is_sentencepiece(read_files(written(tmp_path, normalizers=[])))


def test_a_split_at_spaces_allows_no_space_inside_of_a_token(tmp_path: Path) -> None:
    steps = [metaspace("never", split=True)]
    assert not differing(tmp_path, loaded(written(tmp_path, normalizers=[], steps=steps)))
    inside = written(tmp_path, normalizers=[], steps=steps, merges=[*EVERY, ["a", "▁"]], more=["a▁"])
    with pytest.raises(TokenizerError, match="splits at every space, but a merge gives 'a▁'"):
        loaded(inside)
    # A step that says nothing of it splits; one that does not may have such tokens.
    silent = {key: value for key, value in steps[0].items() if key != "split"}
    with pytest.raises(TokenizerError, match="splits at every space"):
        loaded(written(tmp_path, normalizers=[], steps=[silent], merges=[*EVERY, ["a", "▁"]], more=["a▁"]))
    whole = written(tmp_path, normalizers=[], steps=[metaspace("never")], merges=[*EVERY, ["a", "▁"]], more=["a▁"])
    assert not differing(whole, loaded(whole))


def test_every_byte_needs_a_token(tmp_path: Path) -> None:
    document = json.loads((written(tmp_path) / "tokenizer.json").read_text("utf-8"))
    for lacking in ("<0x00>", "<0x7F>", "<0xFF>"):
        vocab = {("<x>" if token == lacking else token): n for token, n in document["model"]["vocab"].items()}
        changed = {**document, "model": {**document["model"], "vocab": vocab}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed), "utf-8")
        with pytest.raises(TokenizerError, match=f"the vocabulary has no token {lacking}"):
            loaded(tmp_path)


@pytest.mark.parametrize(
    ("merges", "plain"),
    [
        # The merges of "abc" are apart from each other: those of another token are between them.
        ([["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"], ["▁", "a"], ["▁a", "b"], ["▁", "ab"]], True),
        # One of its joins is no merge.
        ([["a", "b"], ["ab", "c"], ["b", "c"], ["▁", "a"], ["▁a", "b"], ["▁", "ab"]], True),
        # Listed twice, the second counts.
        ([["a", "b"], *EVERY], False),
        ([*EVERY, ["a", "b"]], True),
    ],
)
def test_merges_that_are_not_those_of_sentencepiece(tmp_path: Path, merges: list[list[str]], plain: bool) -> None:
    folder = written(tmp_path, merges=merges)
    tokenizer = loaded(folder)
    assert (tokenizer.model, tokenizer.pre) == (("gpt2", "sarvam-moe") if plain else ("llama", "default"))
    assert not differing(folder, tokenizer)
    if plain:
        assert len(set(tokenizer.merges)) == len(tokenizer.merges)
        assert tokenizer.add_space_prefix is False
        before = written(tmp_path, merges=merges, normalizers=[PREPEND, REPLACE])
        with pytest.raises(TokenizerError, match="its merges are not those of SentencePiece"):
            loaded(before)


def test_a_join_that_gives_an_added_token_is_noted(tmp_path: Path) -> None:
    """llama.cpp may join it from pieces of plain text, which the tokenizer never does."""
    folder = written(tmp_path, more=["cab", "ca"], merges=[*EVERY, ["c", "a"]], added=[{"content": "cab"}])
    tokenizer = loaded(folder)
    assert tokenizer.model == "llama"
    assert [note for note in tokenizer.notes if "also matches" in note] == [
        "llama.cpp also matches 'cab' in plain text, the tokenizer does not"
    ]
    assert "cab" not in tokenizer.probe_tokens


def test_a_control_token_that_llama_cpp_merges_from_plain_text_is_a_limit(tmp_path: Path) -> None:
    folder = written(tmp_path, more=["<", "s", ">", "<s"], merges=[*EVERY, ["<", "s"]])
    tokenizer = loaded(folder)
    (limit,) = tokenizer.limits
    assert limit.note == "llama.cpp also matches '<s>' in plain text, the tokenizer does not"
    assert limit.note in tokenizer.notes
    llama = llama_vocabulary(folder, tokenizer)
    bos = tokenizer.tokens.index("<s>")
    texts = ["<s>", "a<s>b", "ab <s> c", "<s >", "<s", "s>", "</s>", "< s>", "<<s>>"]
    for text in texts:
        assert (bos in llama.encode(text)) == limit.affects(text)
        assert bos not in tokenizer.encode(text)
        assert (llama.encode(text) == tokenizer.encode(text)) != limit.affects(text)
    assert not differing(folder, tokenizer)


def test_merged_tokens_with_a_space_are_found_after_an_added_token() -> None:
    limit = merged({"▁ab"}, ["<x>"])
    assert [limit.affects(text) for text in ("ab", "c ab", "<x>ab", "<x>b", "cab")] == [True, True, True, False, False]


def test_control_tokens_of_several_characters_are_no_letters(tmp_path: Path) -> None:
    """llama.cpp merges nothing to them, so that text that spells them out is the same for both."""
    size = len(CONTROL) + len(BYTES) + len(LETTERS) + len(WORDS)
    added = [{"id": size + n, "content": content, "special": True} for n, content in enumerate(("<x>", "#"))]
    tokenizer = load_tokenizer(written(tmp_path, added=added), size + 2)
    (limit,) = [limit for limit in tokenizer.limits if "also matches" in limit.note]
    assert "'#'" in limit.note
    assert "'<x>'" not in limit.note


def test_line_ends_are_never_merged_with_text(tmp_path: Path) -> None:
    incomplete = [["a", "b"], ["ab", "c"], ["b", "c"], ["▁", "a"], ["▁a", "b"], ["▁", "ab"]]
    ends = written(tmp_path, merges=[*incomplete, ["\n", "\n"]], more=["\n\n"])
    assert loaded(ends).pre == "sarvam-moe"
    crossing = written(tmp_path, merges=[*incomplete, ["a", "\n"]], more=["a\n"])
    with pytest.raises(TokenizerError, match=r"a merge gives 'a\\n'"):
        loaded(crossing)


def test_limits_name_the_texts_that_differ() -> None:
    space = leading_space(["<x>", "<sep>"])
    for text, leading, extra in (
        ("a b", False, False),
        (" a", True, True),
        ("▁a", True, False),
        ("a ", False, True),
        ("a  b", False, True),
        ("", False, False),
        ("a<x> b", True, False),
        ("a<x>▁b", True, False),
        ("<sep>a <x>b", False, False),
        ("<x><x> b", True, False),
    ):
        assert (space.affects(text), EXTRA_SPACES.affects(text)) == (leading, extra)
    own = after_own(["<sep>", "<x>"])
    assert [own.affects(text) for text in ("a", "a<x>b", "<sep>")] == [False, True, True]
    assert "'<sep>'" in own.note


RUNS = [["aaa", "a"], ["aa", "aa"], ["aa", "a"], ["a", "aaa"], ["a", "aa"], ["a", "a"]]
"""Of "a", as transformers converts pieces of one score: those with a longer left half first."""


def test_merges_of_runs_are_interleaved(tmp_path: Path) -> None:
    """llama.cpp extends the leftmost run of those with equal scores."""
    folder = written(tmp_path, merges=[*EVERY, *RUNS], more=["aa", "aaa", "aaaa"])
    tokenizer = loaded(folder)
    assert tokenizer.scores is not None
    scores = dict(zip(tokenizer.tokens, tokenizer.scores, strict=True))
    assert [scores[token] for token in ("▁ab", "aa", "aaa", "aaaa", "▁")] == [-4.0, -6.0, -5.0, -5.0, -8.0]
    llama = llama_vocabulary(tmp_path, tokenizer)
    for text in ("a" * n + end for n in range(1, 12) for end in ("", "b", " a")):
        assert llama.encode(text) == tokenizer.encode(text)


AB = [["aa", "b"], ["ab", "b"], ["a", "ab"], ["a", "bb"]]
"""Of "aab" and "abb", taking turns."""


@pytest.mark.parametrize(
    ("merges", "more", "model"),
    [
        ([*RUNS[1:3], RUNS[0], *RUNS[3:]], ["aa", "aaa", "aaaa"], "gpt2"),
        ([RUNS[4], RUNS[2], RUNS[0], RUNS[1], RUNS[3], RUNS[5]], ["aa", "aaa", "aaaa"], "llama"),
        ([RUNS[4], RUNS[2], RUNS[5]], ["aa", "aaa"], "llama"),
        ([RUNS[4], RUNS[0], RUNS[2], RUNS[1], RUNS[3], RUNS[5]], ["aa", "aaa", "aaaa"], "gpt2"),
        ([*RUNS[:4], ["b", "b"], *RUNS[4:]], ["aa", "aaa", "aaaa", "bb"], "llama"),
        ([["a", "a"], ["b", "b"], *AB], ["aa", "bb", "aab", "abb"], "gpt2"),
        ([["a", "a"], ["b", "b"], AB[0], AB[2], AB[1], AB[3]], ["aa", "bb", "aab", "abb"], "llama"),
    ],
)
def test_merges_of_tokens_that_take_turns(tmp_path: Path, merges: list[list[str]], more: list[str], model: str) -> None:
    folder = written(tmp_path, merges=[*EVERY, *merges], more=more)
    tokenizer = loaded(folder)
    assert tokenizer.model == model
    llama = llama_vocabulary(tmp_path, tokenizer)
    for text in ("".join(parts) for parts in product(["a", "aa", "aaa", "b", "bb"], repeat=4)):
        assert llama.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_pieces_of_the_users_own(tmp_path: Path, name: str, special: bool, prefix: bool) -> None:
    """Only SentencePiece's own code puts spaces otherwise around them, and only where one is put before a text."""
    normalizers: list[Any] = [PREPEND, REPLACE] if prefix else [REPLACE]
    files = read_files(written(tmp_path, normalizers=normalizers, more=["<x>"], added=[{"content": "<x>"}]))
    added = tuple(replace(token, special=special or token.special) for token in files.added)
    made = replace(files, path=files.path.with_name(name), added=added)
    kinds = {token.id: TokenType.CONTROL if token.special else TokenType.USER_DEFINED for token in added}
    form = convert_sentencepiece(made, kinds, None)
    said = [limit for limit in form.limits if "puts no space after '<x>'" in limit.note]
    assert len(said) == (name == "tokenizer.model" and not special and prefix)
    assert 0 not in {number for number, kind in form.kinds.items() if kind == TokenType.UNKNOWN}


@pytest.mark.parametrize("collapsed", [False, True])
def test_spaces_that_are_dropped_where_merges_are_plain(tmp_path: Path, collapsed: bool) -> None:
    before: list[Any] = [OUTER_SPACES, SEVERAL_SPACES] if collapsed else []
    incomplete = [["a", "b"], ["ab", "c"], ["b", "c"]]
    folder = written(tmp_path, normalizers=[*before, REPLACE], merges=incomplete)
    tokenizer = loaded(folder)
    assert tokenizer.pre == "sarvam-moe"
    assert tokenizer.limits == ((EXTRA_SPACES,) if collapsed else ())
    assert not differing(folder, tokenizer)


def test_tokens_across_spaces_where_nothing_splits_at_them(tmp_path: Path) -> None:
    merges = [*EVERY, ["a", "▁"], ["a", "▁a"], ["a▁", "a"]]
    folder = written(tmp_path, merges=merges, more=["a▁", "a▁a"])
    assert loaded(folder).model == "llama"
    assert not differing(folder, loaded(folder))
