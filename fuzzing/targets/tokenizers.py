"""A tokenizer's folder: tokenizer.json in the forms that are converted, slow forms, and the files beside them."""

from __future__ import annotations

import base64
import json
import pickle
import struct
from pathlib import Path
from typing import Any

from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.formats.gguf.header import pack_header
from gguf_tools.tokenizers.byte_level import byte_characters
from gguf_tools.tokenizers.pretokenizers import GPT2
from gguf_tools.tokenizers.probe import probe_pieces
from gguf_tools.tokenizers.sentencepiece import BYTE_TOKENS, SPACE
from gguf_tools.tokenizers.slow import QWEN2
from gguf_tools.tokenizers.vocabulary import load_tokenizer

Json = dict[str, Any]
BYTES, PIECES = "@bytes", "@pieces"
"""In place of a vocabulary or of merges: those with a token for each byte, byte-level or as SentencePiece has them."""
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("1", "2"))
SPM_MERGES = ((SPACE, "a"), ("t", "h"), ("th", "e"))
FILES = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
    ),
    *("config.json", "chat_template.json", "chat_template.jinja", "vocab.json", "merges.txt"),
)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _vocabulary(name: str) -> dict[str, int]:
    if name == BYTES:
        tokens = [*byte_characters(), *("".join(pair) for pair in MERGES)]
    else:
        tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, SPACE, *"abceht", *("".join(pair) for pair in SPM_MERGES)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _filled(value: Any) -> Any:
    """A document with the vocabularies in place of their names."""
    if isinstance(value, dict):
        filled = {key: _filled(inner) for key, inner in value.items()}
        if value.get("vocab") in (BYTES, PIECES):
            filled["vocab"] = _vocabulary(value["vocab"])
        if value.get("merges") in (BYTES, PIECES):
            filled["merges"] = [list(pair) for pair in (MERGES if value["merges"] == BYTES else SPM_MERGES)]
        return filled
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def _added(content: str, number: int) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def _byte_level(pre_tokenizer: Json, **more: Any) -> Json:
    model = {"type": "BPE", "vocab": BYTES, "merges": BYTES, "byte_fallback": False, "ignore_merges": False}
    ends = [_added("<|bos|>", 261), _added("<|im_end|>", 262)]
    return {"added_tokens": ends, "normalizer": None, "pre_tokenizer": pre_tokenizer, "model": model, **more}


def _split(regex: str) -> Json:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, step]}


def _sentencepiece(**more: Any) -> Json:
    model = {
        "type": "BPE",
        "vocab": PIECES,
        "merges": PIECES,
        "byte_fallback": True,
        "unk_token": "<unk>",
        "fuse_unk": True,
    }
    ends = [_added(token, number) for number, token in enumerate(("<unk>", "<s>", "</s>"))]
    return {"added_tokens": ends, "pre_tokenizer": None, "model": model, **more}


def _unigram(**more: Any) -> Json:
    pieces = [["<unk>", 0.0], ["</s>", 0.0], [SPACE, -1.5], *([char, -3.25] for char in "abceht"), ["the", -2.125]]
    return {
        "added_tokens": [_added("</s>", 1)],
        "pre_tokenizer": None,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": pieces},
        **more,
    }


def _seeds() -> list[Json]:
    """Folders, by file; a text is a file's own text."""
    template: Json = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
    }
    template |= {"pair": [], "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [261], "tokens": ["<|bos|>"]}}}
    config: Json = {
        "bos_token": "<|bos|>",
        "eos_token": {"content": "<|im_end|>"},
        "add_bos_token": True,
        "chat_template": "{{ 1 }}",
    }
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    steps = [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    table = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(b"\0\4\0\0" + bytes(1024) + b"x\0").decode(),
    }
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return [
        {"tokenizer.json": _byte_level(plain), "tokenizer_config.json": config},
        {
            "tokenizer.json": _byte_level(_split(LLAMA3), post_processor=template),
            "tokenizer_config.json": config | {"chat_template": named},
            "generation_config.json": {"eos_token_id": [262, 3]},
            "config.json": {"bos_token_id": 261, "text_config": {"pad_token_id": 5}},
        },
        {
            "tokenizer.json": _byte_level(_split(QWEN2), normalizer={"type": "NFC"}),
            "special_tokens_map.json": {"pad_token": "<|im_end|>"},
            "added_tokens.json": {"<tool>": 263},
            "chat_template.json": {"chat_template": "x"},
        },
        {"tokenizer.json": _sentencepiece(normalizer={"type": "Sequence", "normalizers": steps})},
        {
            "tokenizer.json": _sentencepiece(pre_tokenizer=metaspace),
            "tokenizer_config.json": {"added_tokens_decoder": {"1": _added("<s>", 1)}, "bos_token": "<s>"},
        },
        {"tokenizer.json": _unigram(pre_tokenizer=metaspace | {"prepend_scheme": "always"})},
        {"tokenizer.json": _unigram(normalizer={"type": "Sequence", "normalizers": [table, *steps]})},
        {
            "vocab.json": {"@": BYTES},
            "merges.txt": "#version: 0.2\nt h\nth e\n",
            "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "eos_token": "e"},
        },
    ]


def _write(folder: Path, files: Json) -> None:
    """The files of an input; no other stays."""
    for name in FILES:
        path, content = folder / name, files.get(name)
        if content is None:
            path.unlink(missing_ok=True)
        elif isinstance(content, str):
            path.write_text(content, "utf-8", "surrogatepass")
        else:
            filled = _filled(content)
            whole = (
                _vocabulary(BYTES) | filled if isinstance(filled, dict) and filled.pop("@", None) == BYTES else filled
            )
            path.write_text(json.dumps(whole), "utf-8")


def _folder(folder: Path) -> Prepared:
    pieces = probe_pieces()[:3]

    def read(data: bytes) -> bool:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        if not isinstance(document, dict):
            return False
        _write(folder, document)
        config = document.get("config.json")
        tokenizer = load_tokenizer(folder, 280, config=config if isinstance(config, dict) else None, drop_tokens=True)
        pack_header(tokenizer.metadata(), (), 32)
        for piece in pieces:
            tokenizer.decode(tokenizer.encode(piece, special=True))
        return True

    return Prepared([json.dumps(seed).encode() for seed in _seeds()], read)


def _varint(value: int) -> bytes:
    value %= 1 << 70
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _message(fields: Any) -> bytes:
    """A protocol buffer of [number, value] in turn: whole numbers, floats, texts, or lists of further fields."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        elif isinstance(value, float):
            out += _varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else _message(value)
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def _pieces() -> list[Any]:
    """Every byte, some characters, and pieces put together from them."""
    texts = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((token, 6) for token in BYTE_TOKENS)]
    texts += [(text, 1) for text in (f"{SPACE}a", "th", "the", SPACE, *"abceht")]
    return [[1, [[1, text], [2, -float(rank)], [3, kind]]] for rank, (text, kind) in enumerate(texts)]


def _piece_model(folder: Path) -> Prepared:
    """SentencePiece's tokenizer.model: the input is what comes after a vocabulary that is long."""
    path, head = folder / "tokenizer.model", _message(_pieces())
    trainer = [[3, 2], [35, 1], [40, 0], [41, 1], [42, 2]]
    seeds = [
        [[2, trainer]],
        [[2, trainer], [3, [[3, 1], [4, 0], [5, 1]]]],
        [[2, trainer], [3, [[2, "x"]]], [1, [[1, "ab"], [3, 4]]]],
    ]

    def read(data: bytes) -> bool:
        try:
            path.write_bytes(head + _message(json.loads(data)))
        except (ValueError, RecursionError, TypeError, OverflowError):
            return False
        return _loads(folder)

    return Prepared([json.dumps(seed).encode() for seed in seeds], read)


def _loads(folder: Path) -> bool:
    tokenizer = load_tokenizer(folder, 600, drop_tokens=True)
    pack_header(tokenizer.metadata(), (), 32)
    tokenizer.decode(tokenizer.encode("the cab"))
    return True


def _characters(folder: Path) -> Prepared:
    """nanoGPT's meta.pkl, or any other pickle of that name."""
    path = folder / "meta.pkl"
    characters = sorted("\n abcdeht\u00e9\u4e2d")
    meta = {"vocab_size": 12, "itos": dict(enumerate(characters)), "stoi": {c: n for n, c in enumerate(characters)}}

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return _loads(folder)

    return Prepared([pickle.dumps(meta, protocol) for protocol in (0, 2, 4)], read)


def _pickled_encoding(folder: Path) -> Prepared:
    """nanochat's tokenizer.pkl, with the state of the encoding as a dict."""
    path = folder / "tokenizer.pkl"
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257}
    state = {"pat_str": r"\p{N}{1,3}|\p{L}+|.", "mergeable_ranks": ranks, "special_tokens": {"<|bos|>": 258}}
    gpt2 = {**state, "pat_str": GPT2}

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return _loads(folder)

    return Prepared([pickle.dumps(value) for value in (state, gpt2)], read)


def _rank_model(folder: Path) -> Prepared:
    """Llama 3's tokenizer.model, or any other file of that name."""
    path = folder / "tokenizer.model"
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"the"]
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return _loads(folder)

    return Prepared([lines, lines + b"Y2F0 258\n", _message([*_pieces(), [2, [[3, 2], [35, 1]]]])], read)


KEYS = (
    *FILES,
    *("type", "model", "vocab", "merges", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
    *(
        "byte_fallback",
        "ignore_merges",
        "unk_token",
        "fuse_unk",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "dropout",
    ),
    *(
        "pretokenizers",
        "normalizers",
        "processors",
        "pattern",
        "Regex",
        "String",
        "behavior",
        "invert",
        "add_prefix_space",
    ),
    *(
        "use_regex",
        "trim_offsets",
        "prepend_scheme",
        "replacement",
        "split",
        "single",
        "SpecialToken",
        "id",
        "ids",
        "content",
    ),
    *(
        "special",
        "lstrip",
        "rstrip",
        "normalized",
        "single_word",
        "bos_token",
        "eos_token",
        "pad_token",
        "add_bos_token",
    ),
    *(
        "add_eos_token",
        "chat_template",
        "eos_token_id",
        "bos_token_id",
        "tokenizer_class",
        "added_tokens_decoder",
        "cls",
        "sep",
    ),
    *(
        "additional_special_tokens",
        "extra_special_tokens",
        "individual_digits",
        "prepend",
        "text_config",
        "name",
        "template",
    ),
)
OWN = (
    *(
        BYTES,
        PIECES,
        "BPE",
        "Unigram",
        "WordPiece",
        "WordLevel",
        "ByteLevel",
        "Metaspace",
        "Split",
        "Digits",
        "Sequence",
        "NFC",
    ),
    *(
        "NFKC",
        "Lowercase",
        "Replace",
        "Prepend",
        "Strip",
        "Punctuation",
        "Whitespace",
        "BertProcessing",
        "TemplateProcessing",
    ),
    *(
        "Isolated",
        "Removed",
        "MergedWithPrevious",
        "Contiguous",
        "always",
        "never",
        "first",
        SPACE,
        "<0x0A>",
        "<s>",
        "</s>",
    ),
    *(
        "<|bos|>",
        "<|im_end|>",
        "<|endoftext|>",
        "GPT2Tokenizer",
        "Qwen2TokenizerFast",
        "default",
        "(",
        "[a-",
        r"\p{L}+",
        "(?=a)*",
    ),
    *(261, 262, 263, 279, 280, ["t", "h"], "t h", ["a", "b", "c"], {"String": "a"}, {"Regex": "(a+)+b"}, LLAMA3, QWEN2),
    *({"type": "NFC"}, {"type": "Digits", "individual_digits": True}, {"<|x|>": 3}, {"type": "ByteFallback"}),
)
TARGETS = (
    Target(
        name="tokenizer",
        title="tokenizer folder, fast and slow forms",
        prepare=_folder,
        mutate=json_mutator(KEYS, OWN),
        longest=12_000,
        executions=150_000,
        short=60,
        deep=True,
    ),
    Target(
        name="tokenizer-model",
        title="tokenizer.model of SentencePiece",
        prepare=_piece_model,
        mutate=json_mutator(
            (), (*range(1, 6), 24, 35, 40, 41, 42, 43, 261, 268, 1 << 40, -1, -2.5, [3, 1], [2, "x"], [1, [[1, "ab"]]])
        ),
        longest=1000,
        executions=50_000,
        short=60,
    ),
    Target(
        name="tokenizer-ranks",
        title="tokenizer.model of Llama 3",
        prepare=_rank_model,
        words=[b"YQ==", b" ", b"\n", b" 9999999999", b"YWI= 258\n", b"=", b" 0"],
        longest=9000,
        executions=50_000,
        short=60,
    ),
    Target(
        name="tokenizer-encoding",
        title="tokenizer.pkl of nanochat",
        prepare=_pickled_encoding,
        words=[
            b"\x8c\x01a",
            b"K\x00",
            b"C\x01a",
            b"h\x00",
            b"ctiktoken.core\nEncoding\n",
            b")\x81",
            b"b",
            b"u.",
            b"J\xff\xff\xff\xff",
        ],
        longest=9000,
        executions=50_000,
        short=60,
    ),
    Target(
        name="tokenizer-characters",
        title="meta.pkl of nanoGPT",
        prepare=_characters,
        words=[
            b"\x8c\x01a",
            b"K\x00",
            b"\x94",
            b"h\x00",
            b"cos\nsystem\n",
            b"R",
            b"r\xff\xff\xff\xff",
            b"\x81",
            b"b",
            b"u.",
        ],
        longest=2000,
        executions=50_000,
        short=60,
    ),
)
