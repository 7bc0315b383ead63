"""What is written of a tokenizer: rows, types, keys and notes, by small vocabularies that are each made for one rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.tokenizers.pretokenizers import LLAMA3
from gguf_tools.tokenizers.vocabulary import LOWEST, MOST_TOKENS, Tokenizer, load_tokenizer
from tests.tokenizers.test_sentencepiece_rules import written as sentencepiece_folder
from tests.tokenizers.tokenizers_for_tests import BYTE_LEVEL, SPECIAL, byte_level_folder, llama_vocabulary

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
END = SPECIAL[0]
BYTES = 257
"""Rows of the bytes and the one merge; the added tokens follow."""


def loaded(folder: Path, rows: int = 300, **options: Any) -> Tokenizer:
    return load_tokenizer(folder, rows, **options)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path / "tokenizer", ())
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is a symbolic link to .*, outside the folder"):
        loaded(folder)


def test_the_rows(tmp_path: Path) -> None:
    added: list[Mapping[str, Any]] = [{"content": "<c>", "special": True}, {"content": "<u>"}]
    tokenizer = loaded(byte_level_folder(tmp_path, added), BYTES + 4)
    assert tokenizer.tokens[:2] == ("Ā", "ā")
    assert tokenizer.tokens[BYTES - 1 :] == ("th", "<c>", "<u>", f"[PAD{BYTES + 2}]", f"[PAD{BYTES + 3}]")
    assert tokenizer.token_types == (NORMAL,) * BYTES + (CONTROL, USER, UNUSED, UNUSED)
    assert tokenizer.vocab_size == BYTES + 4
    assert [note for note in tokenizer.notes if "padded" in note or "ids below" in note] == [
        f"vocabulary padded from {BYTES + 2} to {BYTES + 4}"
    ]
    exact = loaded(byte_level_folder(tmp_path, added), BYTES + 2)
    assert not any("padded" in note or "ids below" in note for note in exact.notes)


def test_ids_without_a_token(tmp_path: Path) -> None:
    vocab = {char: n * 2 for n, char in enumerate("abc")}
    folder = byte_level_folder(tmp_path, (), model={"vocab": vocab, "merges": [], "unk_token": "a"})
    tokenizer = loaded(folder, 5)
    assert tokenizer.tokens == ("a", "[PAD1]", "b", "[PAD3]", "c")
    assert tokenizer.token_types == (NORMAL, UNUSED, NORMAL, UNUSED, NORMAL)
    assert "2 ids below 5 have no token: filled as unused" in tokenizer.notes
    more = loaded(folder, 7)
    assert "2 ids below 5 have no token: filled as unused" in more.notes
    assert "vocabulary padded from 5 to 7" in more.notes


def test_padding_never_repeats_a_token(tmp_path: Path) -> None:
    names = [f"[PAD{BYTES + 3}]", f"[PAD{BYTES + 3}]_", "[PAD7]"]
    tokenizer = loaded(byte_level_folder(tmp_path, names), BYTES + 5)
    assert tokenizer.tokens[BYTES:] == (*names, f"[PAD{BYTES + 3}]__", f"[PAD{BYTES + 4}]")
    assert len(set(tokenizer.tokens)) == BYTES + 5


@pytest.mark.parametrize(
    ("added", "kind", "note"),
    [
        ({"content": "<x>", "special": True}, CONTROL, None),
        ({"content": "<x>", "special": False}, USER, None),
        ({"content": "<|im_end|>", "special": True}, CONTROL, None),
        (
            {"content": "<|im_end|>", "special": False},
            CONTROL,
            "makes '<|im_end|>' control tokens by name; in the tokenizer they are not special",
        ),
        ({"content": "<|message|>", "special": False}, USER, None),
        (
            {"content": "<|message|>", "special": True},
            USER,
            "makes '<|message|>' ordinary tokens by name; in the tokenizer they are special",
        ),
    ],
)
def test_types_by_name(tmp_path: Path, added: Mapping[str, Any], kind: int, note: str | None) -> None:
    tokenizer = loaded(byte_level_folder(tmp_path, [added], tokenizer_config={"eos_token": added["content"]}))
    assert tokenizer.token_types[BYTES] == kind
    said = [one for one in tokenizer.notes if "by name" in one]
    assert said == [] if note is None else len(said) == 1 and note in said[0]
    llama = llama_vocabulary(tmp_path, tokenizer)
    for special in (False, True):
        assert llama.encode(f"a{added['content']}b", special) == tokenizer.encode(
            f"a{added['content']}b", special=special
        )


def test_a_plain_token_with_a_name_that_llama_cpp_knows(tmp_path: Path) -> None:
    tokenizer = loaded(byte_level_folder(tmp_path, (), more=["th", "<|im_end|>", "</s>"]))
    (said,) = [note for note in tokenizer.notes if "by name" in note]
    assert said.startswith(
        "llama.cpp makes '</s>', '<|im_end|>' control tokens by name; in the tokenizer they are plain"
    )
    again = loaded(byte_level_folder(tmp_path, ["<|im_end|>"], more=["th", "<|im_end|>"]))
    assert not any("by name" in note for note in again.notes)


def test_the_keys(tmp_path: Path) -> None:
    roles = ("bos", "eos", "unk", "sep", "pad", "mask")
    names = [f"<{role}>" for role in roles]
    config = {f"{role}_token": name for role, name in zip(roles, names, strict=True)}
    folder = byte_level_folder(tmp_path, names, tokenizer_config={**config, "add_bos_token": True})
    tokenizer = loaded(folder)
    fields = {key.removeprefix("tokenizer.ggml."): field.value for key, field in tokenizer.metadata().items()}
    numbers = {role: BYTES + n for n, role in enumerate(roles)}
    assert {key: value for key, value in fields.items() if key not in ("tokens", "token_type")} == {
        "model": "gpt2",
        "pre": "gpt-2",
        "merges": ("t h",),
        "bos_token_id": numbers["bos"],
        "eos_token_id": numbers["eos"],
        "unknown_token_id": numbers["unk"],
        "seperator_token_id": numbers["sep"],
        "padding_token_id": numbers["pad"],
        "mask_token_id": numbers["mask"],
        "add_bos_token": True,
        "add_eos_token": False,
    }
    assert fields["tokens"] == tokenizer.tokens
    assert fields["token_type"] == tokenizer.token_types
    more = replace(
        tokenizer,
        eot_id=3,
        eom_id=4,
        add_space_prefix=False,
        remove_extra_whitespaces=True,
        charsmap=b"ab",
        chat_template="T",
        named_templates={"x": "X", "y": "Y"},
        scores=(0.5,) * 300,
    )
    added = {key: field.value for key, field in more.metadata().items() if key not in tokenizer.metadata()}
    assert added == {
        "tokenizer.ggml.scores": (0.5,) * 300,
        "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.eom_token_id": 4,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": tuple(b"ab"),
        "tokenizer.chat_template": "T",
        "tokenizer.chat_templates": ("x", "y"),
        "tokenizer.chat_template.x": "X",
        "tokenizer.chat_template.y": "Y",
    }
    for model in ("llama", "t5"):
        assert "tokenizer.ggml.merges" not in replace(tokenizer, model=model).metadata()


@pytest.mark.parametrize(
    ("eos", "pad", "rows", "written", "note"),
    [
        (True, False, 300, BYTES, None),
        (False, False, 300, BYTES + 2, "will run to its limit"),
        (False, True, BYTES + 2, BYTES + 1, "will run to its limit"),
        (False, True, 300, BYTES + 2, "will run to its limit"),
        (False, False, BYTES + 2, None, "will end at an ordinary token"),
    ],
)
def test_the_end_of_a_text(
    tmp_path: Path, eos: bool, pad: bool, rows: int, written: int | None, note: str | None
) -> None:
    config = {"eos_token": "<e>" if eos else None, "pad_token": "<p>" if pad else None}
    tokenizer = loaded(byte_level_folder(tmp_path, ["<e>", "<p>"], tokenizer_config=config), rows)
    fields = tokenizer.metadata()
    for role in ("bos", "eos"):
        field = fields.get(f"tokenizer.ggml.{role}_token_id")
        assert (field.value if field else None) == written
    assert [said for said in tokenizer.notes if "which token is EOS" in said] == [
        said for said in tokenizer.notes if note and note in said
    ]
    assert any("which token is EOS" in said for said in tokenizer.notes) == (note is not None)


def test_a_bos_of_its_own_is_kept(tmp_path: Path) -> None:
    config = {"bos_token": "<b>", "eos_token": "<e>"}
    fields = loaded(byte_level_folder(tmp_path, ["<b>", "<e>"], tokenizer_config=config)).metadata()
    assert (fields["tokenizer.ggml.bos_token_id"].value, fields["tokenizer.ggml.eos_token_id"].value) == (
        BYTES,
        BYTES + 1,
    )


@pytest.mark.parametrize("rows", [0, -1, MOST_TOKENS + 1])
def test_counts_of_rows_that_no_model_has(tmp_path: Path, rows: int) -> None:
    with pytest.raises(TokenizerError, match=f"a vocabulary of {rows} tokens; expected 1 to 8,388,608"):
        loaded(byte_level_folder(tmp_path), rows)


@pytest.mark.parametrize("rows", [1, MOST_TOKENS])
def test_counts_of_rows_that_there_may_be(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next thing that is looked at is refused."""
    folder = byte_level_folder(tmp_path, model={"type": "WordPiece"})
    with pytest.raises(TokenizerError, match=r"model\.type is 'WordPiece'"):
        loaded(folder, rows)


def test_tokens_beyond_the_rows(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, ["<a>", "<b>", "<c>", "<d>", "<e>"])
    with pytest.raises(TokenizerError) as error:
        loaded(folder, BYTES + 1)
    assert f"has {BYTES + 5} tokens (ids up to {BYTES + 4}), but the embeddings have {BYTES + 1} rows" in str(
        error.value
    )
    assert "none for '<b>' (258), '<c>' (259), '<d>' (260) and 1 more; leave these out" in str(error.value)
    cut = loaded(folder, BYTES + 1, drop_tokens=True)
    assert cut.tokens[-1] == "<a>"
    assert any("beyond the 258 rows of the embeddings are left out: '<b>' (258)" in note for note in cut.notes)
    for drop in (False, True):
        exact = loaded(folder, BYTES + 5, drop_tokens=drop)
        assert not any("are left out" in note for note in exact.notes)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ({"type": None}, TokenizerError, "model.type is None"),
        ({"type": "WordLevel"}, TokenizerError, "model.type is 'WordLevel'"),
        ({"continuing_subword_prefix": "##"}, TokenizerError, "continuing_subword_prefix is '##'; llama.cpp"),
        ({"end_of_word_suffix": "</w>"}, TokenizerError, "end_of_word_suffix is '</w>'"),
        ({"continuing_subword_prefix": "", "end_of_word_suffix": None}, None, ""),
        ({"byte_fallback": 1}, CheckpointError, "byte_fallback is 1; expected true or false"),
        ({"ignore_merges": "no"}, CheckpointError, "ignore_merges is 'no'"),
        ({"fuse_unk": []}, CheckpointError, "fuse_unk is list"),
        ({"fuse_unk": True, "byte_fallback": False}, None, ""),
    ],
)
def test_models_that_are_not_plain(
    tmp_path: Path, model: Mapping[str, Any], kind: type[Exception] | None, message: str
) -> None:
    folder = byte_level_folder(tmp_path, model=model)
    if kind is None:
        assert loaded(folder).model == "gpt2"
        return
    with pytest.raises(kind, match=message):
        loaded(folder)


def test_a_model_without_its_type(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    del document["model"]["type"]
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    assert loaded(folder).model == "gpt2"
    del document["model"]["merges"]
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(TokenizerError, match=r"model\.type is None"):
        loaded(folder)


def test_a_nul_ends_a_token_for_llama_cpp(tmp_path: Path) -> None:
    tokenizer = loaded(byte_level_folder(tmp_path, [{"content": "<\0>"}, {"content": "<x>"}]))
    assert (tokenizer.tokens[BYTES], tokenizer.token_types[BYTES]) == (f"[PAD{BYTES}]", UNUSED)
    (limit,) = tokenizer.limits
    assert [limit.affects(text) for text in ("a\0b", "ab")] == [True, False]
    assert sum("NUL" in note for note in tokenizer.notes) == 1
    assert loaded(byte_level_folder(tmp_path, ["<x>"])).limits == ()


def test_added_tokens_for_the_probe(tmp_path: Path) -> None:
    added: Sequence[Mapping[str, Any]] = [
        {"content": "<a>", "special": True},
        {"content": "<l>", "lstrip": True},
        {"content": "<r>", "rstrip": True},
        {"content": "<w>", "single_word": True},
        {"content": "<b>"},
        {"content": "<v>", "single_word": True, "rstrip": True},
    ]
    tokenizer = loaded(byte_level_folder(tmp_path, added))
    assert tokenizer.probe_tokens == ("<a>", "<b>")
    stripping = tokenizer.stripping
    assert (stripping.left, stripping.right) == (frozenset({"<l>"}), frozenset({"<r>", "<v>"}))
    assert stripping.probes == ("<l>", "<r>")
    assert stripping.note is not None
    assert stripping.note.startswith("spaces beside '<l>', '<r>', '<v>' are stripped")
    assert stripping.note in tokenizer.notes
    plain = loaded(byte_level_folder(tmp_path, added[:1]))
    assert (plain.stripping.note, plain.stripping.probes, plain.stripping.left) == (None, (), frozenset())


def test_scores_of_rows_without_a_token(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path)
    size = len(json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    tokenizer = loaded(folder, size + 2)
    assert tokenizer.scores is not None
    assert tokenizer.scores[-2:] == (LOWEST, LOWEST) == (-10000.0,) * 2
    assert LOWEST not in tokenizer.scores[:-2]
    assert loaded(byte_level_folder(tmp_path / "bytes")).scores is None


def test_both_ways_to_encode_and_the_way_back(tmp_path: Path) -> None:
    tokenizer = loaded(byte_level_folder(tmp_path, ["<c>"]), BYTES + 3)
    assert tokenizer.encode("<c>th") == [60, 99, 62, 256]
    assert tokenizer.encode("<c>th", special=True) == [BYTES, 256]
    assert tokenizer.decode([BYTES, 256, BYTES + 2]) == "<c>th"


def test_tokenizers_are_shown_and_compared_by_what_is_written(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    tokenizer, again = loaded(folder), loaded(folder)
    assert tokenizer == again
    assert tokenizer != replace(again, pre="other")
    shown = repr(tokenizer)
    assert not any(name in shown for name in ("charsmap", "bytes_known", "_plain", "_parsing"))
    assert "pre='gpt-2'" in shown


def test_an_approximation_needs_consent(tmp_path: Path) -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA3.replace("{1,3}", "{1,2}")},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [split, {**BYTE_LEVEL, "use_regex": False}]
    folder = byte_level_folder(tmp_path, document={"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})
    with pytest.raises(TokenizerError, match="--allow-approximate accepts"):
        loaded(folder)
    assert loaded(folder, approximate=True).approximation


def test_a_vocabulary_of_which_nothing_can_be_stored(tmp_path: Path) -> None:
    tokenizer = loaded(byte_level_folder(tmp_path, (), model={"vocab": {"\0": 0}, "merges": []}), 3)
    assert tokenizer.tokens == ("[PAD0]", "[PAD1]", "[PAD2]")
    assert "vocabulary padded from 0 to 3" in tokenizer.notes
