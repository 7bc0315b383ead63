"""SentencePiece's `tokenizer.model`, as what tokenizer.json would hold.

Source: google/sentencepiece, `src/sentencepiece_model.proto` (fields), `src/bpe_model.cc` (the pair with the best score whose
text is a piece is joined first, the leftmost of equal ones) and `src/normalizer.cc` (spaces). The file is a protocol buffer;
only the fields that decide how text is cut are read.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.text import shortened

NAME = "tokenizer.model"
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
MODELS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
OUTER_SPACES = {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}
SEVERAL_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
"""SentencePiece's remove_extra_whitespaces as normalizers of the tokenizers library."""
LONGEST = 1024
"""Characters of a token, of which known vocabularies have 512 at most: ways to join one take the square of its length."""
ADDED = (UNKNOWN, CONTROL, USER_DEFINED)
ROLES = {"unk_token": (40, 0), "bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}
"""Role → (field of the trainer's specification, the id that holds where the field is absent)."""


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, kw_only=True)
class PieceModel:
    """The parts of a model that decide how text is cut. `roles` are ids, -1 where the vocabulary lacks the role."""

    pieces: tuple[Piece, ...]
    model: str
    byte_fallback: bool
    roles: Mapping[str, int]
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    whitespace_as_suffix: bool


def parse_piece_model(data: bytes, path: Path) -> PieceModel:
    """The model in `data`; CheckpointError where it is no protocol buffer of this kind."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        return _model(tuple(pieces), trainer, normalizer)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointError(f"{path}: is no SentencePiece model ({error}); download it again") from error


def _model(pieces: tuple[Piece, ...], trainer: Mapping[int, Any], normalizer: Mapping[int, Any]) -> PieceModel:
    """The model of its pieces and the fields of its two specifications; ValueError where one is of another wire type."""
    if not pieces:
        raise ValueError("it has no pieces")

    def whole(fields: Mapping[int, Any], number: int, default: int) -> int:
        return _signed(fields.get(number, default))

    kind = whole(trainer, 3, 1)
    roles = {role: whole(trainer, field, default) for role, (field, default) in ROLES.items()}
    return PieceModel(
        pieces=pieces,
        model=MODELS.get(kind, str(kind)),
        byte_fallback=bool(whole(trainer, 35, 0)),
        roles={role: number if number < len(pieces) else -1 for role, number in roles.items()},
        charsmap=_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(whole(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(whole(normalizer, 4, 1)),
        escape_whitespaces=bool(whole(normalizer, 5, 1)),
        whitespace_as_suffix=bool(whole(trainer, 24, 0)),
    )


def put_together(data: bytes, path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What tokenizer.json would hold, and `config` with the model's own special tokens.

    BOS is added to every text and EOS is not, as Meta's and llama2.c's code and transformers' LlamaTokenizer do, unless
    `config` says otherwise. Raises TokenizerError for models other than BPE and Unigram, and for pieces that two steps of
    SentencePiece treat in a way that tokenizers has no form for.
    """
    model = parse_piece_model(data, path)
    if model.model not in ("BPE", "Unigram"):
        raise TokenizerError(f"{path}: is a {model.model} model; tinyq converts SentencePiece's BPE and Unigram")
    if not model.escape_whitespaces or model.whitespace_as_suffix:
        what = "treat_whitespace_as_suffix is true" if model.whitespace_as_suffix else "escape_whitespaces is false"
        raise TokenizerError(f"{path}: {what}; llama.cpp writes a space as '▁' before a word")
    unused = next((piece.text for piece in model.pieces if piece.type == UNUSED), None)
    if unused is not None:
        raise TokenizerError(
            f"{path}: the piece {shortened(repr(unused))} is marked unused, so that SentencePiece cuts it "
            "again; llama.cpp does not"
        )
    document = {
        "added_tokens": [_added(number, piece) for number, piece in enumerate(model.pieces) if piece.type in ADDED],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "decoder": _decoder(model),
        "model": _bpe(model, path) if model.model == "BPE" else _unigram(model),
    }
    named = {role: model.pieces[number].text for role, number in model.roles.items() if number >= 0}
    return document, {**named, "add_bos_token": "bos_token" in named, "add_eos_token": False, **config}


def _added(number: int, piece: Piece) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": piece.text, "special": piece.type != USER_DEFINED, **flags}


def _normalizers(model: PieceModel) -> list[dict[str, Any]]:
    """SentencePiece's treatment of text before it is cut, in its order."""
    steps: list[dict[str, Any]] = [_table(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [OUTER_SPACES, SEVERAL_SPACES]
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


def _table(charsmap: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")}


def _decoder(model: PieceModel) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    steps: list[dict[str, Any]] = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(model: PieceModel, path: Path) -> dict[str, Any]:
    """The pieces, and every way to put one together from two others as a merge, the best score first."""
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    if len(ids) < len(model.pieces):
        raise CheckpointError(f"{path}: two pieces have one text; llama.cpp needs distinct ones")
    usable = {piece.text: piece.score for piece in model.pieces if piece.type == NORMAL}
    joined = sorted((text for text in usable if len(text) > 1), key=lambda text: -usable[text])
    for first, second in pairwise(joined):
        if usable[first] == usable[second]:
            raise TokenizerError(
                f"{path}: the pieces {shortened(repr(first))} and {shortened(repr(second))} have one score, so that "
                "their place in the text decides; tokenizers and llama.cpp would need an order"
            )
    merges = [
        [text[:cut], text[cut:]]
        for text in joined
        for cut in range(1, len(text))
        if text[:cut] in usable and text[cut:] in usable
    ]
    unknown = model.roles["unk_token"]
    return {
        "type": "BPE",
        "unk_token": model.pieces[unknown].text if unknown >= 0 else None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }


def _unigram(model: PieceModel) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": max(model.roles["unk_token"], 0),
        "byte_fallback": model.byte_fallback,
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
    }


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    if not math.isfinite(score):
        raise ValueError(f"a piece has the score {score}")
    text = _bytes(fields[1]).decode("utf-8")
    if len(text) > LONGEST:
        raise ValueError(f"a piece has {len(text):,} characters; expected {LONGEST:,} at most")
    return Piece(text, score, _signed(fields.get(3, NORMAL)))


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands in place of a text")
    return value


def _signed(value: Any) -> int:
    """A varint as the int32 that it is."""
    if not isinstance(value, int):
        raise ValueError("a text stands in place of a number")
    number = value & 0xFFFFFFFFFFFFFFFF
    return number - (1 << 64) if number >> 63 else number


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in order: number, and an integer (wire type 0) or bytes (1, 2 and 5); ValueError otherwise.

    Source: protobuf's encoding page, "Message Structure".
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"byte {at} does not begin a field that fits")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"byte {at} does not end a number")
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
