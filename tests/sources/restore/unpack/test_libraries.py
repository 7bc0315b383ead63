"""Packed weights against the library that wrote them; without a library its test is skipped, but `test_formulas` is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.sources.restore import restore
from quant.encode import widen


def saved(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return restore(open_checkpoint(folder))


def equal(checkpoint: Checkpoint, name: str, wanted: torch.Tensor) -> None:
    """Every number is the library's, read whole and in part."""
    tensor = checkpoint.tensors[name]
    numbers = wanted.float().numpy()
    np.testing.assert_array_equal(tensor.array(), numbers)
    np.testing.assert_array_equal(tensor.flat(33, 777), numbers.reshape(-1)[33:777])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bitsandbytes_four_bits(tmp_path: Path, kind: str, nested: bool, dtype: torch.dtype) -> None:
    library = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(1)
    for storage in (torch.uint8, torch.bfloat16, torch.float32):
        weight = torch.randn(72, 200).to(dtype)
        codes, state = library.quantize_4bit(
            weight, blocksize=64, compress_statistics=nested, quant_type=kind, quant_storage=storage
        )
        parts = {f"a.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        found = saved(tmp_path, {"a.weight": codes, **parts}, config)
        equal(found, "a.weight", library.dequantize_4bit(codes, state))
        tensor = found.tensors["a.weight"]
        if dtype is not torch.float32:
            wanted = library.dequantize_4bit(codes, state).float().numpy().reshape(-1)
            np.testing.assert_array_equal(widen(tensor.raw(33, 777).view(np.uint16), tensor.stored), wanted[33:777])
            assert tensor.dtype == tensor.stored.name.upper() == {torch.float16: "F16"}.get(dtype, "BF16")


def test_bitsandbytes_eight_bits(tmp_path: Path) -> None:
    library = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(1)
    codes, scale, _ = library.int8_vectorwise_quant(torch.randn(48, 96).half())
    tensors = {"a.weight": codes, "a.SCB": scale, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = saved(tmp_path, tensors, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}})
    equal(found, "a.weight", library.int8_vectorwise_dequant(codes, scale))


MLX = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]


@pytest.mark.parametrize(("mode", "bits", "group"), [*MLX, ("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)])
def test_mlx(tmp_path: Path, mode: str, bits: int, group: int) -> None:
    mx = pytest.importorskip("mlx.core")
    mx.random.seed(1)
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        for shape in ((16, 256), (3, 8, 256)):
            weight = (mx.random.normal(shape) * 0.05).astype(dtype)
            parts = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
            tensors = dict(zip(("a.weight", "a.scales", "a.biases"), parts, strict=False))
            wide = [parts[0], *(part.astype(mx.float32) if mode == "affine" else part for part in parts[1:])]
            wanted = mx.dequantize(*wide, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
            mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors, {"format": "mlx"})
            stated = {"bits": bits, "group_size": group} | ({} if mode == "affine" else {"mode": mode})
            (tmp_path / "config.json").write_text(json.dumps({"quantization": stated}), "utf-8")
            found = restore(open_checkpoint(tmp_path))
            equal(found, "a.weight", torch.from_numpy(np.array(wanted)))


INTEGERS = [
    ("pack-quantized", {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy})
    for bits in (2, 3, 4, 5, 8)
    for symmetric in (True, False)
    for strategy in ({"strategy": "group", "group_size": 32}, {"strategy": "channel"})
]
INTEGERS += [
    ("int-quantized", {"num_bits": 8, "type": "int", "symmetric": symmetric, **strategy})
    for symmetric in (True, False)
    for strategy in ({"strategy": "group", "group_size": 64}, {"strategy": "channel"}, {"strategy": "tensor"})
]
FLOATS = [
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
    ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), [*INTEGERS, *FLOATS])
def test_compressed_tensors(tmp_path: Path, kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Equal to the library's numbers with scales widened to float32; rounded to its type, to what it gives by itself."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**options)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    torch.manual_seed(1)
    weight = torch.randn(64, 128) * 0.05
    groups = 128 // args.group_size if args.group_size else 1
    parts = weight.reshape(1, -1) if args.strategy == "tensor" else weight.reshape(64, groups, -1)
    whole = 2688 / weight.abs().max().reshape(1) if kind.startswith("nvfp4") else None
    extra = {} if whole is None else {"weight_global_scale": whole}
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args, global_scale=whole)
    state = {"weight": weight, "weight_scale": scale if "fp4" in kind else scale.to(dtype), **extra}
    state |= {} if args.symmetric else {"weight_zero_point": zero.to(torch.int8)}
    library = BaseCompressor.get_value_from_registry(kind)
    packed = library.compress(state, scheme)
    config = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"g": scheme.model_dump(mode="json")},
    }
    found = saved(tmp_path, {f"a.{key}": value for key, value in packed.items()}, {"quantization_config": config})
    assert list(found.tensors) == ["a.weight"]
    own = library.decompress(dict(packed), scheme)["weight"]
    rounded = torch.from_numpy(found.tensors["a.weight"].array()).to(own.dtype)
    assert torch.equal(rounded, own)
    if "fp4" not in kind:
        wide = {**packed, "weight_scale": packed["weight_scale"].float()}
        equal(found, "a.weight", library.decompress(wide, scheme)["weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "int4", "int4 asymmetric", "int8 per row"])
def test_torchao(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    library = pytest.importorskip("torchao.quantization")
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    group, row = library.PerGroup(32), library.PerAxis(0)
    four: Any = torch.__dict__["int4"]  # torch's stubs lack it
    configs = {
        "int8": library.Int8WeightOnlyConfig(version=2),
        "int4": library.IntxWeightOnlyConfig(weight_dtype=four, granularity=group, version=2),
        "int4 asymmetric": library.IntxWeightOnlyConfig(
            weight_dtype=four, granularity=group, mapping_type=library.MappingType.ASYMMETRIC, version=2
        ),
        "int8 per row": library.IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=row, version=2),
    }
    torch.manual_seed(1)
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(64, 48, bias=False)}).to(dtype)
    library.quantize_(network, configs[kind])
    tensors, metadata = flatten_tensor_state_dict(network.state_dict())
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "torchao"}}', "utf-8")
    found = restore(open_checkpoint(tmp_path))
    layer: Any = network["a"]
    own = layer.weight.dequantize()
    assert torch.equal(torch.from_numpy(found.tensors["a.weight"].array()).to(dtype), own)
    assert list(found.tensors) == ["a.weight"]


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    """All codes and exponents from 2^-20 to 2^20, as transformers unpacks them, transposed."""
    torch.manual_seed(1)
    blocks = torch.randint(0, 256, (3, 64, 2, 16), dtype=torch.uint8)
    scales = torch.randint(107, 148, (3, 64, 2), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    found = saved(tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": scales}, {})
    equal(found, name, convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    assert str(found.packings[0]) == "MXFP4, 4-bit floats, groups of 32"
