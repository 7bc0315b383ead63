"""Packed checkpoints of families with joined, stacked and reordered matrices give the tensors of the same checkpoint unpacked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.families.registry import family_named, load_model
from gguf_tools.families.tiny import attention as tiny
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.sources.checkpoint import open_checkpoint
from tests.random_model import named
from tests.sources.restore.unpack import packers
from tests.sources.restore.unpack.packers import Array, Arrays

COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def same(plain: Path, packed: Path) -> None:
    """Every tensor of the model, by its role."""
    wanted, found = named(load_model(plain)), named(load_model(packed))
    assert wanted.keys() == found.keys()
    for role, tensor in wanted.items():
        np.testing.assert_array_equal(found[role].array(), tensor.array(), err_msg=role)


@pytest.mark.parametrize("family", ["phi3", "qwen3-next", "glm4", "olmoe"])
def test_matrices_of_other_layouts(tmp_path: Path, family: str) -> None:
    """Joined q, k and v, or gate and up, split apart; interleaved projections; experts stacked."""
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    made = family_named(family)
    assert made.tiny
    made.tiny(plain, next(iter(made.variants)), 1)
    opened = open_checkpoint(plain)
    rng = np.random.default_rng(1)
    numbers: Arrays = {}
    stored: Arrays = {}
    for name, tensor in opened.tensors.items():
        if ".layers." in name and len(tensor.shape) == 2 and name.endswith("proj.weight") and tensor.columns % 32 == 0:
            layer = packers.layer(rng, *tensor.shape)
            numbers[name] = layer.expected
            stem = name.removesuffix(".weight")
            stored |= {f"{stem}.{part}": values for part, values in packers.compressed(layer).items()}
        else:
            stored[name] = tensor.array().astype("f4")
            numbers[name] = stored[name]
    write_checkpoint(plain, dict(opened.config), numbers)
    packed.mkdir()
    packers.save(packed / "model.safetensors", stored)
    (packed / "config.json").write_text(json.dumps({**opened.config, "quantization_config": COMPRESSED}), "utf-8")
    same(plain, packed)


def test_mlx_stacks_experts_and_packs_the_embedding(tmp_path: Path) -> None:
    """As mlx-lm saves a Qwen3-MoE of 4 bits: every matrix, the stacks of experts, the embedding and the output."""
    rng = np.random.default_rng(1)
    variant = tiny.QWEN3_MOE["plain"]
    plain: Arrays = {}
    stored: Arrays = {}
    stacks: dict[tuple[str, str], tuple[int, tuple[int, ...]]] = {}

    def pack(stem: str, *shape: int) -> Array:
        """Stores a random matrix, or a stack of them, and returns its numbers."""
        layer = packers.layer(rng, int(np.prod(shape[:-1])), shape[-1])
        biases = rng.normal(0, 0.1, layer.scales.shape).astype("f2")
        parts = {"weight": packers.rows(layer.codes, 4, "u4"), "scales": layer.scales, "biases": biases}
        for last, values in parts.items():
            stored[f"{stem}.{last}"] = values.reshape(*shape[:-1], -1)
        products = layer.codes * layer.scales.astype("f4")[:, layer.index]
        return np.asarray((products + biases.astype("f4")[:, layer.index]).reshape(shape), np.float32)

    for name, values in random_tensors(tiny.shapes(variant), 1).items():
        stem = name.removesuffix(".weight")
        if ".mlp.experts." in name:
            prefix, _, rest = stem.partition(".experts.")
            number, _, projection = rest.partition(".")
            stacks[prefix, projection] = int(number) + 1, values.shape
        elif values.ndim == 2:
            plain[name] = pack(stem, *values.shape)
        else:
            stored[name] = values.astype("f2")
            plain[name] = stored[name].astype("f4")
    for (prefix, projection), (count, shape) in stacks.items():
        numbers = pack(f"{prefix}.switch_mlp.{projection}", count, *shape)
        plain |= {f"{prefix}.experts.{n}.{projection}.weight": numbers[n] for n in range(count)}
    config = {**tiny.BASE, **variant.config}
    write_checkpoint(tmp_path / "plain", config, plain)
    (tmp_path / "mlx").mkdir()
    packers.save(tmp_path / "mlx" / "model.safetensors", stored, {"format": "mlx"})
    options = {"quantization": {"bits": 4, "group_size": 32}}
    (tmp_path / "mlx" / "config.json").write_text(json.dumps({**config, **options}), "utf-8")
    write_tiny_tokenizer(tmp_path / "mlx", tiny.VOCAB)
    same(tmp_path / "plain", tmp_path / "mlx")
    decision = prepare(Request(source=tmp_path / "mlx")).decision
    assert (decision.name, decision.reason) == ("q4_1", "q4_1 holds 23 of 23 matrices exactly")
