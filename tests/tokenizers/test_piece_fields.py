"""The protocol buffer of a SentencePiece model: any fields, written as protobuf's encoding page has it, are read back.

The numbers and defaults of the fields are those of google/sentencepiece, `src/sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.errors import CheckpointError
from gguf_tools.tokenizers.piece_model import LONGEST, Piece, parse_piece_model, put_together

PATH = Path("tokenizer.model")
NAMES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
ROLES = {"unk_token": (40, 0), "bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as its 64 bits."""
    number %= 1 << 64
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes | float) -> bytes:
    """A field: a varint, bytes, or a float32."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def piece(text: str, score: float | None = None, kind: int | None = None) -> bytes:
    parts = [field(1, text.encode())]
    parts += [] if score is None else [field(2, score)]
    parts += [] if kind is None else [field(3, kind)]
    return field(1, b"".join(parts))


small = st.integers(-3, 5)
pieces = st.lists(
    st.tuples(
        st.text("ab▁é", min_size=1, max_size=3), st.none() | st.floats(-9, 9, width=32), st.none() | st.integers(1, 6)
    ),
    min_size=1,
    max_size=5,
)
trainer = st.fixed_dictionaries(
    {},
    optional={
        3: st.integers(1, 5),
        24: st.booleans(),
        35: st.booleans(),
        **{number: small for number, _ in ROLES.values()},
    },
)
normalizer = st.fixed_dictionaries({}, optional={2: st.binary(max_size=5), **dict.fromkeys((3, 4, 5), st.booleans())})
unknown = st.lists(
    st.sampled_from([field(90, 7), field(91, b"x" * 300), field(92, 0.5), varint(93 << 3 | 1) + b"8" * 8]), max_size=3
)


def packed(fields: dict[int, Any], others: list[bytes]) -> bytes:
    return b"".join([*others, *(field(number, value) for number, value in fields.items()), *others])


@given(pieces, trainer, normalizer, unknown)
def test_any_fields(
    entries: list[tuple[str, float | None, int | None]],
    trained: dict[int, Any],
    normal: dict[int, Any],
    others: list[bytes],
) -> None:
    data = b"".join(
        [
            *others,
            *(piece(*entry) for entry in entries),
            field(2, packed(trained, others)),
            field(3, packed(normal, others)),
        ]
    )
    model = parse_piece_model(data, PATH)
    assert model.pieces == tuple(Piece(text, score or 0.0, kind or 1) for text, score, kind in entries)
    kind = trained.get(3, 1)
    assert model.model == NAMES.get(kind, str(kind))
    stated = {role: trained.get(number, default) for role, (number, default) in ROLES.items()}
    assert dict(model.roles) == {role: -1 if number >= len(entries) else number for role, number in stated.items()}
    assert (model.charsmap, model.byte_fallback) == (normal.get(2, b""), trained.get(35, False))
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces) == (normal.get(3, True), normal.get(4, True))
    assert (model.escape_whitespaces, model.whitespace_as_suffix) == (normal.get(5, True), trained.get(24, False))


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_numbers_have_64_bits_with_a_sign(number: int) -> None:
    model = parse_piece_model(piece("a", kind=number), PATH)
    assert model.pieces[0].type == number


def test_the_longest_piece() -> None:
    assert len(parse_piece_model(piece("é" * LONGEST), PATH).pieces[0].text) == LONGEST
    with pytest.raises(CheckpointError, match="a piece has 1,025 characters; expected 1,024 at most"):
        parse_piece_model(piece("é" * (LONGEST + 1)), PATH)


@pytest.mark.parametrize("kind", [3, 4, 6, 7])
def test_wire_types_that_do_not_exist(kind: int) -> None:
    with pytest.raises(CheckpointError, match="does not begin a field that fits"):
        parse_piece_model(piece("a") + varint(9 << 3 | kind) + b"\0" * 20, PATH)


@pytest.mark.parametrize("unknown_id", [0, 1, -1])
def test_the_first_piece_can_have_a_role(unknown_id: int) -> None:
    entries = [("<x>", 0.0, 2 if unknown_id == 0 else 3), ("<y>", 0.0, 2 if unknown_id == 1 else 3), ("a", -1.0, 1)]
    roles = {3: 2, 40: unknown_id, 41: -1, 42: -1}
    data = b"".join(piece(*entry) for entry in entries) + field(2, packed(roles, []))
    document, config = put_together(data, PATH, {})
    expected = entries[unknown_id][0] if unknown_id >= 0 else None
    assert config.get("unk_token") == expected
    assert (config["add_bos_token"], config["add_eos_token"]) == (False, False)
    assert document["model"]["unk_token"] == expected


def test_a_cut_field_is_refused() -> None:
    data = piece("ab", -1.0, 1)
    for cut in range(len(data)):
        with pytest.raises(CheckpointError, match="is no SentencePiece model"):
            parse_piece_model(data[:cut], PATH)


def test_merges_are_of_pieces_of_two_characters_and_more() -> None:
    """Single characters may have one score, and an empty piece joins nothing."""
    entries = [("<unk>", 0.0, 2), ("", -9.0, 1), ("a", -3.0, 1), ("b", -3.0, 1), ("ab", -1.0, 1), ("aba", -2.0, 1)]
    data = b"".join(piece(*entry) for entry in entries) + field(2, packed({3: 2}, []))
    document, _ = put_together(data, PATH, {})
    assert document["model"]["merges"] == [["a", "b"], ["ab", "a"]]


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_kinds_of_models(kind: int) -> None:
    model = parse_piece_model(piece("a") + field(2, packed({3: kind}, [])), PATH)
    assert model.model == NAMES.get(kind, str(kind))


def test_added_tokens_are_the_unknown_the_control_and_the_users_own() -> None:
    entries = [(f"<{kind}>", -float(kind), kind) for kind in (1, 2, 3, 4, 6)]
    data = b"".join(piece(*entry) for entry in entries) + field(2, packed({3: 2}, []))
    document, _ = put_together(data, PATH, {})
    assert [(token["content"], token["special"]) for token in document["added_tokens"]] == [
        ("<2>", True),
        ("<3>", True),
        ("<4>", False),
    ]
