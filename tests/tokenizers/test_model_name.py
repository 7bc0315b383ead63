"""Names that mean something to llama.cpp: what it makes of them, and that nothing is made of the names that are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from gguf import GGUFWriter
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import LlamaError, TokenizerError
from gguf_tools.formats.gguf.header import Field, read_header, string
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tokenizers.model_name import REQUIRED, plain_name, refused_name, repaired_name, settled_name
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.conftest import Ran
from tests.oracle import convert
from tests.surgery.surgery_files import with_metadata
from tests.tokenizers.tokenizers_for_tests import (
    SPECIAL,
    LlamaVocabulary,
    byte_level_folder,
    write_folder,
    write_vocabulary,
)

Tinyq = Callable[..., Ran]
SIZE = 400
PHI3_NAMES = ("phi-3-mini", "my-Phi3-tune", "PHI3", "x phi-3 phi3")
PHI3_TOKENS = (
    AddedToken("<unk>", special=True),
    AddedToken("<s>", special=True),
    AddedToken("</s>", special=False, rstrip=True),
    AddedToken("<|endoftext|>", special=True),
    AddedToken("<|assistant|>", special=True, rstrip=True),
    AddedToken("<|end|>", special=True, rstrip=True),
)
"""As in Phi-3's own tokenizer_config.json."""


@pytest.fixture
def backend(tmp_path: Path) -> str:
    return (byte_level_folder(tmp_path / "backend", ()) / "tokenizer.json").read_text("utf-8")


def tokenizer_with(folder: Path, backend: str, added: Sequence[AddedToken | str]) -> Tokenizer:
    made = HFTokenizer.from_str(backend)
    made.add_tokens(list(added))
    write_folder(folder, made, (), tokenizer_config={"eos_token": str(added[0])})
    return load_tokenizer(folder, SIZE)


def named(folder: Path, tokenizer: Tokenizer, name: str) -> LlamaVocabulary:
    """llama.cpp's vocabulary in a file of that name."""
    metadata: dict[str, Field] = {**tokenizer.metadata(), "general.name": string(name)}
    return LlamaVocabulary(write_vocabulary(folder / "named.gguf", metadata))


@pytest.mark.parametrize("name", PHI3_NAMES)
def test_a_vocabulary_that_llama_cpp_refuses_for_its_name_gets_another(tmp_path: Path, backend: str, name: str) -> None:
    tokenizer = tokenizer_with(tmp_path, backend, SPECIAL)
    with pytest.raises(AssertionError, match="does not load"):
        named(tmp_path, tokenizer, name)
    settled = settled_name(name, tokenizer)
    assert settled.name.replace(" ", "").lower() == name.replace("-3", "3").replace(" ", "").lower()
    assert settled.notes == (
        f"general.name is {settled.name!r}, not {name!r}: llama.cpp recognises the latter as Phi-3 and does not "
        "load the vocabulary, which has no </s>, <unk>, <s>",
    )
    probe(settled.tokenizer, named(tmp_path, tokenizer, settled.name).encode)


@pytest.mark.parametrize("left_out", REQUIRED)
def test_each_required_token_is_required(tmp_path: Path, backend: str, left_out: str) -> None:
    tokenizer = tokenizer_with(tmp_path, backend, [token for token in PHI3_TOKENS if token.content != left_out])
    with pytest.raises(AssertionError, match="does not load"):
        named(tmp_path, tokenizer, "phi3")
    settled = settled_name("phi3", tokenizer)
    assert settled.name == "phi 3"
    assert f"has no {left_out}" in settled.notes[0]


def test_the_name_stays_where_it_says_what_the_tokenizer_does(tmp_path: Path, backend: str) -> None:
    tokenizer = tokenizer_with(tmp_path, backend, PHI3_TOKENS)
    assert any("stripped by the tokenizer" in note for note in tokenizer.notes)
    settled = settled_name("Phi-3 mini", tokenizer)
    assert (settled.name, settled.notes) == ("Phi-3 mini", ())
    assert set(tokenizer.notes) - set(settled.tokenizer.notes) == {tokenizer.stripping.note}
    assert set(tokenizer.limits) - set(settled.tokenizer.limits) == {
        limit for limit in tokenizer.limits if limit.note == tokenizer.stripping.note
    }
    assert set(settled.tokenizer.probe_tokens) == {token.content for token in PHI3_TOKENS}
    # Now the tokens that swallow spaces are proved as well, which needs the name.
    probe(settled.tokenizer, named(tmp_path, tokenizer, settled.name).encode)
    with pytest.raises(TokenizerError, match=r"llama\.cpp tokenizes"):
        probe(settled.tokenizer, named(tmp_path, tokenizer, "another").encode)


def test_the_name_goes_where_the_tokenizer_keeps_spaces(tmp_path: Path, backend: str) -> None:
    tokenizer = tokenizer_with(tmp_path, backend, [*PHI3_TOKENS, AddedToken("<|kept|>", special=True)])
    with pytest.raises(TokenizerError, match=r"llama\.cpp tokenizes"):
        probe(tokenizer, named(tmp_path, tokenizer, "phi-3").encode)
    settled = settled_name("phi-3", tokenizer)
    assert settled.name == "phi 3"
    assert "strips spaces after special tokens, unlike this tokenizer" in settled.notes[0]
    probe(settled.tokenizer, named(tmp_path, tokenizer, settled.name).encode)


@pytest.mark.parametrize("lstrip", [False, True])
def test_modern_bert(tmp_path: Path, backend: str, lstrip: bool) -> None:
    tokenizer = tokenizer_with(tmp_path, backend, [*SPECIAL, AddedToken("[MASK]", special=True, lstrip=lstrip)])
    name = "My-Modern-BERT"
    text = "a [MASK] b"
    plain, touched = (named(tmp_path, tokenizer, given).encode(text, True) for given in ("x", name))
    assert touched != plain
    settled = settled_name(name, tokenizer)
    assert settled.name == (name if lstrip else "My-Modern BERT")
    assert bool(settled.notes) == (not lstrip)
    assert named(tmp_path, tokenizer, settled.name).encode(text, True) == tokenizer.encode(text, special=True)


@pytest.mark.parametrize("name", ["modern-bert", "phi 3", "phi_3", "phi-2", "phi-", "ΦHI-3", "mini", ""])
def test_names_that_mean_nothing_stay(tmp_path: Path, backend: str, name: str) -> None:
    tokenizer = tokenizer_with(tmp_path, backend, SPECIAL)  # without a [MASK]
    assert settled_name(name, tokenizer).name == name
    probe(tokenizer, named(tmp_path, tokenizer, name).encode)


def test_a_name_that_changes_nothing_here_stays(tmp_path: Path, backend: str) -> None:
    """There is no [MASK] whose spaces llama.cpp would strip; another token strips its own."""
    tokenizer = tokenizer_with(tmp_path, backend, [*SPECIAL, AddedToken("<l>", lstrip=True)])
    settled = settled_name("modern-bert", tokenizer)
    assert (settled.name, settled.notes, settled.tokenizer) == ("modern-bert", (), tokenizer)


def test_long_names_are_shortened(tmp_path: Path, backend: str) -> None:
    (note,) = settled_name("phi3" + "x" * 80, tokenizer_with(tmp_path, backend, SPECIAL)).notes
    assert f"not 'phi3{'x' * 55}…': llama.cpp" in note


def test_plain_names_are_plain() -> None:
    for name in ("phi-3", "phi3phi-3", "phi-phi33", "modern-bert phi3", "PHI-3-MODERN-BERT"):
        assert plain_name(plain_name(name)) == plain_name(name) != name


def test_files_of_others_are_repaired_only_where_llama_cpp_refuses_them() -> None:
    metadata = {"general.name": "phi3", "tokenizer.ggml.tokens": ("a", "</s>", "<unk>", "<s>")}
    repaired = repaired_name(metadata.get)
    assert repaired is not None
    assert repaired[0] == "phi 3"
    assert "which has no <|endoftext|>" in repaired[1]
    for other in (
        {"tokenizer.ggml.tokens": REQUIRED},
        {"general.name": "modern-bert"},
        {"general.name": 3},
        {"tokenizer.ggml.model": "none"},
        {"tokenizer.ggml.pre": "jina-v2-de"},
        {"general.architecture": "nomic-bert-moe"},
    ):
        assert repaired_name({**metadata, **other}.get) is None


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({}, True),
        ({"general.name": "phi 3"}, False),
        ({"general.name": "modern-bert"}, False),
        ({"tokenizer.ggml.tokens": REQUIRED}, False),
        ({"tokenizer.ggml.model": "no_vocab"}, False),
        ({"tokenizer.ggml.pre": "jina-v2-es"}, False),
        ({"general.architecture": "jina-bert-v3"}, False),
    ],
)
def test_a_file_that_llama_cpp_refuses_for_its_name(tmp_path: Path, change: dict[str, object], refused: bool) -> None:
    metadata: dict[str, object] = {
        "general.name": "phi3",
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ("a", "</s>", "<s>"),
        **change,
    }
    writer = GGUFWriter(str(tmp_path / "a.gguf"), str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if isinstance(value, tuple):
            writer.add_array(key, list(value))
        elif key != "general.architecture":
            writer.add_string(key, str(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    said = refused_name(tmp_path / "a.gguf")
    assert (said is not None) is refused
    assert said is None or "recognises as Phi-3, but the vocabulary has no <unk>, <|endoftext|>: give" in said
    assert refused_name(tmp_path / "missing.gguf") is None


def test_gemma_4_keeps_its_end_of_strike(tmp_path: Path, backend: str) -> None:
    document = json.loads(backend)
    document["model"]["vocab"]["</s>"] = len(document["model"]["vocab"])
    tokenizer = tokenizer_with(tmp_path, json.dumps(document), [*SPECIAL, AddedToken("<|tool_response>", special=True)])
    assert not any("</s>" in note for note in tokenizer.notes)
    probe(tokenizer, named(tmp_path, tokenizer, "x").encode)


# The commands


@pytest.mark.parametrize("by", ["folder", "front matter"])
def test_convert(tinyq: Tinyq, qwen3_folder: Path, copied: Callable[[Path], Path], tmp_path: Path, by: str) -> None:
    folder = copied(qwen3_folder)
    if by == "folder":
        folder = folder.rename(tmp_path / "phi-3-mini")
    else:
        (folder / "README.md").write_text("---\nmodel_name: phi-3-mini\n---\n", "utf-8")
    out = tmp_path / "phi3.gguf"
    ran = tinyq("convert", folder, out, "--type", "q8_0", "--json", tmp_path / "report.json")
    assert ran.code == 0, ran.err
    note = "general.name is 'phi 3-mini', not 'phi-3-mini': llama.cpp recognises the latter as Phi-3 and does not load"
    assert f"note      {note}" in ran.out
    assert any(said.startswith(note) for said in json.loads((tmp_path / "report.json").read_text("utf-8"))["notes"])
    header = read_header(out)
    assert header.get("general.name") == "phi 3-mini"
    assert any(said.startswith(note) for said in header.get("tinyq.notes"))
    with Runtime(out) as runtime:
        assert runtime.info.metadata["general.name"] == "phi 3-mini"


@pytest.fixture
def refused(qwen3_folder: Path, tmp_path: Path) -> Path:
    """A file as another program may have written it."""
    made = convert(qwen3_folder, tmp_path / "made.gguf")
    return with_metadata(made, tmp_path / "in.gguf", {"general.name": string("My Phi-3")})


def test_a_load_that_fails_for_the_name_says_so(tinyq: Tinyq, refused: Path, qwen3_folder: Path) -> None:
    with (
        pytest.raises(LlamaError, match=r"general\.name is 'My Phi-3', which llama\.cpp recognises as Phi-3, but"),
        Runtime(refused, RuntimeOptions(vocab_only=True)),
    ):
        pass
    ran = tinyq("eval", refused, "--reference", qwen3_folder)
    assert ran.code == 3
    assert ran.err.count("\n") == 1
    assert "has no </s>, <unk>, <s>, <|endoftext|>: give the model another name" in ran.err


@pytest.mark.parametrize("command", [("quantize", "q8_0"), ("surgery", "--swap", "0:1")])
def test_quantize_and_surgery_give_another_name(
    tinyq: Tinyq, refused: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    out = tmp_path / "out.gguf"
    ran = tinyq(command[0], refused, out, *command[1:])
    assert ran.code == 0, ran.err
    assert "note      general.name is 'My Phi 3', not 'My Phi-3'" in ran.out
    header = read_header(out)
    assert header.get("general.name") == "My Phi 3"
    assert header.get("tinyq.notes")[-1].startswith("general.name is 'My Phi 3'")
    with Runtime(out) as runtime:
        assert runtime.info.n_layer == 3


def test_surgery_in_place_leaves_the_name(tinyq: Tinyq, refused: Path) -> None:
    ran = tinyq("surgery", refused, "--in-place", "--swap", "0:1")
    assert ran.code == 0, ran.err
    # The name stays, llama.cpp loads the file as little as before, and the proof says so.
    assert "general.name is 'My Phi-3', which llama.cpp recognises" in ran.out
    assert read_header(refused).get("general.name") == "My Phi-3"
    assert read_header(refused).get("tinyq.surgery") == "swap(0:1)"
