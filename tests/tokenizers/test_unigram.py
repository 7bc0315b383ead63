"""Unigram models, held against the sentencepiece and tokenizers libraries and llama.cpp."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import CheckpointError, InputError, TokenizerError
from gguf_tools.tokenizers.piece_model import NAME, parse_piece_model
from gguf_tools.tokenizers.probe import probe, probe_pieces
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from tests.tokenizers.tokenizers_for_tests import LlamaVocabulary, change_json, llama_vocabulary

ROWS = 1000
CORPUS = [
    f"the quick brown fox {n} jumps over the lazy dog, and then  the dog sleeps {n * 7} times; café" for n in range(200)
]
TEXT = st.lists(
    st.sampled_from(
        [
            "the",
            " the",
            " ",
            "  ",
            "\n",
            "\t",
            "fox jumps",
            "12",
            "é",
            "中",
            "😀",
            "<sep>",
            "s</s>",
            "naïve",
            "ﬁ",
            "Ａ",
            "…",
            "½",
        ]
    )
    | st.text(max_size=3)
).map("".join)
SENTENCEPIECE: Mapping[str, Mapping[str, Any]] = {
    "identity": {"remove_extra_whitespaces": False},
    "identity, spaces removed": {},
    "no prefix": {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc"},
    "nmt_nfkc, spaces kept": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": False},
    "nfkc_cf, own pieces": {"normalization_rule_name": "nfkc_cf", "user_defined_symbols": "<sep>"},
}


@cache
def trained(name: str) -> bytes:
    """A SentencePiece model with these options of its trainer."""
    out = io.BytesIO()
    options = {"normalization_rule_name": "identity", "vocab_size": 900, **SENTENCEPIECE[name]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS, *probe_pieces()]),
        model_writer=out,
        model_type="unigram",
        minloglevel=2,
        **options,
    )
    return out.getvalue()


def written(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(data)
    return folder


def hf(folder: Path, normalizer: Any, pre_tokenizer: Any) -> Path:
    """A tokenizer.json trained with these steps."""
    tokenizer = HFTokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=950, unk_token="<unk>", special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *probe_pieces()], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>"}), "utf-8")
    return folder


def charsmap() -> bytes:
    return parse_piece_model(trained("nmt_nfkc"), Path(NAME)).charsmap


Case = tuple[Tokenizer, LlamaVocabulary, Path]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    """Every tokenizer, as tinyq reads it and as llama.cpp has it."""
    base = tmp_path_factory.mktemp("unigram")
    folders = {name: written(base / str(n), trained(name)) for n, name in enumerate(SENTENCEPIECE)}
    several = normalizers.Replace(Regex(" {2,}"), "▁")
    table = normalizers.Precompiled(charsmap())
    strip = normalizers.Strip(left=False, right=True)
    t5 = normalizers.Sequence([table, strip, several])
    folders["tokenizers"] = hf(base / "hf", None, pre_tokenizers.Metaspace(prepend_scheme="always"))
    folders["tokenizers, no prefix"] = hf(base / "never", None, pre_tokenizers.Metaspace(prepend_scheme="never"))
    folders["as T5's"] = hf(base / "t5", t5, pre_tokenizers.Metaspace(prepend_scheme="always"))
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    folders["as XLM-R's"] = hf(base / "xlmr", table, words)
    read = {name: load_tokenizer(folder, ROWS) for name, folder in folders.items()}
    return {name: (read[name], llama_vocabulary(folders[name], read[name]), folders[name]) for name in folders}


NAMES = [*SENTENCEPIECE, "tokenizers", "tokenizers, no prefix", "as T5's", "as XLM-R's"]


def score(data: bytes, ids: list[int]) -> float:
    pieces = parse_piece_model(data, Path(NAME)).pieces
    return sum(pieces[number].score for number in ids)


@pytest.mark.parametrize("name", NAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(text=TEXT)
def test_any_text(loaded: Mapping[str, Case], name: str, text: str) -> None:
    tokenizer, vocabulary, folder = loaded[name]
    if "\0" in text or any(limit.affects(text) for limit in tokenizer.limits):
        return
    ours = tokenizer.encode(text)
    assert vocabulary.encode(text) == ours
    if name in SENTENCEPIECE:
        theirs = sentencepiece.SentencePieceProcessor(model_proto=trained(name)).encode(text)
        # It adds scores in float32, so that of two ways with equal sums it may take the other.
        assert ours == theirs or score(trained(name), ours) == pytest.approx(score(trained(name), theirs), rel=1e-6)
    else:
        assert ours == HFTokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMES)
def test_the_probe(loaded: Mapping[str, Case], name: str) -> None:
    tokenizer, vocabulary, _ = loaded[name]
    assert tokenizer.model == "t5"
    assert tokenizer.token_types[tokenizer.unk_id or 0] == 2
    probe(tokenizer, vocabulary.encode)
    text = "the lazy dog, and then"
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text


@pytest.mark.parametrize("name", NAMES)
def test_few_of_the_probes_pieces_are_left_out(loaded: Mapping[str, Case], name: str) -> None:
    tokenizer = loaded[name][0]
    fair = [piece for piece in probe_pieces() if not any(limit.affects(piece) for limit in tokenizer.limits)]
    assert len(fair) > len(probe_pieces()) / 3


def test_a_table_of_ones_own(loaded: Mapping[str, Case], tmp_path: Path) -> None:
    """Unit 97, which "a" leads to, has the offset 1, so that its value is unit 96: the text at 0."""
    source = loaded["tokenizers"][2] / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    step = table({97: 1 << 10 | 256 | 97, 96: LEAF})
    tokenizer = load_tokenizer(change_json(tmp_path, {"normalizer": step}), ROWS)
    assert tokenizer.encode("a dog") == tokenizer.encode("x dog") != tokenizer.encode("b dog")
    vocabulary = llama_vocabulary(tmp_path, tokenizer)
    assert vocabulary.encode("a dog") == tokenizer.encode("a dog")


def test_scores_that_float32_rounds_are_said(loaded: Mapping[str, Case]) -> None:
    """The trainer of the tokenizers library gives scores in float64, SentencePiece's in float32."""
    said = {name: any("holds scores as float32" in note for note in loaded[name][0].notes) for name in NAMES}
    assert said == {name: name not in SENTENCEPIECE for name in NAMES}


def test_tokens_beyond_the_rows(loaded: Mapping[str, Case]) -> None:
    folder = loaded["tokenizers"][2]
    with pytest.raises(TokenizerError, match="--drop-tokens"):
        load_tokenizer(folder, 500)
    assert load_tokenizer(folder, 500, drop_tokens=True).vocab_size == 500


SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
NO_PREFIX = {**METASPACE, "prepend_scheme": "never"}
LEAF = 1 << 31
"""The bit of a unit that is a value."""


def table(units: Mapping[int, int], size: int = 256, texts: bytes = b"x\0") -> dict[str, Any]:
    """A step with a table of characters whose units are zeros but for these."""
    packed = b"".join(units.get(n, 0).to_bytes(4, "little") for n in range(size))
    data = len(packed).to_bytes(4, "little") + packed + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"model.byte_fallback": True},
            TokenizerError,
            "model.byte_fallback is True; llama.cpp's Unigram tokenizer has no byte",
        ),
        ({"model.unk_id": None}, TokenizerError, "model.unk_id is None; llama.cpp needs an unknown token"),
        ({"model.unk_id": 5000}, TokenizerError, "model.unk_id is 5000"),
        ({"normalizer": {"type": "NFKC"}}, TokenizerError, "no equivalent of the normalizer 'NFKC'"),
        ({"normalizer": {"type": "Lowercase"}}, TokenizerError, "no equivalent of the normalizer 'Lowercase'"),
        (
            {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
            TokenizerError,
            "normalizer 'Strip' here",
        ),
        (
            {"normalizer": SPACES, "pre_tokenizer": {**METASPACE, "prepend_scheme": "never"}},
            TokenizerError,
            "leaves one of several",
        ),
        ({"pre_tokenizer": None}, TokenizerError, "no step replaces spaces by '▁'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, TokenizerError, "pre-tokenizer step 'Whitespace' splits"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, TokenizerError, "pre-tokenizer step 'WhitespaceSplit' splits"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            CheckpointError,
            "of 3 bytes is broken",
        ),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
            CheckpointError,
            "charsmap is not base64",
        ),
        ({"normalizer": table({0: 1 << 18})}, CheckpointError, "charsmap of 1030 bytes is broken"),
        ({"normalizer": table({}, 200)}, CheckpointError, "charsmap of 806 bytes is broken"),
        ({"normalizer": table({3: LEAF | 2})}, CheckpointError, "is broken"),
        ({"normalizer": table({97: 256 | 97})}, CheckpointError, "is broken"),
        ({"normalizer": table({}, texts=b"x")}, CheckpointError, "is broken"),
        ({"model.vocab": {"a": 1}}, CheckpointError, "model.vocab is dict; expected a list"),
        ({"model.vocab": [["a", -1.0], ["a", -2.0]]}, CheckpointError, "model.vocab has 'a' twice"),
        ({"model.vocab": [["a", None]]}, CheckpointError, r"model.vocab\[0\] is list; expected a piece and its score"),
        ({"model.vocab": [["a", 1e31]]}, CheckpointError, "expected a piece and its score"),
        ({"model.vocab": [["\ud800", 1.0]]}, CheckpointError, "lone surrogate"),
        (
            {"model.vocab": [["<pad>", -90.0], ["</s>", 0.0], ["<unk>", 0.0], ["a", -1.0]]},
            TokenizerError,
            "the least score",
        ),
        (
            {"model.vocab": [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["a▁b", -1.0]]},
            TokenizerError,
            "there is a piece 'a▁b'",
        ),
    ],
)
def test_refusals(
    loaded: Mapping[str, Case], tmp_path: Path, change: Mapping[str, Any], kind: type[InputError], message: str
) -> None:
    source = loaded["tokenizers"][2] / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    with pytest.raises(kind, match=message) as error:
        load_tokenizer(change_json(tmp_path, change), ROWS)
    assert "\n" not in str(error.value)
    assert "tokenizer.json" in str(error.value)
