"""FP8 weights: every byte's value is torch's, and blocks, rows and tensors get their own scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_tools.errors import CheckpointError
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.formats.float8 import FLOAT8
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from tests.oracle import convert, llama, nmse, source_reference
from tests.random_model import named

E4M3 = torch.float8_e4m3fn


def folder_with(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """A folder with these tensors, whatever they are."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def restored(folder: Path, name: str = "w.weight") -> torch.Tensor:
    """A tensor as the families see it."""
    return torch.from_numpy(restore(open_checkpoint(folder)).tensors[name].array())


@pytest.mark.parametrize(("name", "dtype"), [("F8_E4M3", E4M3), ("F8_E5M2", torch.float8_e5m2)])
def test_every_byte(name: str, dtype: torch.dtype) -> None:
    wanted = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal(FLOAT8[name], wanted)


def widened(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Each weight times its block's scale, in float64, rounded once."""
    grown = scale.double()
    for axis, size in zip((-2, -1), block, strict=True):
        grown = grown.repeat_interleave(size, dim=axis)
    grown = grown[..., : weight.shape[-2], : weight.shape[-1]]
    return (weight.float().double() * grown).float()


@pytest.mark.parametrize("shape", [(200, 136), (128, 128), (3, 200, 136), (5, 7)])
@pytest.mark.parametrize("block", [None, (64, 32)])
def test_blocks(tmp_path: Path, shape: tuple[int, ...], block: tuple[int, int] | None) -> None:
    size = block or (128, 128)
    counts = (*shape[:-2], *(-(-n // b) for n, b in zip(shape[-2:], size, strict=True)))
    weight, scale = torch.randn(shape).to(E4M3), torch.rand(counts) + 0.1
    stated = {"quantization_config": {"quant_method": "fp8", "weight_block_size": list(block)}} if block else {}
    folder = folder_with(tmp_path, {"w.weight": weight, "w.weight_scale_inv": scale}, **stated)
    found = restored(folder)
    assert torch.equal(found, widened(weight, scale, size))
    tensor = restore(open_checkpoint(folder)).tensors["w.weight"]
    flat = found.reshape(-1).numpy()
    for start, stop in ((0, 1), (shape[-1] - 1, shape[-1] + 3), (3, len(flat) - 2), (5, 5)):
        assert np.array_equal(tensor.flat(start, stop), flat[start:stop])
    assert tensor.sources == ("w.weight", "w.weight_scale_inv")


@pytest.mark.parametrize(
    ("scale", "sizes"), [((), (200, 136)), ((1,), (200, 136)), ((200, 1), (1, 136)), ((200,), (1, 136))]
)
def test_rows_and_whole_tensors(tmp_path: Path, scale: tuple[int, ...], sizes: tuple[int, int]) -> None:
    weight, factor = torch.randn(200, 136).to(E4M3), torch.rand(scale) + 0.1
    extra = {"w.input_scale": torch.ones(()), "norm.weight": torch.ones(4)}
    folder = folder_with(tmp_path, {"w.weight": weight, "w.weight_scale": factor, **extra})
    grid = factor.reshape(-1, 1)
    assert torch.equal(restored(folder), widened(weight, grid, sizes))
    assert set(restore(open_checkpoint(folder)).tensors) == {"w.weight", "norm.weight"}


def test_an_expert_each_its_scale(tmp_path: Path) -> None:
    weight, factor = torch.randn(3, 8, 4).to(E4M3), torch.rand(3) + 0.1
    folder = folder_with(tmp_path, {"w.weight": weight, "w.weight_scale": factor})
    assert torch.equal(restored(folder), widened(weight, factor[:, None, None], (8, 4)))


def test_without_scales_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    weight = torch.randn(8, 4).to(E4M3)
    folder = folder_with(tmp_path, {"w.weight": weight})
    assert torch.equal(restored(folder), weight.float())
    assert restore(open_checkpoint(folder)).notes == ("1 FP8 tensors are read as floats (they have no scales)",)


def test_a_missing_scale(tmp_path: Path) -> None:
    weight = torch.randn(8, 4).to(E4M3)
    folder = folder_with(tmp_path, {"a.weight": weight, "a.weight_scale": torch.ones(1), "b.weight": weight.clone()})
    with pytest.raises(
        CheckpointError,
        match=r"tensor b\.weight is FP8, but its scale \(b\.weight_scale_inv or b\.weight_scale\) is missing",
    ):
        restore(open_checkpoint(folder))


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 2, 2)])
def test_a_scale_that_does_not_fit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {"w.weight": torch.randn(200, 136).to(E4M3), "w.weight_scale_inv": torch.ones(shape)}
    with pytest.raises(CheckpointError, match=r"w\.weight_scale_inv has shape .* does not fit w\.weight .* 128×128"):
        restore(open_checkpoint(folder_with(tmp_path, tensors)))


def test_a_block_size_that_is_none(tmp_path: Path) -> None:
    tensors = {"w.weight": torch.randn(8, 4).to(E4M3), "w.weight_scale_inv": torch.ones(1, 1)}
    folder = folder_with(tmp_path, tensors, quantization_config={"weight_block_size": [128]})
    with pytest.raises(CheckpointError, match=r"weight_block_size is \[128\]; expected two positive integers"):
        restore(open_checkpoint(folder))


def test_a_model_with_fp8_weights(tmp_path: Path) -> None:
    source = tmp_path / "qwen3"
    field_tiny.write(source, field_tiny.QWEN3["plain"], 1)
    plain, narrow = dict(load_file(source / "model.safetensors")), {}
    for name, tensor in list(plain.items()):
        if "_proj" in name:
            scale = torch.full([-(-n // 32) for n in tensor.shape], tensor.abs().max().item() / 448)
            narrow[name] = (tensor / scale[0, 0]).to(E4M3)
            narrow[f"{name}_scale_inv"] = scale
            plain[name] = widened(narrow[name], scale, (32, 32))
        else:
            narrow[name] = tensor
    for folder, tensors in ((source, plain), (tmp_path / "fp8", narrow)):
        config = json.loads((source / "config.json").read_text("utf-8"))
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
        folder_with(folder, tensors, **config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "fp8" / name).write_bytes((source / name).read_bytes())
    wanted, found = load_model(source), load_model(tmp_path / "fp8")
    assert found.spec == wanted.spec
    weights = named(found)
    for role, weight in named(wanted).items():
        assert np.array_equal(weights[role].array(), weight.array()), role
    out = convert(tmp_path / "fp8", tmp_path / "out.gguf")
    assert nmse(llama(out)[0], source_reference(tmp_path / "fp8")) <= 1e-9
