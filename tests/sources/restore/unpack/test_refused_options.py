"""Options of quantizers are a closed world, and tensors that do not fit together are named: nothing is read by guessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from tests.sources.restore.unpack import packers
from tests.sources.restore.unpack.packers import Arrays

RNG = np.random.default_rng(3)
PLAIN = packers.layer(RNG, 32, 64)
MIXED = packers.layer(RNG, 32, 64, symmetric=False)
STATE: dict[str, object] = {"blocksize": 64, "dtype": "float16", "shape": [32, 64]}


def four_bit(state: object) -> Arrays:
    text = state if isinstance(state, bytes) else json.dumps(state).encode()
    return {
        "weight": np.zeros((1024, 1), "u1"),
        "weight.absmax": np.ones(32, "f4"),
        "weight.quant_map": np.arange(16, dtype="f4"),
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8),
    }


def mlx() -> Arrays:
    scales = np.ones((32, 2), "f2")
    return {"weight": packers.rows(PLAIN.codes, 4, "u4"), "scales": scales, "biases": scales}


def experts() -> Arrays:
    return {"up_proj_blocks": np.zeros((2, 8, 2, 16), "u1"), "up_proj_scales": np.zeros((2, 8, 2), "u1")}


def quantized(method: str, **options: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **options}}


GPTQ = quantized("gptq", bits=4, group_size=32)
AWQ = quantized("awq", bits=4, group_size=32, version="gemm")
CT = quantized("compressed-tensors", format="pack-quantized")
MLX = {"quantization": {"bits": 4, "group_size": 32}}
BNB = quantized("bitsandbytes", load_in_4bit=True)


def groups(**weights: Any) -> dict[str, Any]:
    return quantized("compressed-tensors", config_groups={"g": {"targets": ["Linear"], "weights": weights}})


UNKNOWN: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "GPTQ": (
        packers.gptq(PLAIN),
        quantized("gptq", bits=4, rotation="hadamard"),
        "option rotation, whose meaning for GPTQ",
    ),
    "marlin": (
        packers.gptq(PLAIN),
        quantized("gptq", bits=4, checkpoint_format="marlin"),
        "'marlin'; expected gptq or gptq_v2",
    ),
    "marlin, old": (packers.gptq(PLAIN), quantized("gptq", bits=4, is_marlin_format=True), "is_marlin_format is True"),
    "words": (
        packers.gptq(PLAIN),
        quantized("gptq", bits=4, pack_dtype="int16"),
        "pack_dtype is 'int16'; expected int32",
    ),
    "bits": (packers.gptq(PLAIN, indexed=False), quantized("gptq", bits=5), "bits is 5; expected 2 or 3 or 4 or 8"),
    "AWQ": (packers.awq(PLAIN), quantized("awq", bits=4, zeros="float"), "option zeros, whose meaning for AWQ"),
    "AWQ, 8 bits": (packers.awq(PLAIN), quantized("awq", bits=8), "bits is 8; expected 4"),
    "AWQ, version": (
        packers.awq(PLAIN),
        quantized("awq", bits=4, version="gemv_fast"),
        "'gemv_fast'; expected gemm or gemv",
    ),
    "compressed": (packers.compressed(PLAIN), quantized("compressed-tensors", padding=1), "option padding"),
    "a transform": (
        packers.compressed(PLAIN),
        quantized("compressed-tensors", transform_config={"config_groups": {"R1": {}}}),
        "transform_config is not supported",
    ),
    "sparse": (
        packers.compressed(PLAIN),
        quantized("compressed-tensors", sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config is not supported",
    ),
    "a format": (
        packers.compressed(PLAIN),
        quantized("compressed-tensors", format="marlin-24"),
        "format is 'marlin-24'; expected pack-quantized or",
    ),
    "a group's option": (
        packers.compressed(PLAIN),
        groups(num_bits=4, codebook="x"),
        "config_groups.g.weights has .* codebook",
    ),
    "MLX": (mlx(), {"quantization": {"bits": 4, "group_size": 32, "awq": 1}}, "option awq, whose meaning"),
    "MLX, a layer": (mlx(), {"quantization": {"bits": 4, "group_size": 32, "a": {"clip": 1}}}, "a has the option clip"),
    "MLX, mode": (
        mlx(),
        {"quantization": {"bits": 4, "group_size": 32, "mode": "odd"}},
        "mode of a is 'odd'; expected one of",
    ),
    "MLX, a list for a mode": (
        mlx(),
        {"quantization": {"bits": 4, "group_size": 32, "mode": ["affine"]}},
        "mode of a is",
    ),
    "MLX, bits": (mlx(), {"quantization": {"bits": 7, "group_size": 32}}, "a has 7 bits in groups of 32"),
    "bitsandbytes": (four_bit(STATE), quantized("bitsandbytes", bnb_5bit=True), "option bnb_5bit"),
    "a state": (four_bit({**STATE, "rank": 4}), BNB, "has the key rank, whose meaning"),
    "column order": (
        {"weight": np.zeros((8, 4), "i1"), "SCB": np.ones(8, "f4"), "weight_format": np.array(1, "u1")},
        quantized("bitsandbytes", load_in_8bit=True),
        "a.weight_format says that the weight is not in rows",
    ),
    "MXFP4": (experts(), quantized("mxfp4", swizzled=True), "option swizzled"),
}


def opened(folder: Path, tensors: Arrays, config: dict[str, Any]) -> Any:
    packers.save(folder / "model.safetensors", {f"a.{name}": values for name, values in tensors.items()})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return restore(open_checkpoint(folder))


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_option_whose_meaning_is_not_known(tmp_path: Path, name: str) -> None:
    tensors, config, message = UNKNOWN[name]
    with pytest.raises(UnsupportedError, match=message) as error:
        opened(tmp_path, tensors, config)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def without(tensors: Arrays, name: str) -> Arrays:
    return {key: values for key, values in tensors.items() if key != name}


def with_(tensors: Arrays, **changed: Any) -> Arrays:
    return {**tensors, **changed}


BROKEN: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "no scales": (without(packers.gptq(PLAIN), "scales"), GPTQ, "a.scales is missing beside a.qweight"),
    "other scales": (
        with_(packers.gptq(PLAIN), scales=np.ones((2, 31), "f2")),
        GPTQ,
        r"a.scales .* shape \(groups, 32\)",
    ),
    "words of another size": (
        with_(packers.gptq(PLAIN), qweight=np.zeros((7, 32), "i4")),
        GPTQ,
        "a.qweight is I32 of shape",
    ),
    "zeros": (with_(packers.gptq(PLAIN), qzeros=np.zeros((2, 3), "i4")), GPTQ, r"a.qzeros .* \(2, 4\)"),
    "other bits": (packers.gptq(PLAIN), quantized("gptq", bits=8), "bits is 8, but the tensors of a have 4"),
    "another group size": (
        packers.gptq(PLAIN),
        quantized("gptq", bits=4, group_size=16),
        "group_size is 16, but .* have 32",
    ),
    "AWQ, scales": (with_(packers.awq(PLAIN), scales=np.ones((2, 31), "f2")), AWQ, "a.scales"),
    "AWQ, group size": (
        packers.awq(PLAIN),
        quantized("awq", bits=4, group_size=64),
        "group_size is 64, but .* have 32",
    ),
    "gemv without a size": (packers.awq_gemv(PLAIN), quantized("awq", bits=4, version="gemv"), "group_size is None"),
    "no shape": (without(packers.compressed(PLAIN), "weight_shape"), CT, "a.weight_shape is missing"),
    "another shape": (
        with_(packers.compressed(PLAIN), weight_shape=np.array([32, 80], "i8")),
        CT,
        "rows of words for 80 integers of 4 or 8 bits",
    ),
    "a shape that is none": (
        with_(packers.compressed(PLAIN), weight_shape=np.array([-32, 64], "i8")),
        CT,
        r"a.weight_shape is \(-32, 64\), which does not fit",
    ),
    "scales between": (with_(packers.compressed(PLAIN), weight_scale=np.ones((32, 5), "f2")), CT, "a.weight_scale"),
    "MLX without biases": (without(mlx(), "biases"), MLX, "a.biases is missing"),
    "MLX without options": (mlx(), {}, "has no object `quantization`, which says how a is packed"),
    "MLX, group size": (mlx(), {"quantization": {"bits": 4, "group_size": 64}}, "a.weight .* with 128 inputs"),
    "a state that is none": (four_bit(b"{"), BNB, "is not JSON"),
    "a list for a state": (four_bit([1]), BNB, "is not a JSON object"),
    "a type that is a list": (four_bit({**STATE, "dtype": ["float16"]}), BNB, r"dtype \['float16'\]; expected"),
    "a huge shape": (four_bit({**STATE, "shape": [1 << 30, 1 << 30]}), BNB, "expected the sizes of a weight"),
    "another shape for a state": (
        four_bit({**STATE, "shape": [32, 65]}),
        BNB,
        "a.weight .* 1040 bytes for 2080 weights",
    ),
    "no maxima": (without(four_bit(STATE), "weight.absmax"), BNB, "a.weight.absmax is missing"),
    "nested maxima": (with_(four_bit(STATE), **{"weight.absmax": np.zeros(32, "u1")}), BNB, "nested_absmax is missing"),
    "exponents": (with_(experts(), up_proj_scales=np.zeros((2, 8, 3), "u1")), quantized("mxfp4"), "a.up_proj_scales"),
    "twice": (with_(packers.gptq(PLAIN), weight=np.zeros((32, 64), "f2")), GPTQ, "a.weight beside its packed form"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_do_not_fit_together(tmp_path: Path, name: str) -> None:
    tensors, config, message = BROKEN[name]
    with pytest.raises(CheckpointError, match=message) as error:
        opened(tmp_path, tensors, config)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_zero_point_that_programs_read_differently(tmp_path: Path) -> None:
    """GPTQ's first format stores zero - 1: of a stored 15 some programs make 16 and others 0."""
    made = packers.Layer(codes=PLAIN.codes, scales=PLAIN.scales, zeros=np.full((32, 2), 16), index=PLAIN.index)
    tensor = opened(tmp_path, packers.gptq(made), GPTQ).tensors["a.weight"]
    with pytest.raises(InputError, match=r"a\.qzeros holds the zero point 15 in GPTQ's first format"):
        tensor.array()
    second = packers.gptq(
        packers.Layer(codes=made.codes, scales=made.scales, zeros=made.zeros - 1, index=made.index), first=False
    )
    found = opened(tmp_path, second, quantized("gptq", bits=4, format="gptq_v2")).tensors["a.weight"]
    assert np.isfinite(found.array()).all()


@pytest.mark.parametrize(
    ("pack", "name", "config"), [(packers.gptq, "g_idx", GPTQ), (packers.compressed, "weight_g_idx", CT)]
)
def test_a_group_that_is_none(tmp_path: Path, pack: Callable[..., Arrays], name: str, config: dict[str, Any]) -> None:
    """The groups of the inputs are read with the first weights, since they are as many as a small matrix."""
    index = np.array([0] * 60 + [1, 1, 2, 1], "i4")
    tensor = opened(tmp_path, {**pack(PLAIN), name: index}, config).tensors["a.weight"]
    with pytest.raises(CheckpointError, match=rf"tensor a\.{name} names group 2; expected 0 to 1; download"):
        tensor.array()


CHECKS: list[Callable[[], tuple[Arrays, dict[str, Any]]]] = [
    lambda: (packers.gptq(MIXED), GPTQ),
    lambda: (packers.awq(MIXED), AWQ),
    lambda: (packers.compressed(MIXED, symmetric=False), CT),
    lambda: (mlx(), MLX),
    lambda: (four_bit(STATE), BNB),
    lambda: (experts(), quantized("mxfp4")),
]


@pytest.mark.parametrize("at", range(len(CHECKS)))
def test_the_cases_above_are_read_without_their_fault(tmp_path: Path, at: int) -> None:
    assert opened(tmp_path, *CHECKS[at]()).packings
