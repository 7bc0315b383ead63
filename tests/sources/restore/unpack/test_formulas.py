"""Packed weights against the documented formula, on layers packed by that formula; these need no other library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import InputError
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny import attention as tiny
from gguf_tools.families.tiny.attention import LLAMA
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from gguf_tools.sources.restore.unpack.whole import Recent
from gguf_tools.tensors.base import InMemory
from tests.oracle import convert, llama, nmse, reference
from tests.sources.restore.unpack import packers
from tests.sources.restore.unpack.packers import Array, Arrays

Pack = Callable[[np.random.Generator, int, int], tuple[Arrays, Array]]
GPTQ = {"quant_method": "gptq", "group_size": 32, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}


def packing(pack: Callable[..., Arrays], how: Mapping[str, Any] | None = None, **options: Any) -> Pack:
    """A packer of random layers of these `options`; `how` are the arguments of `pack`."""

    def made(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Arrays, Array]:
        layer = packers.layer(rng, outputs, inputs, **options)
        return pack(layer, **(how or {})), layer.expected

    return made


def compressed(bits: int, kind: str = "pack-quantized") -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int"}}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}


def cases() -> dict[str, tuple[Pack, dict[str, Any]]]:
    """Packer and quantization_config by the name of the case."""
    found: dict[str, tuple[Pack, dict[str, Any]]] = {}
    for bits in (2, 3, 4, 8):
        for first in (True, False):
            config = {**GPTQ, "bits": bits, "checkpoint_format": "gptq" if first else "gptq_v2"}
            pack = packing(packers.gptq, {"bits": bits, "first": first}, bits=bits, symmetric=False)
            found[f"GPTQ, {bits} bits, format {1 if first else 2}"] = (pack, config)
        ordered = packing(packers.gptq, {"bits": bits}, bits=bits, shuffled=True)
        found[f"GPTQ, {bits} bits, desc_act"] = (ordered, {**GPTQ, "bits": bits, "desc_act": True, "sym": True})
        plain = packing(packers.compressed, {"bits": bits}, bits=bits)
        found[f"compressed-tensors, {bits} bits"] = (plain, compressed(bits))
        for name, words in (("", packers.stream), (", words with gaps", packers.spaced)):
            how = {"bits": bits, "pack": words, "symmetric": False}
            both = packing(packers.compressed, how, bits=bits, symmetric=False)
            found[f"compressed-tensors, {bits} bits, asymmetric{name}"] = (both, compressed(bits))
    found["GPTQ without g_idx"] = (packing(packers.gptq, {"indexed": False}), {**GPTQ, "bits": 4})
    found["GPTQ, one group"] = (packing(packers.gptq, group=1 << 20), {**GPTQ, "bits": 4, "group_size": -1})
    found["AWQ, gemm"] = (packing(packers.awq, symmetric=False), {**AWQ, "version": "gemm"})
    found["AWQ, gemv"] = (packing(packers.awq_gemv, symmetric=False), {**AWQ, "version": "GEMV"})
    indexed = packing(packers.compressed, {"indexed": True}, shuffled=True)
    found["compressed-tensors, g_idx"] = (indexed, compressed(4))
    for symmetric in (True, False):
        for group in (1 << 20, 32):
            wide = {"bits": 8, "group": group, "scale": "f4" if group == 32 else "f2"}
            pack = packing(packers.int_quantized, {"symmetric": symmetric}, symmetric=symmetric, **wide)
            found[f"int-quantized, {symmetric}, {group}"] = (pack, compressed(8, "int-quantized"))
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_scale_times_integer(tmp_path: Path, name: str) -> None:
    pack, config = CASES[name]
    made = packers.checkpoint(tmp_path, pack, {"quantization_config": config})
    restored = restore(open_checkpoint(tmp_path))
    assert len(made.expected) == 21
    for tensor, expected in made.expected.items():
        found = restored.tensors[tensor]
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.array(), expected)
        np.testing.assert_array_equal(found.flat(37, 201), expected.reshape(-1)[37:201])
        assert found.flat(5, 5).size == 0
    (packed,) = restored.packings
    assert packed.tensors == 21
    assert packed.weights == sum(values.size for values in made.expected.values())
    assert packed.format == name.partition(",")[0].partition(" without")[0].replace(
        "int-quantized", "compressed-tensors"
    )
    assert restored.notes == (f"21 tensors are unpacked ({packed})",)
    assert restore(restored).tensors == restored.tensors


def test_a_state_dict_is_unpacked_too(tmp_path: Path) -> None:
    """As AutoGPTQ wrote it at first: a .bin, and the options in a file of its own."""
    pack, config = CASES["GPTQ, 4 bits, desc_act"]
    made = packers.checkpoint(tmp_path, pack, {})
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    options = {key: value for key, value in config.items() if key != "quant_method"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(options), "utf-8")
    restored = restore(open_checkpoint(tmp_path))
    for tensor, expected in made.expected.items():
        np.testing.assert_array_equal(restored.tensors[tensor].array(), expected)
    assert restored.packings[0].scheme == "4 bits, groups of 32 in the order of their activations, symmetric"


def test_biases_of_zeros_are_left_out(tmp_path: Path) -> None:
    """AutoGPTQ gives each layer a bias; Llama has none, and one that is not zero is not dropped."""

    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Arrays, Array]:
        made = packers.layer(rng, outputs, inputs)
        return {**packers.gptq(made), "bias": np.zeros(outputs, "f2")}, made.expected

    packers.checkpoint(tmp_path, pack, {"quantization_config": {**GPTQ, "bits": 4}})
    assert not any(name.endswith(".bias") for name in restore(open_checkpoint(tmp_path)).tensors)
    assert open_source(Request(source=tmp_path)).model.family == "llama"

    def biased(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Arrays, Array]:
        tensors, expected = pack(rng, outputs, inputs)
        return {**tensors, "bias": np.ones(outputs, "f2")}, expected

    packers.checkpoint(tmp_path, biased, {"quantization_config": {**GPTQ, "bits": 4}})
    assert sum(name.endswith(".bias") for name in restore(open_checkpoint(tmp_path)).tensors) == 21


@pytest.mark.parametrize("name", ["GPTQ, 4 bits, desc_act", "AWQ, gemm", "compressed-tensors, 3 bits"])
def test_llama_cpp_computes_with_these_numbers(tmp_path: Path, name: str) -> None:
    """The reference of the unpacked numbers, written out as a plain checkpoint, against the F32 file of the packed one."""
    pack, config = CASES[name]
    made = packers.checkpoint(tmp_path / "packed", pack, {"quantization_config": config})
    from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer

    plain = random_tensors(tiny.shapes(LLAMA["plain"]), 1)
    plain = {key: made.expected.get(key, values.astype("f2").astype("f4")) for key, values in plain.items()}
    write_checkpoint(tmp_path / "plain", {**tiny.BASE, **LLAMA["plain"].config}, plain)
    write_tiny_tokenizer(tmp_path / "plain", tiny.VOCAB)
    wanted = reference(load_model(tmp_path / "plain"))
    found, _ = llama(convert(tmp_path / "packed", tmp_path / "out.gguf", "f32"))
    assert nmse(found, wanted) <= 1e-9


def test_torchao_s_tensors_are_described_by_the_metadata(tmp_path: Path) -> None:
    made = packers.layer(np.random.default_rng(1), 48, 96, symmetric=False)
    packers.save(tmp_path / "model.safetensors", *packers.torchao(made))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "torchao"}}', "utf-8")
    restored = restore(open_checkpoint(tmp_path))
    np.testing.assert_array_equal(restored.tensors["a.weight"].array(), made.expected)
    assert str(restored.packings[0]) == "torchao, integers in 8 bits, groups of 32"


TORCHAO: dict[str, tuple[dict[str, object], str]] = {
    "another class": (
        {"_type": "Float8Tensor"},
        r"a\.weight is a Float8Tensor of torchao; expected Int8Tensor or Intx",
    ),
    "an attribute": ({"_data": {"block_size": [1, 32], "smooth": 1}}, r"a\.weight has the attribute smooth"),
    "a tensor": (
        {"_tensor_data_names": ["qdata", "scale", "act_pre_scale"]},
        r"a\.weight has the attribute act_pre_scale",
    ),
    "a block": ({"_data": {"block_size": [32]}}, r"block_size of a\.weight is \[32\]; expected two numbers"),
    "groups": ({"_data": {"block_size": [1, 64]}}, r"a\._weight_scale .* each block of 1 × 64 weights"),
    "nothing": ({"_data": 3}, r"the metadata do not say what a\.weight is"),
}


@pytest.mark.parametrize("name", TORCHAO)
def test_torchao_s_other_tensors(tmp_path: Path, name: str) -> None:
    changed, message = TORCHAO[name]
    made = packers.layer(np.random.default_rng(1), 48, 96, symmetric=False)
    packers.save(tmp_path / "model.safetensors", *packers.torchao(made, **changed))
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match=message):
        restore(open_checkpoint(tmp_path))


def test_matrices_that_are_read_whole_are_given_back() -> None:
    read: list[int] = []

    def reader(number: int) -> Callable[[], Array]:
        def load() -> Array:
            read.append(number)
            return np.full(100, number, np.uint8)

        return load

    recent, tensors = Recent(250), [InMemory(np.zeros(1, np.float32)) for _ in range(3)]
    for number in (0, 1, 0, 2, 0, 1):
        assert recent.get(tensors[number], "bytes", reader(number))[0] == number
    assert read == [0, 1, 2, 1]
