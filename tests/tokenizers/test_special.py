"""Roles of tokens, whether BOS and EOS are added, chat templates: each rule by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.tokenizers.files import AddedToken, TokenizerFiles
from gguf_tools.tokenizers.special import (
    FORCED_CONTROL,
    FORCED_TEXT,
    TURN_ENDS,
    SpecialTokens,
    find_chat_templates,
    find_special_tokens,
    forced_control,
    forced_text,
)
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from tests.tokenizers.tokenizers_for_tests import byte_level_folder, llama_vocabulary

TOKENS = ("<a>", "<b>", "<c>", "<d>", "<e>")
"""Control tokens with the ids 10 to 14."""
ROWS = 20


def made(
    *,
    tokens: Sequence[str] = TOKENS,
    ordinary: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
    special_map: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    processor: Any = None,
    model: Mapping[str, Any] | None = None,
    folder: Path = Path("folder"),
) -> TokenizerFiles:
    flags = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    return TokenizerFiles(
        path=folder / "tokenizer.json",
        document={} if processor is None else {"post_processor": processor},
        model=model or {},
        vocab={"x": 0, "y": 1, "z": 2, **(ordinary or {})},
        merges=(),
        added=tuple(AddedToken(id=n, content=token, special=True, **flags) for n, token in enumerate(tokens, 10)),
        config=config or {},
        special_map=special_map or {},
        generation=generation or {},
        notes=(),
    )


def found(files: TokenizerFiles, config: Mapping[str, Any] | None = None, add_bos: bool | None = None) -> SpecialTokens:
    return find_special_tokens(files, ROWS, config, add_bos)


def test_nothing_is_said() -> None:
    nothing = SpecialTokens(
        bos=None,
        eos=None,
        eot=None,
        eom=None,
        pad=None,
        unk=None,
        sep=None,
        mask=None,
        add_bos=False,
        add_eos=False,
        notes=(),
    )
    assert found(made()) == nothing
    assert found(made(), {"eos_token_id": None, "bos_token_id": -1}) == nothing


def test_every_role() -> None:
    config = {f"{role}_token": token for role, token in zip(("bos", "eos", "pad", "sep", "mask"), TOKENS, strict=True)}
    tokens = found(made(config={**config, "unk_token": "x"}))
    assert (tokens.bos, tokens.eos, tokens.pad, tokens.sep, tokens.mask, tokens.unk) == (10, 11, 12, 13, 14, 0)
    assert tokens.notes == ()


@pytest.mark.parametrize(
    ("files", "config", "expected", "notes"),
    [
        # tokenizer_config.json before special_tokens_map.json before generation_config.json before config.json
        (
            made(
                config={"pad_token": {"content": "<a>"}},
                special_map={"pad_token": "<b>"},
                generation={"pad_token_id": 10},
            ),
            {},
            10,
            0,
        ),
        (made(special_map={"pad_token": "<b>"}, generation={"pad_token_id": 12}), {"pad_token_id": 11}, 11, 1),
        (made(generation={"pad_token_id": 12}), {"pad_token_id": 13}, 12, 0),
        (made(), {"pad_token_id": 13}, 13, 0),
        (made(), {"pad_token_id": [13, 14]}, 13, 0),
        (made(), {"text_config": {"pad_token_id": 13}}, 13, 0),
        (made(), {"pad_token_id": 12, "text_config": {"pad_token_id": 13}}, 12, 0),
        (made(), {"pad_token_id": 0}, 0, 0),
        (made(), {"pad_token_id": ROWS - 1}, ROWS - 1, 0),
        (made(), {"pad_token_id": ROWS}, None, 1),
        (made(), {"pad_token_id": [ROWS, 3]}, 3, 1),
        (made(), {"text_config": 3}, None, 0),
        # what is not there is noted, and the next file is asked
        (made(config={"pad_token": "<z>"}, special_map={"pad_token": "<b>"}), {}, 11, 1),
        # a contradiction is noted
        (made(config={"pad_token": "<a>"}), {"pad_token_id": 11}, 10, 1),
        (made(config={"pad_token": "<a>"}, generation={"pad_token_id": 12}), {"pad_token_id": 11}, 10, 2),
        (made(config={"pad_token": "<a>"}), {"pad_token_id": [11, 10]}, 10, 0),
    ],
)
def test_who_says_the_role(files: TokenizerFiles, config: dict[str, Any], expected: int | None, notes: int) -> None:
    tokens = found(files, config)
    assert tokens.pad == expected
    assert len(tokens.notes) == notes


@pytest.mark.parametrize("value", [True, "3", 1.0, -2, [10, None], 1 << 31])
def test_ids_that_are_none(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: pad_token_id is .*expected a token id"):
        found(made(), {"pad_token_id": value})


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ({"unk_id": 1}, {"unk_token": "<a>"}, 1),
        ({"unk_id": 5}, {"unk_token": "<a>"}, 10),
        ({"unk_id": True}, {"unk_token": "<a>"}, 10),
        ({"unk_token": "y"}, {"unk_token": "<a>"}, 1),
        ({"unk_token": "nowhere"}, {"unk_token": "<a>"}, 10),
        ({"unk_token": None}, {}, None),
    ],
)
def test_the_unknown_token(model: Mapping[str, Any], config: Mapping[str, Any], expected: int | None) -> None:
    assert found(made(model=model, config=config)).unk == expected


@pytest.mark.parametrize(
    ("eos", "generation", "config", "expected", "notes"),
    [
        ("<a>", None, None, (10, None, None), []),
        (None, [12], None, (12, None, None), []),
        (None, [12, 11], None, (12, 11, None), []),
        (None, [12, 11, 10], None, (12, 11, 10), []),
        (None, [12, 12, 11], None, (12, 12, 11), []),
        (None, 1, None, (1, None, None), []),
        # the tokenizer's comes first
        ("<a>", [12, 10], None, (10, 12, None), []),
        (
            "<a>",
            [12],
            None,
            (10, 12, None),
            ["generation_config.json says eos is 12, the tokenizer says 10: generation"],
        ),
        # an ordinary token is no end where the tokenizer names one
        ("<a>", [2], None, (10, None, None), ["says eos is 2, an ordinary token; the tokenizer says 10: 2 is ignored"]),
        ("<a>", [2, 12, 10], None, (10, 12, None), ["says eos is 2, an ordinary token"]),
        ("x", [0], None, (0, None, None), []),
        # config.json is asked only if generation_config.json says nothing of use
        ("<a>", [12, 10], 13, (10, 12, None), []),
        ("<a>", [2], 13, (10, 13, None), ["ordinary token", "config.json says eos is 13, the tokenizer says 10"]),
        (None, None, 13, (13, None, None), []),
        (None, [12], 13, (12, None, None), []),
    ],
)
def test_ends_of_a_generation(
    eos: str | None,
    generation: Any,
    config: Any,
    expected: tuple[int | None, int | None, int | None],
    notes: Sequence[str],
) -> None:
    files = made(config={"eos_token": eos}, generation={"eos_token_id": generation})
    tokens = found(files, {"eos_token_id": config})
    assert (tokens.eos, tokens.eot, tokens.eom) == expected
    assert len(tokens.notes) == len(notes)
    for part, note in zip(notes, tokens.notes, strict=True):
        assert part in note


@pytest.mark.parametrize(
    ("ends", "lost"),
    [
        ([10, 11, 12], None),
        ([10, 11, 12, 13], "'<d>'"),
        ([10, 11, 12, 13, 14], "'<d>', '<e>'"),
        ([10, 11, 12, 15], None),  # llama.cpp ends at this one by its name
        ([10, 11, 12, 19], "'19'"),
    ],
)
def test_ends_that_a_gguf_has_no_room_for(ends: list[int], lost: str | None) -> None:
    tokens = found(made(tokens=(*TOKENS, "<turn|>"), generation={"eos_token_id": ends}))
    assert (tokens.eos, tokens.eot, tokens.eom) == tuple(ends[:3])
    assert [note.rsplit("will not stop at ")[-1] for note in tokens.notes] == ([] if lost is None else [lost])


def test_the_end_of_a_turn_by_its_name() -> None:
    tokens = ("<|endoftext|>", "<|eom_id|>", "<|im_end|>")
    assert (found(made(tokens=tokens)).eot, found(made(tokens=tokens)).eom) == (12, 11)
    named = found(made(tokens=tokens, generation={"eos_token_id": [12, 10]}))
    assert (named.eos, named.eot, named.eom) == (12, 10, 11)
    all_said = found(made(tokens=tokens, generation={"eos_token_id": [12, 10, 5]}))
    assert (all_said.eos, all_said.eot, all_said.eom) == (12, 10, 5)


def template(*single: Any) -> dict[str, Any]:
    pieces = [{"SpecialToken": {"id": one, "type_id": 0}} if isinstance(one, str) else one for one in single]
    return {"type": "TemplateProcessing", "single": pieces}


TEXT: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
ROBERTA = {"type": "RobertaProcessing", "cls": ["<a>", 10], "sep": ["<b>", 11]}


@pytest.mark.parametrize(
    ("processor", "expected", "notes"),
    [
        (None, (False, False), 0),
        ({"type": "ByteLevel"}, (False, False), 0),
        (template("<a>", TEXT), (True, False), 0),
        (template(TEXT, "<b>"), (False, True), 0),
        (template("<a>", TEXT, "<b>"), (True, True), 0),
        (template(TEXT), (False, False), 0),
        (template(), (False, False), 0),
        (template("<b>", TEXT, "<a>"), (False, False), 2),
        (ROBERTA, (True, True), 0),
        ({**ROBERTA, "type": "BertProcessing"}, (True, True), 0),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<a>", TEXT)]}, (True, False), 0),
        ({"type": "Sequence", "processors": [template("<a>", TEXT), {"type": "ByteLevel"}]}, (True, False), 0),
        ({"type": "Sequence", "processors": [ROBERTA, template(TEXT)]}, (True, True), 0),
        ({"type": "Sequence", "processors": [template("<b>", TEXT), template("<a>", TEXT)]}, (True, False), 0),
    ],
)
def test_what_the_post_processor_adds(processor: Any, expected: tuple[bool, bool], notes: int) -> None:
    tokens = found(made(config={"bos_token": "<a>", "eos_token": "<b>"}, processor=processor))
    assert (tokens.add_bos, tokens.add_eos) == expected
    assert len(tokens.notes) == notes
    if notes:
        assert "adds the token 11, which is not the bos token" in tokens.notes[0]


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (3, "post_processor is 3; expected an object"),
        ({"type": "Sequence"}, "post_processor.processors is None; expected a list"),
        ({"type": "Sequence", "processors": [3]}, "a step of post_processor is 3"),
        ({"type": "TemplateProcessing"}, "post_processor.single is None"),
        (template(3), "a piece of post_processor.single is 3"),
        (template({"SpecialToken": 3}), "SpecialToken is 3"),
        (template({"SpecialToken": {}}), "SpecialToken.id is None"),
        ({**ROBERTA, "cls": "<a>"}, "post_processor.cls is '<a>'"),
        ({**ROBERTA, "sep": ["<a>"]}, "post_processor.sep is list; expected a token and its id"),
        ({**ROBERTA, "sep": ["<a>", 1, 2]}, "expected a token and its id"),
        ({**ROBERTA, "sep": ["<a>", "1"]}, "post_processor.sep is '1'"),
    ],
)
def test_broken_post_processors(processor: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        found(made(processor=processor))


SAYS, DOES, DOES_NOT = "the post-processor", "the post-processor adds it", "the post-processor does not add it"


@pytest.mark.parametrize(
    ("asked", "processor", "override", "expected", "note"),
    [
        (True, None, None, True, None),
        (False, None, None, False, None),
        (None, template("<a>", TEXT), None, True, None),
        (True, template("<a>", TEXT), None, True, None),
        (False, template("<a>", TEXT), None, False, DOES),
        (True, template(TEXT), None, True, DOES_NOT),
        (False, template(TEXT), None, False, None),
        (False, template("<b>", TEXT), None, False, SAYS),
        (True, template("<b>", TEXT), None, True, DOES_NOT),
        (None, template("<a>", TEXT), False, False, None),
        (False, None, True, True, None),
        (True, None, False, False, None),
    ],
)
def test_whether_bos_is_added(
    asked: bool | None, processor: Any, override: bool | None, expected: bool, note: str | None
) -> None:
    files = made(config={"bos_token": "<a>", "add_bos_token": asked}, processor=processor)
    tokens = found(files, add_bos=override)
    assert tokens.add_bos is expected
    assert any(note in said for said in tokens.notes) if note else tokens.notes == ()


def test_whether_eos_is_added() -> None:
    config = {"bos_token": "<a>", "eos_token": "<b>", "add_eos_token": True}
    assert (found(made(config=config)).add_bos, found(made(config=config)).add_eos) == (False, True)
    assert found(made(config={**config, "add_eos_token": None}, processor=ROBERTA), add_bos=False).add_eos is True


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_token_that_no_file_of_the_tokenizer_names_is_not_added(role: str) -> None:
    tokens = found(made(config={f"add_{role}_token": True}), {f"{role}_token_id": 10})
    assert (tokens.add_bos, tokens.add_eos) == (False, False)
    assert "no tokenizer file names the token" in tokens.notes[-1]
    silent = found(made(config={f"add_{role}_token": False}), {f"{role}_token_id": 10})
    assert silent.notes == ()


def test_adding_what_is_not_known() -> None:
    with pytest.raises(TokenizerError, match="BOS is to be added to every text"):
        found(made(config={"eos_token": "<a>"}), add_bos=True)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: add_eos_token is 'yes'"):
        found(made(config={"add_eos_token": "yes"}))


@pytest.mark.parametrize(
    ("calls", "ends", "expected"),
    [
        ((), (), False),
        (("<|call|>",), (), False),
        (("<|calls|>",), (), False),
        ((), ("<|return|>",), False),
        ((), ("<|flush|>",), False),
        (("<|call|>",), ("<|return|>",), True),
        (("<|calls|>",), ("<|flush|>",), True),
        (("<|call|>",), ("<|flush|>",), True),
        (("<|calls|>",), ("<|return|>",), True),
    ],
)
def test_the_end_that_is_text_for_gpt_oss(calls: tuple[str, ...], ends: tuple[str, ...], expected: bool) -> None:
    texts = forced_text(dict.fromkeys((*calls, *ends), 0))
    assert ("<|end|>" in texts) is expected
    assert texts - {"<|end|>"} == FORCED_TEXT


def test_the_end_of_strike_of_gemma_4() -> None:
    assert forced_control({"</s>": 1}) == FORCED_CONTROL
    assert forced_control({"<|tool_response>": 1}) == FORCED_CONTROL - {"</s>"}


@pytest.mark.parametrize("names", [TURN_ENDS, sorted(FORCED_CONTROL), sorted(FORCED_TEXT)])
def test_llama_cpp_knows_these_names(tmp_path: Path, names: Sequence[str]) -> None:
    """Stored as ordinary text, they become what the lists say."""
    tokenizer = load_tokenizer(byte_level_folder(tmp_path, [{"content": name} for name in names]), 400)
    llama = llama_vocabulary(tmp_path, tokenizer)
    shown, hidden = forced_text(dict.fromkeys(names, 0)), forced_control(dict.fromkeys(names, 0))
    for number, name in enumerate(names, 257):
        kind = llama_cpp.llama_vocab_get_attr(llama.vocab, number)
        assert bool(kind & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED) == (name in shown), name
        assert bool(kind & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL) == (name in hidden - shown), name


def test_templates_of_the_config(tmp_path: Path) -> None:
    assert find_chat_templates(made(folder=tmp_path)) == (None, {}, ())
    assert find_chat_templates(made(folder=tmp_path, config={"chat_template": "A"})) == ("A", {}, ())
    entries = [{"name": "default", "template": "A"}, {"name": "rag-2 é", "template": "B"}]
    several = made(folder=tmp_path, config={"chat_template": entries})
    assert find_chat_templates(several) == ("A", {"rag_2__": "B"}, ())
    without = made(folder=tmp_path, config={"chat_template": entries[1:]})
    assert find_chat_templates(without) == (None, {"rag_2__": "B"}, ())


@pytest.mark.parametrize("inline", [None, "A", "D"])
def test_template_files_win(tmp_path: Path, inline: str | None) -> None:
    files = made(folder=tmp_path, config={"chat_template": inline})
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "C"}), "utf-8")
    default, named, notes = find_chat_templates(files)
    assert (default, named, len(notes)) == ("C", {}, inline is not None)
    (tmp_path / "chat_template.jinja").write_text("D", "utf-8")
    default, named, notes = find_chat_templates(files)
    assert (default, named, len(notes)) == ("D", {}, inline == "A")
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("E", "utf-8")
    (more / "notes.txt").write_text("F", "utf-8")
    default, named, notes = find_chat_templates(files)
    assert (default, named, len(notes)) == ("D", {"tool_use": "E"}, inline is not None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "chat_template is 3; expected a string"),
        ([3], "an entry of chat_template is 3"),
        ([{"template": "A"}], "chat_template.name is None"),
        ([{"name": "a"}], "chat_template.template is None"),
    ],
)
def test_broken_templates(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_chat_templates(made(folder=tmp_path, config={"chat_template": value}))
