"""Tiny tokenizers trained on the fly, in folders as Hugging Face lays them out, and llama.cpp's view of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
from gguf import GGUFWriter
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.normalizers import Normalizer as HFNormalizer
from tokenizers.pre_tokenizers import PreTokenizer as HFPreTokenizer

from gguf_tools.formats.gguf.header import Field, ValueType
from gguf_tools.tokenizers import pretokenizers as P  # noqa: N812
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.probe import probe_pieces
from gguf_tools.tokenizers.vocabulary import Tokenizer

# llama.cpp lists every key of every file that it loads.
_QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def regex_split(*patterns: str, behavior: str = "isolated", invert: bool = False) -> HFPreTokenizer:
    """Split steps, then byte-level BPE's characters: the form of Llama 3 and Qwen."""
    splits = [pre_tokenizers.Split(Regex(pattern), behavior, invert) for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2_style() -> HFPreTokenizer:
    """GPT-2's own, whose regex is built into ByteLevel."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@cache
def _corpus() -> tuple[str, ...]:
    """The probe text, thrice, so that long merges come to be, and with its words joined otherwise."""
    pieces = probe_pieces()
    return (
        *pieces * 3,
        " ".join(pieces),
        *(piece.replace(" ", "") for piece in pieces),
        *(piece.swapcase() for piece in pieces),
    )


def _split_step(regex: str) -> HFPreTokenizer:
    if regex == P.GPT2:
        return gpt2_style()
    return pre_tokenizers.Digits(True) if regex == P.DIGIT else pre_tokenizers.Split(Regex(regex), "isolated")


def style_of(name: str) -> HFPreTokenizer:
    """The structure of a row of `pretokenizers.TABLE`, as a tokenizer.json would have it."""
    if name == "falcon":
        groups = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
        marks = pre_tokenizers.Punctuation("contiguous")
        return pre_tokenizers.Sequence([marks, gpt2_style(), pre_tokenizers.Digits(False), groups])
    steps = next(row.steps for row in P.TABLE if row.name == name)
    splits = [_split_step(regex) for regex in steps]
    if P.GPT2 not in steps:
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(splits)


def train_byte_level(
    pre_tokenizer: HFPreTokenizer, size: int = 3000, alphabet: Sequence[str] | None = None
) -> HFTokenizer:
    """A byte-level BPE trained on the probe text."""
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet is None else list(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def train_sentencepiece(
    normalizer: HFNormalizer | None, pre_tokenizer: HFPreTokenizer | None, *, every_join: bool, size: int = 2000
) -> HFTokenizer:
    """A BPE with "▁" and byte tokens, trained line by line; `every_join` lists all ways to make a token, as SentencePiece's
    conversions do."""
    tokenizer = HFTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    control = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*control, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=250,
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for piece in _corpus() for line in piece.splitlines()], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in control]
    document["decoder"] = json.loads(_spm_decoder().__getstate__())
    if every_join:
        vocab = document["model"]["vocab"]
        made = ["".join(merge) for merge in document["model"]["merges"]]
        cuts = ((token[:cut], token[cut:]) for token in made for cut in range(1, len(token)))
        document["model"]["merges"] = [list(pair) for pair in cuts if pair[0] in vocab and pair[1] in vocab]
    return HFTokenizer.from_str(json.dumps(document))


def _spm_decoder() -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def write_folder(
    folder: Path, tokenizer: HFTokenizer, special: Sequence[str] = SPECIAL, **files: Mapping[str, Any]
) -> Path:
    """Saves a tokenizer with its special tokens; `files` are further JSON files by stem (tokenizer_config={…})."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    contents = {"tokenizer_config": {"eos_token": special[0]} if special else {}, **files}
    for stem, content in contents.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def change_json(folder: Path, change: Mapping[str, Any], name: str = "tokenizer.json") -> Path:
    """Sets values in a folder's JSON file; a key with dots goes down (`model.ignore_merges`)."""
    path = folder / name
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, value in change.items():
        *parents, last = key.split(".")
        node = document
        for parent in parents:
            node = node[parent]
        node[last] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


def write_vocabulary(path: Path, metadata: Mapping[str, Field]) -> Path:
    """A GGUF with a vocabulary and no tensors."""
    writer = GGUFWriter(str(path), "llama")
    for key, value in {
        "context_length": 64,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 32,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    for key, field in metadata.items():
        if field.type == ValueType.ARRAY:
            writer.add_array(key, bytes(field.value) if field.element == ValueType.UINT8 else list(field.value))
        elif field.type == ValueType.STRING:
            writer.add_string(key, field.value)
        elif field.type == ValueType.BOOL:
            writer.add_bool(key, field.value)
        else:
            assert field.type == ValueType.UINT32
            writer.add_uint32(key, field.value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaVocabulary:
    """A vocabulary as llama.cpp has it."""

    def __init__(self, path: Path) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        llama_cpp.llama_log_set(_QUIET, None)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp does not load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)

    def __del__(self) -> None:
        llama_cpp.llama_model_free(self._model)

    def encode(self, text: str, special: bool = False, add_special: bool = False) -> list[int]:
        """`llama_tokenize`, with the number of tokens asked for first."""
        data = text.encode("utf-8")
        count = -llama_cpp.llama_tokenize(self.vocab, data, len(data), None, 0, add_special, special)
        if count <= 0:
            return []
        ids = (llama_cpp.llama_token * count)()
        assert llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, count, add_special, special) == count
        return list(ids)


def llama_vocabulary(folder: Path, tokenizer: Tokenizer, **changed: Field) -> LlamaVocabulary:
    """Writes the tokenizer's metadata (with `changed` keys of tokenizer.ggml) into a GGUF and loads that."""
    metadata = {**tokenizer.metadata(), **{f"tokenizer.ggml.{key}": field for key, field in changed.items()}}
    return LlamaVocabulary(write_vocabulary(folder / "vocabulary.gguf", metadata))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def byte_level_folder(
    folder: Path,
    added: Sequence[str | Mapping[str, Any]] = SPECIAL,
    *,
    more: Sequence[str] = ("th",),
    merges: Sequence[Sequence[str]] = (("t", "h"),),
    model: Mapping[str, Any] | None = None,
    document: Mapping[str, Any] | None = None,
    **files: Mapping[str, Any],
) -> Path:
    """A folder with an untrained byte-level BPE: ids 0 to 255 are the bytes, then `more`, then the added tokens.

    An added token is a mapping of what is not false, or the text of a control token. `model` and `document` replace keys of
    tokenizer.json, `files` are further JSON files by stem.
    """
    vocab = {token: n for n, token in enumerate([*byte_characters(), *more])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    entries = [{"content": token, "special": True} if isinstance(token, str) else token for token in added]
    new = [entry["content"] for entry in entries if entry["content"] not in vocab]
    ids = vocab | {content: n for n, content in enumerate(new, len(vocab))}
    contents = {
        "version": "1.0",
        "added_tokens": [{**flags, "id": ids[entry["content"]], **entry} for entry in entries],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges], **(model or {})},
        **(document or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in {"tokenizer": contents, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
