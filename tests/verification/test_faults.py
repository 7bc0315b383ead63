"""What is wrong with a file is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.verification.run import Verification, verify
from quant.types import TensorType
from tests.verification.changing import Bytes, change_tensor, exchange
from tests.verification.theirs import TEMPLATE, VOCAB, as_arrays, tensors_of, write_theirs

Sources = Callable[[str], Path]
Quantized = Callable[..., Path]
TYPES = ("q8_0", "q6_k", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "q3_k_l", "q2_k")
DOWN = "blk.1.ffn_down.weight"


def checked(file: Path, source: Path) -> Verification:
    return verify(file, source, threads=1)


def details(found: Verification) -> dict[str, str]:
    """What is said of each tensor that differs."""
    return {tensor.name: tensor.detail for tensor in found.tensors if tensor.verdict == "different"}


LEVELS = {"q6_K": 20, "q2_K": 20, "q3_K": 40, "q4_K": 60, "q5_K": 60}
"""A byte of the blocks that holds levels and no scales."""


def flip_level(bit: int) -> Callable[[Bytes, TensorType], None]:
    """Flips one bit of a byte that holds the levels of weights in the seventh block."""

    def change(blocks: Bytes, dtype: TensorType) -> None:
        blocks[6, LEVELS.get(dtype.name, 12)] ^= 1 << bit

    return change


def flip_scale(bit: int) -> Callable[[Bytes, TensorType], None]:
    """Flips one bit of the low byte (0 to 7) or the high byte (8 to 15) of the seventh block's scale."""

    def change(blocks: Bytes, dtype: TensorType) -> None:
        blocks[6, dtype.scales[0] + bit // 8] ^= 1 << bit % 8

    return change


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("where", ["weight", "scale"])
def test_one_bit(where: str, type_name: str, sources: Sources, quantized: Quantized, tmp_path: Path) -> None:
    """The lowest bit of a scale, or a bit of a weight, where all else is as expected."""
    file = Path(shutil.copy(quantized("llama", type_name), tmp_path / "file.gguf"))
    change_tensor(file, DOWN, flip_scale(0) if where == "scale" else flip_level(0))
    found = checked(file, sources("llama"))
    assert found.differing == (DOWN,)
    wrong = next(tensor for tensor in found.tensors if tensor.name == DOWN)
    assert wrong.differing == 1
    assert wrong.blocks >= 256
    assert wrong.error != wrong.expected_error


@pytest.mark.parametrize("type_name", TYPES[1:])
@pytest.mark.parametrize("where", ["weight", "scale"])
def test_one_bit_beside_an_unknown_importance_matrix(
    where: str, type_name: str, sources: Sources, quantized: Quantized, tmp_path: Path
) -> None:
    """The bytes are not known here, yet a weight some levels off, or a scale twice or half as large, no matrix gives."""
    file = Path(shutil.copy(quantized("llama", type_name, with_importance=True), tmp_path / "file.gguf"))
    change_tensor(file, DOWN, flip_scale(10) if where == "scale" else flip_level(3))
    found = checked(file, sources("llama"))
    assert found.differing == (DOWN,)
    assert "block 6" in details(found)[DOWN]


def test_the_error_says_how_much(sources: Sources, quantized: Quantized, tmp_path: Path) -> None:
    file = Path(shutil.copy(quantized("llama", "f16"), tmp_path / "file.gguf"))

    def double(blocks: Bytes, _: TensorType) -> None:
        values = blocks.view(np.float16)
        values[:] = values * 2

    change_tensor(file, DOWN, double)
    wrong = checked(file, sources("llama")).worst_first[0]
    assert wrong.name == DOWN
    assert wrong.error == pytest.approx(1.0, rel=1e-3)
    assert wrong.expected_error is not None
    assert wrong.expected_error < 1e-6


@pytest.mark.parametrize("type_name", ["bf16", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("with_importance", [False, True])
def test_exchanged_experts(
    with_importance: bool, type_name: str, sources: Sources, quantized: Quantized, tmp_path: Path
) -> None:
    name = "blk.1.ffn_up_exps.weight"
    given = quantized("qwen2moe", type_name, with_importance=with_importance)
    file = Path(shutil.copy(given, tmp_path / "file.gguf"))

    def swap(blocks: Bytes, _: TensorType) -> None:
        experts = blocks.reshape(4, -1)
        experts[[1, 3]] = experts[[3, 1]]

    change_tensor(file, name, swap)
    found = checked(file, sources("qwen2moe"))
    assert found.differing == (name,)
    assert "experts swapped: 1 holds 3, 3 holds 1" in details(found)[name]
    wrong = next(tensor for tensor in found.tensors if tensor.name == name)
    if not with_importance:
        assert wrong.matrices == (1, 3)
        assert wrong.error == pytest.approx(2**0.5, rel=0.05)


@pytest.mark.parametrize("type_name", ["f16", "q8_0", "q4_k_m"])
def test_exchanged_layers(type_name: str, sources: Sources, quantized: Quantized, tmp_path: Path) -> None:
    file = Path(shutil.copy(quantized("llama", type_name), tmp_path / "file.gguf"))
    rest = ("attn_norm", "attn_q", "attn_k", "attn_output", "ffn_norm", "ffn_gate", "ffn_up")
    for part in rest:
        exchange(file, f"blk.0.{part}.weight", f"blk.1.{part}.weight")
    found = checked(file, sources("llama"))
    assert set(found.differing) == {f"blk.{n}.{part}.weight" for n in (0, 1) for part in rest}
    for part in rest:
        assert f"holds the source's blk.1.{part}.weight" in details(found)[f"blk.0.{part}.weight"]


@pytest.mark.parametrize("type_name", ["f16", *TYPES])
@pytest.mark.parametrize("with_importance", [False, True])
def test_a_perturbed_layer(
    with_importance: bool,
    type_name: str,
    sources: Sources,
    importance: Callable[[str], Path],
    quantized: Quantized,
    tmp_path: Path,
) -> None:
    """Noise of 1 % of the weights' deviation in one tensor before quantization, with an importance matrix that is not known."""
    from quant.recipes import recipe
    from tests.quant.quant_oracle import llama

    weights = tensors_of(sources("llama"), "llama")[DOWN]
    noise = np.random.default_rng(3).standard_normal(weights.shape) * 0.01 * weights.std()
    plain = write_theirs(
        sources("llama"), "llama", tmp_path / "plain.gguf", "f32", {DOWN: (weights + noise).astype(np.float32)}
    )
    given = {}
    if with_importance:
        given = {"imatrix": str(as_arrays(importance("llama"), tmp_path))}
    llama().quantize(plain, tmp_path / "file.gguf", recipe(type_name).file_type, **given)
    found = checked(tmp_path / "file.gguf", sources("llama"))
    assert found.differing == (DOWN,)


def test_tensors_that_are_missing_or_added(sources: Sources, tmp_path: Path) -> None:
    extra = np.ones((4, 256), np.float32)
    file = write_theirs(sources("qwen3"), "qwen3", tmp_path / "file.gguf", change={"blk.0.attn_sinks.weight": extra})
    found = checked(file, sources("qwen3"))
    unknown = [tensor for tensor in found.tensors if tensor.verdict == "unknown"]
    assert [tensor.name for tensor in unknown] == ["blk.0.attn_sinks.weight"]
    assert found.differing == ()
    # A head of another shape, and an output that the source ties to its embedding but that is not the embedding.
    change = {"output.weight": extra, "blk.0.attn_q_norm.weight": np.ones(128, np.float32)}
    file = write_theirs(sources("qwen3"), "qwen3", tmp_path / "other.gguf", change=change)
    assert set(checked(file, sources("qwen3")).differing) == set(change)


def test_a_tied_output_may_be_written_out(sources: Sources, tmp_path: Path) -> None:
    embedding = tensors_of(sources("qwen3"), "qwen3")["token_embd.weight"]
    file = write_theirs(sources("qwen3"), "qwen3", tmp_path / "file.gguf", change={"output.weight": embedding})
    found = checked(file, sources("qwen3"))
    assert found.differing == ()
    assert next(tensor for tensor in found.tensors if tensor.name == "output.weight").verdict == "identical"


@pytest.mark.parametrize(
    ("change", "key", "values"),
    [
        ({"rope_theta": 20000.0}, "llama.rope.freq_base", ("20000", "10000")),
        ({"template": TEMPLATE.replace("m.role", "'x'")}, "tokenizer.chat_template", ("{{ 'x' }}", "{{ m.role }}")),
        ({"eos": 7}, "tokenizer.ggml.eos_token_id", ("7", "265")),
        ({"tokens": ["x", *map(str, range(1, VOCAB))]}, "tokenizer.ggml.tokens", ("item 0: x", "item 0: !")),
    ],
)
def test_metadata(
    change: dict[str, object], key: str, values: tuple[str, str], sources: Sources, tmp_path: Path
) -> None:
    file = write_theirs(sources("llama"), "llama", tmp_path / "file.gguf", change=change)
    found = checked(file, sources("llama"))
    assert found.differing == (key,)
    entry = next(entry for entry in found.metadata if entry.key == key)
    assert values[0] in entry.found
    assert values[1] in entry.expected


def test_a_type_that_is_only_read(sources: Sources, tmp_path: Path) -> None:
    """mxfp4 from the gguf package: the error is measured, and the verdict left open unless the weights are unrelated."""
    import gguf

    weights = tensors_of(sources("llama"), "llama")[DOWN]
    for factor, verdict in ((1, "unknown"), (-1, "different")):
        data = gguf.quants.quantize(factor * weights, gguf.GGMLQuantizationType.MXFP4)
        file = tmp_path / f"{verdict}.gguf"
        _write_as(sources("llama"), file, data)
        wrong = next(tensor for tensor in checked(file, sources("llama")).tensors if tensor.name == DOWN)
        assert wrong.verdict == verdict
        assert wrong.error == pytest.approx(0.12 if factor == 1 else 2.0, rel=0.2)


def _write_as(source: Path, out: Path, data: Bytes) -> None:
    """The file with one tensor in MXFP4."""
    import gguf

    from tests.verification import theirs

    original = theirs._add

    def add(writer: gguf.GGUFWriter, name: str, values: theirs.Array, dtype: str) -> None:
        if name == DOWN:
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            original(writer, name, values, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "_add", add)
        write_theirs(source, "llama", out)
