"""What the folder's files may say: roles of tokens, templates, contradictions, and content that is broken or hostile."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import CheckpointError, TinyqError, TokenizerError
from gguf_tools.tokenizers.probe import probe
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
END, START, STOP = 300, 301, 302


@pytest.fixture(scope="module")
def backend_json() -> str:
    return str(train_byte_level(gpt2_style(), 300).to_str())


@pytest.fixture
def folder(tmp_path: Path, backend_json: str) -> Path:
    return write_folder(tmp_path / "tokenizer", HFTokenizer.from_str(backend_json))


def test_roles_from_the_tokenizer_and_the_configs(folder: Path) -> None:
    generation = {"eos_token_id": [STOP, END], "pad_token_id": END}
    change_json(folder, {"eos_token": {"content": "<|im_end|>"}, "bos_token": None}, "tokenizer_config.json")
    change_json(folder, generation, "generation_config.json")
    tokenizer = load_tokenizer(folder, SIZE, config={"bos_token_id": START, "eos_token_id": STOP})
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eot_id, tokenizer.pad_id) == (START, STOP, END, END)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (False, False)
    fields = tokenizer.metadata()
    assert fields["tokenizer.ggml.eot_token_id"].value == END
    assert fields["tokenizer.ggml.padding_token_id"].value == END


def test_special_tokens_map_stands_in_for_the_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    change_json(folder, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, "special_tokens_map.json")
    tokenizer = load_tokenizer(folder, SIZE, add_bos=True)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (START, STOP, True)


def test_contradictions_are_noted(folder: Path) -> None:
    change_json(folder, {"bos_token": "<|im_start|>", "pad_token": "<|nowhere|>"}, "tokenizer_config.json")
    config = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 50256}
    tokenizer = load_tokenizer(folder, SIZE, config=config)
    notes = " ".join(tokenizer.notes)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (START, END, None)
    assert "config.json says bos is 0, the tokenizer says 301" in notes
    assert "config.json says eos is 2, an ordinary token" in notes
    assert "50256, beyond the vocabulary" in notes
    assert "'<|nowhere|>', which is not in the vocabulary" in notes


def test_more_ends_than_a_gguf_holds(folder: Path) -> None:
    backend = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    write_folder(folder, backend, ("<|endoftext|>", "<a>", "<b>", "<c>"))
    ids = [backend.token_to_id(text) for text in ("<|endoftext|>", "<a>", "<b>", "<c>")]
    change_json(folder, {"eos_token_id": ids}, "generation_config.json")
    tokenizer = load_tokenizer(folder, SIZE)
    assert [tokenizer.eos_id, tokenizer.eot_id, tokenizer.eom_id] == ids[:3]
    assert any("will not stop at '<c>'" in note for note in tokenizer.notes)


def test_no_end_of_text_never_ends_at_an_ordinary_token(tmp_path: Path, backend_json: str) -> None:
    folder = write_folder(tmp_path, HFTokenizer.from_str(backend_json), ())
    tokenizer = load_tokenizer(folder, SIZE)
    assert tokenizer.eos_id is None
    assert tokenizer.metadata()["tokenizer.ggml.eos_token_id"].value == 300  # a padding row
    assert any("run to its limit" in note for note in tokenizer.notes)
    full = load_tokenizer(folder, 300)
    assert "tokenizer.ggml.eos_token_id" not in full.metadata()
    assert any("will end at an ordinary token" in note for note in full.notes)


@pytest.mark.parametrize("kind", ["template", "roberta", "sequence", "none"])
def test_bos_of_the_post_processor(folder: Path, kind: str) -> None:
    backend = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    template = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)])
    made = {
        "template": template,
        "roberta": processors.RobertaProcessing(("<|im_end|>", STOP), ("<|im_start|>", START)),
        "sequence": processors.Sequence([processors.ByteLevel(), template]),
        "none": processors.ByteLevel(),
    }
    backend.post_processor = made[kind]
    write_folder(folder, backend, (), tokenizer_config={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    tokenizer = load_tokenizer(folder, SIZE)
    assert tokenizer.add_bos == (kind != "none")
    assert tokenizer.add_eos == (kind == "roberta")
    llama = llama_vocabulary(folder, tokenizer)
    assert llama.encode("some text", add_special=True) == list(backend.encode("some text").ids)
    change_json(folder, {"add_bos_token": False}, "tokenizer_config.json")
    assert load_tokenizer(folder, SIZE).add_bos is False
    assert load_tokenizer(folder, SIZE, add_bos=True).add_bos is True


def test_adding_a_token_that_nobody_names(tmp_path: Path, backend_json: str) -> None:
    folder = write_folder(tmp_path, HFTokenizer.from_str(backend_json), (), tokenizer_config={})
    with pytest.raises(TokenizerError, match="BOS is to be added"):
        load_tokenizer(folder, SIZE, add_bos=True)


def test_chat_templates(folder: Path) -> None:
    entries = [{"name": "default", "template": "A"}, {"name": "tool use", "template": "B"}]
    change_json(folder, {"chat_template": entries}, "tokenizer_config.json")
    tokenizer = load_tokenizer(folder, SIZE)
    assert (tokenizer.chat_template, tokenizer.named_templates) == ("A", {"tool_use": "B"})
    fields = tokenizer.metadata()
    assert fields["tokenizer.chat_template"].value == "A"
    assert fields["tokenizer.chat_template.tool_use"].value == "B"
    assert fields["tokenizer.chat_templates"].value == ("tool_use",)
    change_json(folder, {"chat_template": "C"}, "chat_template.json")
    assert load_tokenizer(folder, SIZE).chat_template == "C"
    (folder / "chat_template.jinja").write_text("{{ 'D' }}", encoding="utf-8")
    last = load_tokenizer(folder, SIZE)
    assert last.chat_template == "{{ 'D' }}"
    assert any("differs from the template in tokenizer_config.json" in note for note in last.notes)


def test_tokens_of_other_files_are_added(folder: Path) -> None:
    change_json(folder, {"<extra>": 303, "<|im_end|>": STOP}, "added_tokens.json")
    tokenizer = load_tokenizer(folder, SIZE)
    assert tokenizer.tokens[303] == "<extra>"
    assert any("lacks the added token '<extra>'" in note for note in tokenizer.notes)
    probe(tokenizer, llama_vocabulary(folder, tokenizer).encode)


def test_flags_that_a_gguf_cannot_say_are_noted(folder: Path) -> None:
    backend = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken("<left>", lstrip=True, special=True), AddedToken("<word>", single_word=True)])
    write_folder(folder, backend, ())
    tokenizer = load_tokenizer(folder, SIZE)
    notes = " ".join(tokenizer.notes)
    assert "spaces beside '<left>' are stripped" in notes
    assert "'<word>' must be whole words" in notes
    probe(tokenizer, llama_vocabulary(folder, tokenizer).encode)


def test_token_with_a_nul(folder: Path) -> None:
    change_json(folder, {"added_tokens": [{"id": 300, "content": "a\0b", **dict.fromkeys(FLAGS, False)}]})
    tokenizer = load_tokenizer(folder, SIZE)
    assert any("NUL" in note for note in tokenizer.notes)
    assert tokenizer.tokens[300] == "[PAD300]"
    probe(tokenizer, llama_vocabulary(folder, tokenizer).encode)


FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def test_merges_in_either_form_and_twice(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pairs = document["model"]["merges"]
    plain = load_tokenizer(folder, SIZE)
    change_json(folder, {"model.merges": [" ".join(pair) for pair in pairs]})
    assert load_tokenizer(folder, SIZE).merges == plain.merges
    change_json(folder, {"model.merges": [pairs[20], *pairs]})
    twice = load_tokenizer(folder, SIZE)
    assert twice.merges == plain.merges
    assert any("listed twice" in note for note in twice.notes)
    probe(twice, llama_vocabulary(folder, twice).encode)


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model is None; expected an object"),
    ({"model.type": "WordPiece"}, "model.type is 'WordPiece'"),
    ({"model.type": "Unigram", "model.vocab": [["a", 0.0]]}, "model.unk_id is None"),
    ({"model.vocab": []}, "model.vocab is list; expected an object"),
    ({"model.vocab.zz": -1}, "'zz'.* is -1; expected a token id"),
    ({"model.vocab.zz": True}, "is True; expected a token id"),
    ({"model.vocab.zz": 1 << 40}, "expected a token id"),
    ({"model.vocab.zz": 5}, "id 5 belongs to two tokens"),
    ({"model.vocab.zz": 5000}, "ids up to 5000.*400 rows"),
    ({"model.merges": [["a", "neverseen"]]}, r"merges\[0\] needs the token 'neverseen'"),
    ({"model.merges": ["a b c"]}, r"merges\[0\] is 'a b c'; expected two tokens"),
    ({"model.merges": [7]}, "expected two tokens"),
    ({"model.merges": None}, "model.merges is None; expected a list"),
    ({"model.continuing_subword_prefix": "##"}, "continuing_subword_prefix is '##'"),
    ({"model.ignore_merges": "yes"}, "ignore_merges is 'yes'; expected true or false"),
    ({"added_tokens": {}}, "added_tokens is dict; expected a list"),
    ({"added_tokens": [5]}, r"added_tokens\[0\] is 5; expected an object"),
    ({"added_tokens": [{"id": 300, "content": ""}]}, "empty content"),
    ({"added_tokens": [{"id": 300, "content": "\ud800"}]}, "surrogate"),
    ({"added_tokens": [{"id": 300, "content": "x" * 1025}]}, "has 1,025 characters; expected 1,024 at most"),
    ({"added_tokens": [{"id": 300, "content": "x", "special": 1}]}, "special is 1; expected true or false"),
    ({"added_tokens": [{"id": 350, "content": "<far>"}]}, "gives it id 300"),
    ({"added_tokens": [{"id": 4, "content": "<x>"}]}, "id 4 belongs to two tokens"),
    ({"added_tokens": [{"id": 300, "content": "a"}]}, "'a' has two ids"),
    ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase' changes text"),
    ({"normalizer": {"type": "NFKC"}}, "normalizer 'NFKC' changes text"),
    ({"normalizer": []}, "not an object with a type"),
    ({"pre_tokenizer": None}, "no ByteLevel step"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "no equivalent of the pre-tokenizer step 'Whitespace'"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}, "pretokenizers is not a list"),
    ({"pre_tokenizer.add_prefix_space": True}, "add_prefix_space=true"),
    ({"decoder": {"type": "Nonsense"}}, "the tokenizers library rejects the file"),
    ({"post_processor": 3}, "post_processor is 3; expected an object"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[message[:30] for _, message in ERRORS])
def test_errors_name_file_and_key(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((TokenizerError, CheckpointError), match=message) as caught:
        load_tokenizer(change_json(folder, change), SIZE)
    assert str(folder / "tokenizer.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not valid JSON .line 1"),
        ("tokenizer.json", b"\xff\xfe", "not UTF-8"),
        ("tokenizer.json", b"[]", "the file is list; expected an object"),
        ("tokenizer.json", b"[" * 100_000, "nested too deeply"),
        ("tokenizer.json", b'{"model": ' + b"9" * 5000 + b"}", "not valid JSON|model is"),
        ("tokenizer_config.json", b"nonsense", "not valid JSON"),
        ("tokenizer_config.json", b'{"eos_token": 3}', "eos_token is 3; expected a string"),
        ("tokenizer_config.json", b'{"add_bos_token": "no"}', "add_bos_token is 'no'"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template is 5"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "'x'.* is the key of an added token"),
        ("generation_config.json", b'{"eos_token_id": "2"}', "eos_token_id is '2'; expected a token id"),
        ("added_tokens.json", b'{"<new>": 1.5}', "is 1.5; expected a token id"),
        ("chat_template.jinja", b"\x80", "not UTF-8"),
    ],
)
def test_broken_files(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(folder, SIZE)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path, SIZE)


def test_unknown_structure_shows_the_nearest_known(tmp_path: Path, backend_json: str) -> None:
    folder = write_folder(tmp_path, HFTokenizer.from_str(backend_json))
    change_json(folder, {"pre_tokenizer": json.loads(style_of("qwen2").__getstate__())})
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    regex = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,2}|")
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
    change_json(folder, document)
    with pytest.raises(
        TokenizerError, match=r"no pre-tokenizer that splits by .*\{1,2\}.*the most similar is '(qwen2|dbrx|llama-bpe)'"
    ):
        load_tokenizer(folder, SIZE)


JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    7,
    1.5,
    1 << 70,
    "",
    "a",
    "\ud800",
    "▁",
    [],
    [1],
    ["a", "b"],
    {},
    {"type": "BPE"},
    {"id": 1},
    [[]],
    [{}],
)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """All (container, key) pairs of a JSON value."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in list(children):
        yield node, key
        yield from _places(child)


def _drop(node: Any, key: Any, rng: random.Random) -> None:
    del node[key]


def _replace(node: Any, key: Any, rng: random.Random) -> None:
    node[key] = copy.deepcopy(rng.choice(JUNK))


@pytest.mark.parametrize("change", [_drop, _replace])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config"])
def test_no_content_makes_a_traceback(
    folder: Path, name: str, change: Callable[[Any, Any, random.Random], None]
) -> None:
    """Any one value gone or turned into something else: it loads, or one line says why not."""
    pre_tokenizer = json.loads(style_of("starcoder").__getstate__())
    split = json.loads(style_of("qwen2").__getstate__())["pretokenizers"][0]
    processor = {"type": "RobertaProcessing", "sep": ["<|im_end|>", STOP], "cls": ["<|im_start|>", START]}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}],
        "pair": [],
    }
    change_json(folder, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}})
    change_json(folder, {"pre_tokenizer": pre_tokenizer})
    change_json(folder, {"post_processor": {"type": "Sequence", "processors": [processor, template]}})
    extra = {"content": "<|im_start|>", "special": True, "lstrip": False}
    contents: dict[str, Any] = {
        "tokenizer.json": json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")),
        "tokenizer_config.json": {
            "eos_token": {"content": "<|im_end|>"},
            "add_bos_token": False,
            "chat_template": [{"name": "default", "template": "x"}],
            "added_tokens_decoder": {str(START): extra},
        },
        "generation_config.json": {"eos_token_id": [STOP, END], "bos_token_id": START},
        "config": {"eos_token_id": STOP, "text_config": {"pad_token_id": END}},
    }
    contents["tokenizer.json"]["pre_tokenizer"]["pretokenizers"].append(split)
    rng = random.Random(name)
    for _ in range(40):
        mutated = copy.deepcopy(contents)
        places = list(_places(mutated[name]))
        outer = [place for place in places if place[0] is not mutated[name].get("model", {}).get("vocab")]
        change(*rng.choice(outer if rng.random() < 0.9 else places), rng)
        for file, content in mutated.items():
            if file != "config":
                (folder / file).write_text(json.dumps(content), encoding="utf-8")
        with suppress(TinyqError):
            load_tokenizer(folder, SIZE, config=mutated["config"]).metadata()
