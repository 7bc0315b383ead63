"""Type auto of packed checkpoints: the smallest quantized types that hold their numbers, and not a weight is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gguf_tools.api.convert import convert as run
from gguf_tools.cli import tinyq
from gguf_tools.conversion.exact_types import exact_types
from gguf_tools.conversion.plan import Conversion, prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny import attention as tiny
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.tensors.base import InMemory
from gguf_tools.verification.run import verify
from quant.options import Override, TypeOptions
from quant.types import Q4_0
from tests.oracle import convert, llama, nmse, reference
from tests.sources.restore.unpack import packers
from tests.sources.restore.unpack.packers import Array, Arrays

Pack = Callable[[np.random.Generator, int, int], tuple[Arrays, Array]]
GPTQ: dict[str, Any] = {"quant_method": "gptq", "group_size": 32, "sym": True, "desc_act": False}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
CT: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "int-quantized"}


def packing(pack: Callable[..., Arrays], bits: int = 4, *, within: int = 1, **options: Any) -> Pack:
    """A packer of layers whose integers stay `within` of the ends in most groups, so that ggml's encoder takes another scale."""

    def made(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Arrays, Array]:
        full = packers.layer(rng, outputs, inputs, bits=bits, **options)
        codes = np.clip(full.codes, within, (1 << bits) - 1 - within)
        codes[:, :1] = full.codes[:, :1]
        layer = packers.Layer(codes=codes, scales=full.scales, zeros=full.zeros, index=full.index)
        return (pack(layer, bits) if pack is packers.gptq else pack(layer)), layer.expected

    return made


def mlx(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Arrays, Array]:
    """As MLX packs a layer of 4 bits: scales of either sign, and biases."""
    made = packers.layer(rng, outputs, inputs)
    scales = (made.scales * rng.choice([-1, 1], made.scales.shape)).astype("f2")
    biases = rng.normal(0, 0.1, made.scales.shape).astype("f2")
    wide = made.codes * scales.astype("f4")[:, made.index] + biases.astype("f4")[:, made.index]
    return {"weight": packers.rows(made.codes, 4, "u4"), "scales": scales, "biases": biases}, wide.astype("f4")


CASES: dict[str, tuple[Pack, dict[str, Any], set[str]]] = {
    "GPTQ, 4 bits": (packing(packers.gptq), {**GPTQ, "bits": 4}, {"q4_0"}),
    "GPTQ, 3 bits": (packing(packers.gptq, 3), {**GPTQ, "bits": 3}, {"q4_0"}),
    "GPTQ, 8 bits": (packing(packers.gptq, 8, within=60), {**GPTQ, "bits": 8}, {"q8_0"}),
    "GPTQ, 2 bits": (
        packing(packers.gptq, 2, within=0, group=1 << 20),
        {**GPTQ, "bits": 2, "group_size": -1},
        {"q2_0", "q4_0"},
    ),
    "AWQ": (packing(packers.awq, symmetric=False), AWQ, {"q4_1", "q5_0"}),
    "int8 per channel": (packing(packers.int_quantized, 8, within=30, group=1 << 20), CT, {"q8_0"}),
    "MLX": (mlx, {}, {"q4_1"}),
}


def made(folder: Path, name: str) -> packers.Made:
    pack, quantization, _ = CASES[name]
    config = {"quantization_config": quantization} if quantization else {"quantization": {"bits": 4, "group_size": 32}}
    return packers.checkpoint(folder, pack, config)


def same(plan: Conversion, path: Path) -> None:
    """Every tensor of the file has the numbers of the plan's."""
    written = open_gguf(path).tensors
    for choice, tensor in zip(plan.choices, plan.tensors, strict=True):
        np.testing.assert_array_equal(written[choice.name].array(), tensor.array())


@pytest.mark.parametrize("name", CASES)
def test_every_weight_of_the_file_is_the_packed_one(tmp_path: Path, name: str) -> None:
    made(tmp_path / "hf", name)
    plan = prepare(Request(source=tmp_path / "hf", threads=2))
    types = {choice.type.name for choice in plan.choices if ".attn_" in choice.name and "norm" not in choice.name}
    inside = {choice.type.name for choice in plan.choices if choice.name in plan.exact}
    assert len(plan.exact) == 21
    assert inside == CASES[name][2]
    assert types <= inside
    assert plan.choices[0].type.name == "f16"
    assert (
        f"of {len(plan.exact) + 2} matrices exactly; of the others, f16 holds the F16 weights" in plan.decision.reason
    )
    execute(plan, tmp_path / "out.gguf")
    same(plan, tmp_path / "out.gguf")
    header = read_header(tmp_path / "out.gguf")
    assert header.get("tinyq.type") == plan.decision.name
    found = verify(tmp_path / "out.gguf", tmp_path / "hf")
    assert found.count("identical") == len(plan.choices)
    # The types' recipes as llama.cpp numbers them.
    assert (
        header.get("general.file_type") == {"q4_0": 2, "q4_1": 3, "q5_0": 8, "q8_0": 7, "q2_0": 41}[plan.decision.name]
    )


def test_llama_cpp_runs_the_exact_file_with_the_unpacked_numbers(tmp_path: Path) -> None:
    """llama.cpp rounds activations to 8 bits where weights are quantized, which is all that is lost here."""
    made(tmp_path / "hf", "GPTQ, 4 bits")
    out = convert(tmp_path / "hf", tmp_path / "out.gguf", "auto")
    wanted = reference(load_model(tmp_path / "hf"))
    found, _ = llama(out)
    assert nmse(found, wanted) <= 2e-3
    other = convert(tmp_path / "hf", tmp_path / "ggml.gguf", "q4_0")
    assert nmse(llama(other)[0], wanted) > 4 * nmse(found, wanted)


def test_mxfp4_experts_of_gpt_oss(tmp_path: Path) -> None:
    """The packed checkpoint of gpt-oss becomes MXFP4 tensors of the same numbers, gate and up apart."""
    from gguf_tools.families.gpt_oss import tiny as write
    from gguf_tools.formats.safetensors import read_safetensors

    write(tmp_path / "plain", "plain", 1)
    stored, _ = read_safetensors(tmp_path / "plain" / "model.safetensors")
    rng = np.random.default_rng(1)
    tensors: Arrays = {}
    for name, tensor in stored.items():
        if tensor.shape[1:] and name.endswith("_proj") and len(tensor.shape) == 3:
            experts, inputs, outputs = tensor.shape
            tensors[f"{name}_blocks"] = rng.integers(0, 256, (experts, outputs, inputs // 32, 16)).astype("u1")
            tensors[f"{name}_scales"] = rng.integers(119, 123, (experts, outputs, inputs // 32)).astype("u1")
        else:
            tensors[name] = tensor.array().astype("f2")
    (tmp_path / "hf").mkdir()
    packers.save(tmp_path / "hf" / "model.safetensors", tensors)
    config = json.loads((tmp_path / "plain" / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "hf" / name).write_bytes((tmp_path / "plain" / name).read_bytes())
    plan = prepare(Request(source=tmp_path / "hf"))
    experts_types = {choice.type.name for choice in plan.choices if choice.name.endswith("_exps.weight")}
    assert experts_types == {"mxfp4"}
    assert plan.decision.name == "mxfp4_moe"
    execute(plan, tmp_path / "out.gguf")
    same(plan, tmp_path / "out.gguf")
    assert verify(tmp_path / "out.gguf", tmp_path / "hf").count("identical") == len(plan.choices)
    found, _ = llama(convert(tmp_path / "hf", tmp_path / "f32.gguf", "f32"))
    assert nmse(found, reference(load_model(tmp_path / "hf"))) <= 1e-9


def test_a_checkpoint_that_was_trained_for_a_type(tmp_path: Path) -> None:
    """Nothing says that its weights are multiples of scales: they are BF16, as saved after training with quantization."""
    variant = tiny.LLAMA["plain"]
    rng = np.random.default_rng(2)
    tensors = random_tensors(tiny.shapes(variant), 1)
    for name, values in tensors.items():
        if ".layers." in name and values.ndim == 2:
            scale = torch.rand(values.shape[0], 1).to(torch.bfloat16).float().numpy() / 64 + np.float32(1 / 64)
            scale = torch.from_numpy(scale).to(torch.bfloat16).float().numpy()
            tensors[name] = (rng.integers(-8, 8, values.shape) * scale).astype("f4")
    write_checkpoint(tmp_path, {**tiny.BASE, **variant.config}, tensors, dtype="F32")
    plan_without_tokenizer(tmp_path)
    plan = prepare(Request(source=tmp_path))
    assert plan.decision.name == "q4_0"
    assert len(plan.exact) == 21
    assert plan.decision.recipe == "f32"


def plan_without_tokenizer(folder: Path) -> None:
    from gguf_tools.families.tiny.writing import write_tiny_tokenizer

    write_tiny_tokenizer(folder, tiny.VOCAB)


def test_a_few_matrices_are_left_as_they_are() -> None:
    """Less than half of the weights inside the layers; the embedding does not count."""
    rng = np.random.default_rng(3)
    exact = InMemory((rng.integers(-8, 8, (4, 64)) / 8).astype(np.float32))
    other = InMemory(rng.normal(size=(4, 64)).astype(np.float32))
    told: list[int] = []
    few = [("token_embd.weight", exact), ("blk.0.a", exact), ("blk.0.b", other), ("blk.0.c", other)]
    assert exact_types(few, 2, told.append) == {}
    found = exact_types([*few[:3], ("blk.1.a", exact), ("blk.1.v", InMemory(np.ones(64, np.float32)))], 2, told.append)
    assert found == dict.fromkeys(("token_embd.weight", "blk.0.a", "blk.1.a"), Q4_0)
    assert told == [256] * 5


def test_the_user_s_types_come_first(tmp_path: Path) -> None:
    made(tmp_path / "hf", "GPTQ, 4 bits")
    options = TypeOptions(overrides=(Override.parse("attn_v=q8_0"), Override.parse("attn_k=q4_0")))
    plan = prepare(Request(source=tmp_path / "hf", options=options))
    types = {choice.name: choice.type.name for choice in plan.choices}
    assert types["blk.0.attn_v.weight"] == "q8_0"
    assert "blk.0.attn_v.weight" not in plan.exact
    assert "blk.0.attn_k.weight" in plan.exact


def test_a_type_that_is_named_is_encoded_as_llama_cpp_does(tmp_path: Path) -> None:
    made(tmp_path / "hf", "GPTQ, 4 bits")
    assert prepare(Request(source=tmp_path / "hf", type="q4_0")).exact == frozenset()


def test_weights_that_no_quantized_type_holds(tmp_path: Path) -> None:
    """A scale of 32 bits is no F16 number."""

    def wide(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Arrays, Array]:
        layer = packers.layer(rng, outputs, inputs, bits=8, scale="f4", group=1 << 20)
        return packers.int_quantized(layer), layer.expected

    packers.checkpoint(tmp_path, wide, {"quantization_config": CT})
    decision = prepare(Request(source=tmp_path)).decision
    assert decision.name == "f32"
    assert decision.reason.endswith(
        "f32 holds the F32, F16 weights exactly; no quantized type holds the unpacked weights exactly"
    )


def test_the_report_says_what_is_exact(tmp_path: Path) -> None:
    made(tmp_path / "hf", "GPTQ, 4 bits")
    result = CliRunner().invoke(tinyq, ["convert", str(tmp_path / "hf"), str(tmp_path / "out.gguf"), "--dry-run"])
    assert "q4_0: q4_0 holds 21 of 23 matrices exactly" in result.output
    found = run(tmp_path / "hf", tmp_path / "out.gguf")
    report = found.as_dict()
    assert (report["type"], found.type) == ("q4_0", "q4_0")
    assert "rounded" not in str(found)
    assert {entry["reason"] for entry in report["tensors"] if entry["type"] == "q4_0"} == {"holds the weights exactly"}
