"""Files that llama.cpp converted and quantized verify as identical."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools.verification.run import Verification, verify
from tests.verification.theirs import write_theirs

Sources = Callable[[str], Path]
Quantized = Callable[..., Path]
KINDS = ("llama", "qwen3", "qwen2moe")


def complaints(found: Verification) -> list[tuple[str, str, str]]:
    """What is not identical."""
    tensors = [
        (tensor.name, tensor.verdict, tensor.detail) for tensor in found.tensors if tensor.verdict != "identical"
    ]
    return tensors + [(e.key, e.found, e.expected) for e in found.metadata if e.verdict == "different"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_converted(kind: str, dtype: str, sources: Sources, tmp_path: Path) -> None:
    file = write_theirs(sources(kind), kind, tmp_path / "file.gguf", dtype)
    found = verify(file, sources(kind), threads=1)
    assert complaints(found) == []
    assert found.count("identical") == len(found.tensors) > 20
    assert {entry.verdict for entry in found.metadata} <= {"identical", "unknown"}
    known = {entry.key for entry in found.metadata if entry.verdict == "identical"}
    # The vocabulary's size, which the converter leaves out for some, is known from the file's tensors.
    keys = (f"{kind}.rope.freq_base", f"{kind}.attention.head_count", f"{kind}.vocab_size", "tokenizer.chat_template")
    assert set(keys) <= known


@pytest.mark.parametrize(
    ("kind", "type_name"),
    [
        *(
            ("llama", name)
            for name in ("q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "q3_k_l", "q2_k")
        ),
        *(("qwen3", name) for name in ("f16", "q4_k_m")),
        *(("qwen2moe", name) for name in ("bf16", "q8_0", "q4_k_m")),
    ],
)
def test_quantized(kind: str, type_name: str, sources: Sources, quantized: Quantized) -> None:
    found = verify(quantized(kind, type_name), sources(kind), threads=1)
    assert complaints(found) == []


@pytest.mark.parametrize("by_way_of", ["f16", "q8_0"])
def test_quantized_from_a_narrower_file(by_way_of: str, sources: Sources, tmp_path: Path) -> None:
    """The intermediate type's rounding is found out; the same bytes as from the source itself would be a coincidence."""
    from quant.recipes import recipe
    from tests.quant.quant_oracle import llama

    plain = write_theirs(sources("llama"), "llama", tmp_path / "plain.gguf", by_way_of)
    file = tmp_path / "file.gguf"
    llama().quantize(plain, file, recipe("q4_k_m").file_type, allow_requantize=True)
    found = verify(file, sources("llama"), threads=1)
    assert complaints(found) == []
    ways = {tensor.way for tensor in found.tensors if tensor.type == "q4_K"}
    # Weights of BF16 within F16's range lose nothing there.
    assert ways == ({"via q8_0"} if by_way_of == "q8_0" else {""})


@pytest.mark.parametrize(("kind", "type_name"), [("llama", "q4_k_m"), ("llama", "q5_0"), ("qwen2moe", "q3_k_m")])
def test_with_an_importance_matrix(
    kind: str, type_name: str, sources: Sources, quantized: Quantized, importance: Callable[[str], Path]
) -> None:
    file = quantized(kind, type_name, with_importance=True)
    found = verify(file, sources(kind), imatrix=importance(kind), threads=1)
    assert complaints(found) == []
    assert any(tensor.way == "with the importance matrix" for tensor in found.tensors)


@pytest.mark.parametrize(
    ("kind", "type_name"),
    [
        *(("llama", name) for name in ("q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "q3_k_l", "q2_k")),
        ("qwen2moe", "q4_k_m"),
    ],
)
def test_with_an_importance_matrix_that_is_not_known(
    kind: str, type_name: str, sources: Sources, quantized: Quantized
) -> None:
    found = verify(quantized(kind, type_name, with_importance=True), sources(kind), threads=1)
    assert found.differing == ()
    assert found.count("unknown") == 0
    consistent = [tensor for tensor in found.tensors if tensor.verdict == "consistent"]
    assert len(consistent) > 8
    assert all(tensor.error and tensor.expected_error and tensor.differing for tensor in consistent)


def test_in_parts(sources: Sources, tmp_path: Path) -> None:
    write_theirs(sources("qwen3"), "qwen3", tmp_path / "file.gguf", split=9)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    assert complaints(verify(parts[1], sources("qwen3"), threads=2)) == []
