"""The header as TOML: given back unchanged it changes nothing, and what is edited in it is what changes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_tools import edit
from gguf_tools.editing.header_toml import header_toml, read_header_toml
from gguf_tools.editing.plan import edits_of, plan_edit
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.values import Field, StoredField, ValueType
from tests.conftest import Ran
from tests.editing.headers import FIELDS, KEYS
from tests.tiny_gguf import write_dense

Tinyq = Callable[..., Ran]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two layers, not to be changed."""
    return write_dense(tmp_path_factory.mktemp("toml") / "dense.gguf", chat=True)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(KEYS | st.text(min_size=1, max_size=9), FIELDS, max_size=4), whole=st.booleans())
def test_given_back_unchanged_it_changes_nothing(
    dense: Path, tmp_path: Path, values: dict[str, Field], whole: bool
) -> None:
    """Random keys and values of every type, texts that are not UTF-8 among them."""
    header = read_header(dense)
    header = replace(header, metadata={**header.metadata, **values})
    path = tmp_path / "header.toml"
    path.write_text("\n".join(header_toml(header, header.tensors, whole=whole)), "utf-8")
    stated, removed, renamed = read_header_toml(path, header)
    plan = plan_edit([header], edits_of(header, stated, removed, renamed))
    assert (plan.changes, plan.renamed) == ((), {})
    if whole:
        assert "kept" not in path.read_text("utf-8").replace("kept", "", sum("kept" in key for key in values))


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (ValueType.FLOAT32, struct.pack("<I", 0x7F800001)),
        (ValueType.FLOAT32, struct.pack("<I", 0xFFC00000)),
        (ValueType.FLOAT64, struct.pack("<Q", 0x7FF0000000000001)),
        (ValueType.FLOAT32, struct.pack("<f", -0.0)),
        (ValueType.BOOL, b"\x02"),
        (ValueType.UINT64, b"\xff" * 8),
    ],
)
def test_unusual_bits_are_kept(dense: Path, tmp_path: Path, kind: ValueType, raw: bytes) -> None:
    header = read_header(dense)
    for data, whole in ((raw, kind), (struct.pack("<IQ", kind, 3) + raw * 3, ValueType.ARRAY)):
        field = StoredField(whole, bytearray(data), 0, len(data))
        changed = replace(header, metadata={**header.metadata, "my.bits": field})
        path = tmp_path / "header.toml"
        path.write_text("\n".join(header_toml(changed, header.tensors)), "utf-8")
        stated, removed, renamed = read_header_toml(path, changed)
        assert plan_edit([changed], edits_of(changed, stated, removed, renamed)).changes == ()
        (one,) = [one for one in stated if one.key == "my.bits"]
        assert bytes(one.field.packed()) == data


def test_the_command_shows_and_takes_back(tinyq: Tinyq, dense: Path, tmp_path: Path) -> None:
    for arrays in ([], ["--arrays"]):
        ran = tinyq("edit", dense, "--show", *arrays)
        assert (ran.code, ran.err) == (0, "")
        text = tmp_path / "header.toml"
        text.write_text(ran.out, "utf-8")
        out = tmp_path / "out.gguf"
        assert tinyq("edit", dense, out, "--from", text, "--force").code == 0
        assert out.read_bytes() == dense.read_bytes()
    edited = (
        ran.out.replace('"qwen3.context_length:u32" = 256', '"qwen3.context_length:u32" = 0x400')
        .replace('"general.name:str" = "tiny dense"\n', "")
        .replace('"blk.0.attn_q.weight" = "blk.0.attn_q.weight"', '"blk.0.attn_q.weight" = "blk.0.attn_Q.weight"')
        .replace("[metadata]", '[metadata]\n"my.new:[i8]" = [-1, 2]')
    )
    text.write_text(edited, "utf-8")
    ran = tinyq("edit", dense, out, "--from", text, "--force", "--no-prove")
    assert (ran.code, ran.err) == (0, "")
    header = read_header(out)
    assert header.get("qwen3.context_length") == 1024
    assert "general.name" not in header.metadata
    assert header.metadata["my.new"] == Field(ValueType.ARRAY, (-1, 2), ValueType.INT8)
    assert "blk.0.attn_Q.weight" in [entry.name for entry in header.tensors]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[metadata", "not valid TOML"),
        ("[tensors]", r"has no table \[metadata\]"),
        ("[metadata]\n[other]", "other is not known"),
        ('[metadata]\n"my.a" = 1', "my.a has no type"),
        ('[metadata]\n"my.a:u33" = 1', "there is no type 'u33'"),
        ('[metadata]\n"my.a:u32" = "x"', "my.a is 'x'; expected an integer"),
        ('[metadata]\n"my.a:u32" = 1\n"my.a:i32" = 1', "my.a stands twice"),
        ('[metadata]\n"my.a:u32" = 1979-05-27', "my.a is datetime.date"),
        ('[metadata]\n"my.a:u32" = {base64 = "?"}', "my.a: is not base64"),
        ('[metadata]\n"my.a:u32" = {base64 = "AAA="}', "my.a: has 2 bytes; expected 4"),
        ('[metadata]\n"my.a:[str]" = {base64 = "AAA="}', "my.a: its bytes end within a text"),
        (
            '[metadata]\n"tokenizer.ggml.tokens:[str]" = {kept = 260, digest = "0"}',
            "tokens is kept, but .* has another value",
        ),
        ('[metadata]\n"general.name:str" = {a = 1}', "general.name is a table"),
        ('[metadata]\n"general.architecture:str" = "qwen3"\n[tensors]\n"a" = 1', "the new name of a is 1"),
        ('[metadata]\n"general.architecture:str" = "llama"', "general.architecture cannot be changed"),
        ('[metadata]\n"general.name:str" = "a"', "general.architecture cannot be changed"),
    ],
)
def test_what_is_wrong_is_named(dense: Path, tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "header.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=complaint):
        edit(dense, tmp_path / "out.gguf", header=path)
    assert list(tmp_path.iterdir()) == [path]
