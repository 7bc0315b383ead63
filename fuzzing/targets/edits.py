"""What edits of a GGUF's header are given as: a header as TOML, and KEY:TYPE=VALUE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzzing.target import Prepared, Target
from fuzzing.targets.formats import gguf_bytes
from gguf_tools.editing.copies import write_copies
from gguf_tools.editing.header_toml import header_toml, read_header_toml
from gguf_tools.editing.in_place import fitted
from gguf_tools.editing.plan import EditPlan, assignment, edits_of, plan_edit
from gguf_tools.formats.gguf.header import (
    GGUFHeader,
    Metadata,
    ValueType,
    array,
    boolean,
    f32,
    read_header,
    string,
    u32,
)
from quant.types import F32

METADATA: Metadata = {
    "general.architecture": string("llama"),
    "general.name": string("ü\n\x1b"),
    "llama.block_count": u32(2),
    "llama.rope.freq_base": f32(1e4),
    "llama.attention.head_count_kv": array(ValueType.UINT32, [1, 2]),
    "tokenizer.ggml.tokens": array(ValueType.STRING, ["a", "\udcff", "b"]),
    "tokenizer.ggml.add_bos_token": boolean(True),
    "tokenizer.chat_template": string("{{ a }}\n"),
    "my.long": array(ValueType.INT16, range(100)),
    "my.nan": f32(float("nan")),
}


def _file(folder: Path) -> GGUFHeader:
    path = folder / "model.gguf"
    path.write_bytes(gguf_bytes(METADATA, [("a.weight", (2, 3), F32), ("b", (5,), F32)]))
    return read_header(path)


def _carried_out(plan: EditPlan, folder: Path) -> bool:
    """Write what was accepted, and read it: all that was set must stand there, also where it fits in place."""
    write_copies(plan.files, [folder / "out.gguf"], force=True)
    found = read_header(folder / "out.gguf")
    fitting = fitted(plan.parts[0], plan.files[0]) if found.alignment == plan.parts[0].alignment else None
    for change in plan.changes:
        new = found.metadata.get(change.key)
        assert (new is None) == (change.new is None), change.key
        assert new is None or change.new is None or bytes(new.packed()) == bytes(change.new.packed()), change.key
    assert fitting is None or len(fitting) == plan.parts[0].data_offset
    assert {entry.name for entry in found.tensors} == {plan.renamed.get(name, name) for name in ("a.weight", "b")}
    return True


def _toml(folder: Path) -> Prepared:
    header = _file(folder)
    path = folder / "header.toml"

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return _carried_out(plan_edit([header], edits_of(header, *read_header_toml(path, header))), folder)

    texts = ["\n".join(header_toml(header, header.tensors, whole=whole)) for whole in (False, True)]
    edited = texts[0].replace("10000.0", "5e5").replace('= "b"', '= "c"').replace('"my.nan:f32"', '"my.new:[u8]"')
    return Prepared([text.encode() for text in (*texts, edited.replace("= nan", "= [1, 2]"))], read)


def _texts(folder: Path) -> Prepared:
    header = _file(folder)

    def read(data: bytes) -> bool:
        text = data.decode("utf-8", "surrogateescape")
        if "@" in text:  # another file
            return False
        return _carried_out(plan_edit([header], edits_of(header, [assignment(text, header)], (), {})), folder)

    seeds = ("general.name=a", "my.a:[u8]=[1, 2]", "my.b=-7", "llama.block_count=2", "my.c:str=", 'my.d=["a", "b"]')
    return Prepared([seed.encode() for seed in seeds], read)


WORDS = [
    b":u32",
    b":[str]",
    b":f32",
    b"= nan",
    b"{base64 = ",
    b"kept = ",
    b"digest = ",
    b"[metadata]",
    b"[tensors]",
    b"general.",
]
_PREPARE: tuple[tuple[str, str, Callable[[Path], Prepared]], ...] = (
    ("header-toml", "header as TOML", _toml),
    ("edit-value", "KEY:TYPE=VALUE", _texts),
)
TARGETS = tuple(
    Target(name=name, title=title, prepare=prepare, words=WORDS, longest=3000, executions=200_000)
    for name, title, prepare in _PREPARE
)
