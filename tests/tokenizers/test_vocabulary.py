"""The vocabulary that is written tokenizes in llama.cpp as the source's tokenizer does in its own library."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.pre_tokenizers import ByteLevel

from gguf_tools.errors import TokenizerError
from gguf_tools.formats.gguf.header import string
from gguf_tools.tokenizers import pretokenizers as P  # noqa: N812
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import (
    LlamaVocabulary,
    change_json,
    gpt2_style,
    llama_vocabulary,
    regex_split,
    style_of,
    train_byte_level,
    write_folder,
)

SIZE = 3100
NAMES = [row.name for row in P.TABLE if not row.refused]
# Their regexes are coarser in llama.cpp, which shows only where merges join what the tokenizer's own steps part.
EXACT = [name for name in NAMES if name not in ("falcon", "deepseek-llm")]

# Blocks of long standing, for both libraries know their own versions of Unicode.
BLOCKS = (
    *((0x0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0x980), (0xE00, 0xE80), (0x1780, 0x1800)),
    *((0x1E00, 0x2000), (0x2000, 0x2070), (0x2150, 0x2300), (0x3000, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAD00)),
    *((0xFF00, 0xFFF0), (0x10400, 0x10450), (0x1F300, 0x1F650), (0x20000, 0x20080), (0xE0100, 0xE0110)),
)
ALPHABET = [
    chr(code)
    for start, end in BLOCKS
    for code in range(start, end)
    # (?i:'s) of tokenizers takes the long s for an s; llama.cpp does not
    if unicodedata.category(chr(code)) not in ("Cn", "Cs") and code != 0x17F
]
PARTS = [
    "'s",
    "'LL",
    "'Re",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    "12",
    "3456",
    " a",
    " the",
    "Hello",
    "WORLD",
    "...",
    "'",
    "/",
]
TEXT = st.lists(st.sampled_from(PARTS) | st.sampled_from(ALPHABET) | st.characters(max_codepoint=126), max_size=24).map(
    "".join
)


@cache
def unsplit_json() -> str:
    """A vocabulary whose merges join across words, digits and lines, so that every difference in splitting shows."""
    return str(train_byte_level(ByteLevel(add_prefix_space=False, use_regex=False), 6000).to_str())


def ready(folder: Path, size: int = SIZE) -> tuple[Tokenizer, LlamaVocabulary]:
    tokenizer = load_tokenizer(folder, size)
    return tokenizer, llama_vocabulary(folder, tokenizer)


def ignores_merges(name: str) -> bool:
    return next(row.ignore_merges for row in P.TABLE if row.name == name)


def load_tokenizer_document(folder: Path) -> dict[str, dict[str, object]]:
    document: dict[str, dict[str, object]] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return document


def orphan(folder: Path) -> str:
    """Takes away the merge that makes some word, as tiktoken's vocabularies have words without; returns the word's token."""
    merges = load_tokenizer_document(folder)["model"]["merges"]
    assert isinstance(merges, list)
    words = ["".join(merge) for merge in merges]
    word = next(word for word in reversed(words) if word.startswith("Ġ") and len(word) > 4 and word[1:].isalpha())
    change_json(folder, {"model.merges": [merge for merge in merges if "".join(merge) != word]})
    return word


def with_name(folder: Path, name: str, size: int) -> tuple[Tokenizer, LlamaVocabulary]:
    change_json(folder, {"model.ignore_merges": ignores_merges(name)})
    if name in ("dbrx", "gpt-4o"):
        orphan(folder)  # else another name comes to the same, which is preferred
    return ready(folder, size)


@cache
def trained(name: str) -> tuple[Tokenizer, LlamaVocabulary]:
    return with_name(write_folder(Path(mkdtemp()), train_byte_level(style_of(name))), name, SIZE)


@cache
def unsplit(name: str) -> tuple[Tokenizer, LlamaVocabulary]:
    backend = HFTokenizer.from_str(unsplit_json())
    backend.pre_tokenizer = style_of(name)
    return with_name(write_folder(Path(mkdtemp()), backend), name, 6100)


@pytest.mark.parametrize("name", NAMES)
def test_structure_is_recognised_and_probe_passes(name: str) -> None:
    tokenizer, llama = trained(name)
    assert tokenizer.pre == name
    assert tokenizer.model == "gpt2"
    probe(tokenizer, llama.encode)


@pytest.mark.parametrize("name", EXACT)
def test_merges_that_cross_splits_show_no_difference(name: str) -> None:
    probe(unsplit(name)[0], unsplit(name)[1].encode)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXT)
def test_any_text_tokenizes_alike(name: str, text: str) -> None:
    for tokenizer, llama in (trained(name), unsplit(name)):
        if not any(limit.affects(text) for limit in tokenizer.limits):
            assert llama.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("name", EXACT)
def test_wrong_name_fails_the_probe(name: str) -> None:
    tokenizer, _ = unsplit(name)
    wrong = {"qwen2": "llama-bpe", "ufakzeka": "gpt-2"}.get(name, "qwen2")
    llama = llama_vocabulary(Path(mkdtemp()), tokenizer, pre=string(wrong))
    with pytest.raises(TokenizerError, match="differently from token"):
        probe(tokenizer, llama.encode)


def test_probe_shows_the_smallest_difference() -> None:
    tokenizer, _ = unsplit("llama-bpe")
    llama = llama_vocabulary(Path(mkdtemp()), tokenizer, pre=string("qwen2"))
    text = "a harmless line\nand then there were 1234 of them, and more\n"
    with pytest.raises(TokenizerError) as caught:
        probe(tokenizer, llama.encode, text)
    message = str(caught.value)
    assert "\n" not in message
    assert "harmless" not in message
    assert "tokenizes '12'" in message or "tokenizes '23'" in message or "tokenizes '34'" in message
    probe(tokenizer, llama.encode, "a harmless line\n")


CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pattern", "behavior", "invert", "name"),
    [
        (CL100K, "isolated", False, "llama-bpe"),
        (CL100K, "removed", True, "llama-bpe"),
        (CL100K.replace("{1,3}", ""), "isolated", False, "qwen2"),
        (P.GPT2, "isolated", False, "gpt-2"),
        (P.GPT2.removesuffix(r"|\s+"), "isolated", False, "gpt-2"),
        (P.LLAMA3.replace(r"\r", "\r").replace(r"\n", "\n"), "isolated", False, "llama-bpe"),
        (P.GPT4O, "removed", True, "granite-embed-multi-97m"),
        (r" ?[^(\s|[.,!?…。，、।۔،])]+", "isolated", False, "bloom"),
    ],
)
def test_other_spellings_of_a_pattern(tmp_path: Path, pattern: str, behavior: str, invert: bool, name: str) -> None:
    backend = HFTokenizer.from_str(unsplit_json())
    backend.pre_tokenizer = regex_split(pattern, behavior=behavior, invert=invert)
    folder = write_folder(tmp_path, backend)
    tokenizer, llama = ready(folder, 6100)
    assert tokenizer.pre == name
    probe(tokenizer, llama.encode)


@pytest.mark.parametrize(("ignore", "name"), [(True, "llama-bpe"), (False, "dbrx")])
def test_ignore_merges_decides_between_names(tmp_path: Path, ignore: bool, name: str) -> None:
    folder = write_folder(tmp_path, train_byte_level(style_of("llama-bpe")))
    change_json(folder, {"model.ignore_merges": ignore})
    word = orphan(folder)
    tokenizer, llama = ready(folder)
    assert tokenizer.pre == name
    text = tokenizer.decode([tokenizer.tokens.index(word)])
    assert (len(tokenizer.encode(text)) == 1) == ignore
    assert llama.encode(text) == tokenizer.encode(text)
    probe(tokenizer, llama.encode)


def test_ignore_merges_without_a_name_for_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train_byte_level(style_of("qwen2")))
    change_json(folder, {"model.ignore_merges": True})
    tokenizer, llama = ready(folder)  # merges spell every token, so nothing depends on it
    assert tokenizer.pre == "qwen2"
    probe(tokenizer, llama.encode)
    word = orphan(folder)
    with pytest.raises(TokenizerError, match=f"ignore_merges is true, and .*{word}.*'qwen2'"):
        load_tokenizer(folder, SIZE)


def test_special_tokens_are_found_only_when_asked_for(tmp_path: Path) -> None:
    backend = train_byte_level(gpt2_style())
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("⟨tool⟩")])
    tokenizer, llama = ready(write_folder(tmp_path, backend))
    text = "<|im_start|>user\nhi <think>hm</think>⟨tool⟩<|im_end|>\n<|endoftext|>"
    for special in (False, True):
        assert llama.encode(text, special) == tokenizer.encode(text, special=special)
    assert set(tokenizer.encode(text, special=True)) - set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text, special=True)) == text
    think = tokenizer.tokens.index("<think>")
    assert think in tokenizer.encode(text)
    assert tokenizer.token_types[think] == 4
    assert tokenizer.token_types[tokenizer.tokens.index("<|im_end|>")] == 3


def test_tokens_that_llama_cpp_knows_by_name(tmp_path: Path) -> None:
    backend = train_byte_level(style_of("qwen2"))
    backend.add_tokens([AddedToken("<|fim_prefix|>", normalized=False)])  # not special, as Qwen2.5 has it
    tokenizer, llama = ready(write_folder(tmp_path, backend, ("<|endoftext|>", "<|message|>")))
    assert any("control tokens by name" in note and "fim_prefix" in note for note in tokenizer.notes)
    assert any("ordinary tokens by name" in note and "message" in note for note in tokenizer.notes)
    for special in (False, True):
        text = "a<|fim_prefix|>b<|message|>c"
        assert llama.encode(text, special) == tokenizer.encode(text, special=special)
    probe(tokenizer, llama.encode)


def test_padding_rows_are_unused_and_distinct(tmp_path: Path) -> None:
    backend = train_byte_level(gpt2_style(), 300)
    tokenizer, llama = ready(write_folder(tmp_path, backend, ("<|endoftext|>", "[PAD310]")), 320)
    assert tokenizer.vocab_size == len(tokenizer.token_types) == 320
    assert len(set(tokenizer.tokens)) == 320
    assert tokenizer.tokens[315] == "[PAD315]"
    assert tokenizer.token_types[315] == 5
    assert "vocabulary padded from 302 to 320" in tokenizer.notes
    probe(tokenizer, llama.encode)


def test_nfc_is_noted_and_probed_in_nfc(tmp_path: Path) -> None:
    backend = train_byte_level(style_of("qwen2"))
    backend.normalizer = normalizers.NFC()
    tokenizer, llama = ready(write_folder(tmp_path, backend))
    assert any("NFC" in note for note in tokenizer.notes)
    probe(tokenizer, llama.encode, "cafe\u0301 noir\n")
    assert llama.encode("cafe\u0301") != tokenizer.encode("cafe\u0301")


def test_vocabulary_without_all_bytes(tmp_path: Path) -> None:
    backend = train_byte_level(gpt2_style(), alphabet=())
    document = write_folder(tmp_path, backend)
    missing = "".join(chr(code) for code in range(0xEF01, 0xEF05))
    tokenizer, llama = ready(document)
    assert any("no token for" in note and "bytes" in note for note in tokenizer.notes)
    probe(tokenizer, llama.encode, f"plain\n{missing}\n")
    probe(tokenizer, llama.encode)


def test_bos_is_added_as_the_files_say(tmp_path: Path) -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "add_bos_token": True}
    folder = write_folder(tmp_path, train_byte_level(gpt2_style()), tokenizer_config=config)
    for add_bos in (None, True, False):
        tokenizer = load_tokenizer(folder, SIZE, add_bos=add_bos)
        assert tokenizer.add_bos == (add_bos is not False)
        ids = llama_vocabulary(folder, tokenizer).encode("hi", add_special=True)
        assert ids == [tokenizer.bos_id] * tokenizer.add_bos + tokenizer.encode("hi")
