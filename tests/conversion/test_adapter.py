"""Adapters as GGUF files: the factors against the merged model, and llama.cpp with the adapter against PEFT."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gguf_tools import convert, convert_adapter
from gguf_tools.conversion.adapter import AdapterPlan, plan_adapter
from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.adapters.adapter import GivenAdapter
from gguf_tools.sources.adapters.merge import EMBEDDING, OUTPUT
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from gguf_tools.tensors.error import nmse
from tests.conftest import Ran
from tests.made_checkpoints import Made
from tests.peft_adapters import TOKENS, make_adapter

RANK = 3


def write_adapter_for(base: Path, out: Path, only: str = "") -> Path:
    """Random factors for every matrix of the base whose name contains `only`, positions and tied embeddings left out."""
    rng = np.random.default_rng(0)
    tensors = restore(open_checkpoint(base)).tensors
    tied = not any(map(OUTPUT.fullmatch, tensors))
    conv1d = any(name.endswith("c_attn.weight") and t.shape[1] == 3 * t.shape[0] for name, t in tensors.items())
    made: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in tensors.items():
        embedding = EMBEDDING.fullmatch(name)
        skip = len(tensor.shape) != 2 or not name.endswith(".weight") or (embedding and tied)
        if skip or re.search("norm|conv|wpe|pos", name) or only not in name:
            continue
        outputs, inputs = tensor.shape[::-1] if conv1d and re.search("c_attn|c_proj|c_fc", name) else tensor.shape
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        outputs, inputs = (inputs, outputs) if embedding else (outputs, inputs)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        made[f"{module}.{a}"] = rng.normal(0, 0.1, (RANK, inputs)).astype(np.float32)
        made[f"{module}.{b}"] = rng.normal(0, 0.1, (outputs, RANK)).astype(np.float32)
    out.mkdir()
    save_file(made, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 5}))
    return out


def planned(base: Path, adapter: Path, **options: Any) -> AdapterPlan:
    options = {"type": "f32", "text_only": True, **options}
    return plan_adapter(Request(source=base, adapters=(GivenAdapter(adapter),), **options))


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("arcee", "plain"),  # an MLP as a gated one: joined with zeros
        ("falcon-h1", "plain"),  # multipliers folded into the matrices
        ("gpt-neox", "plain"),  # q, k and v interleaved by head
        ("gpt2", "erf"),  # stored transposed
        ("granite-hybrid", "plain"),
        ("lfm2-moe", "scaled"),  # factors folded into experts
        ("litgpt", "legacy qkv"),
        ("mamba2", "plain"),
        ("moe-model", "stacked"),
        ("olmo2", "tied"),
        ("phi3", "partial-rope"),
        ("qwen3-from-scratch", "plain"),  # embedding scale
        ("qwen3-moe", "plain"),  # an expert each
        ("qwen3-next", "gated"),  # a gate of one row
    ],
)
def test_the_factors_are_the_change_of_the_merged_model(family: str, variant: str, made: Made, tmp_path: Path) -> None:
    base = made(family, variant)
    plan = planned(base, write_adapter_for(base, tmp_path / "adapter"))
    request = Request(source=base, type="f32", target=plan.architecture, text_only=True)
    merged = open_source(replace(request, adapters=(GivenAdapter(tmp_path / "adapter"),))).lowered
    factors = {output.name: output.tensor.array().astype(np.float64) for output in plan.tensors}
    alpha = float(plan.metadata["adapter.lora.alpha"].value)
    for before, after in zip(open_source(request).lowered.tensors, merged.tensors, strict=True):
        wide = after.tensor.array().astype(np.float64)
        change = wide - before.tensor.array()
        if f"{after.name}.lora_a" not in factors:
            assert not change.any(), after.name
            continue
        a, b = factors[f"{after.name}.lora_a"], factors[f"{after.name}.lora_b"]
        product = a @ b.T if after.name == "token_embd.weight" else b @ a
        product = (product * (alpha / b.shape[-1])).reshape(change.shape)
        assert product.any()
        # Both the merged and the base's weights are rounded to float32.
        np.testing.assert_allclose(product, change, atol=2.0**-22 * np.abs(wide).max(), rtol=0, err_msg=after.name)


@pytest.mark.parametrize(
    ("family", "variant", "settings", "bound"),
    [
        ("llama", "plain", {"use_rslora": True, "alpha_pattern": {"k_proj": 11}}, 1e-11),
        ("gpt2", "plain", {"fan_in_fan_out": True}, 1e-6),  # GELU from a table of F16
        ("phi3", "plain", {}, 1e-11),
        ("mixtral", "plain", {}, 1e-11),  # with the parameters of all experts, and the router
        ("qwen2", "plain", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}, 1e-11),
    ],
)
def test_llama_cpp_with_the_adapter_computes_what_peft_computes(
    family: str, variant: str, settings: Mapping[str, Any], bound: float, made: Made, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(made(family, variant), tmp_path / "base"))
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    convert(base, tmp_path / "base.gguf", type="f32")
    written = convert_adapter(adapter.path, tmp_path / "adapter.gguf", base=base)
    assert written.bytes == (tmp_path / "adapter.gguf").stat().st_size
    with Runtime(tmp_path / "base.gguf", RuntimeOptions(lora=(str(written.path),))) as runtime:
        (found,) = runtime.logits([TOKENS])
    assert nmse(adapter.logits, found) < bound


def test_llama_cpp_applies_it_to_experts_and_gates(made: Made, tmp_path: Path) -> None:
    base = Path(shutil.copytree(made("qwen2-moe", "plain"), tmp_path / "base"))
    adapter = write_adapter_for(base, tmp_path / "adapter")
    convert(base, tmp_path / "base.gguf", type="f32")
    convert(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    convert_adapter(adapter, tmp_path / "adapter.gguf", base=base)
    with Runtime(tmp_path / "merged.gguf") as runtime:
        (wanted,) = runtime.logits([TOKENS])
    with Runtime(tmp_path / "base.gguf", RuntimeOptions(lora=(str(tmp_path / "adapter.gguf"),))) as runtime:
        (found,) = runtime.logits([TOKENS])
    assert nmse(wanted, found) < 1e-11


def test_plain_factors_are_stored_unchanged(made: Made, tmp_path: Path) -> None:
    base = made("qwen2", "plain")
    adapter = write_adapter_for(base, tmp_path / "adapter", "o_proj")
    convert_adapter(adapter, tmp_path / "out.gguf", base=base)
    opened = open_gguf(tmp_path / "out.gguf")
    stored = load_file(adapter / "adapter_model.safetensors")
    for part in "ab":
        name = f"base_model.model.model.layers.1.self_attn.o_proj.lora_{part.upper()}.weight"
        np.testing.assert_array_equal(opened.tensors[f"blk.1.attn_output.weight.lora_{part}"].array(), stored[name])
    header = opened.header
    said = [header.get(key) for key in ("general.type", "adapter.type", "adapter.lora.alpha", "general.architecture")]
    assert said == ["adapter", "lora", 5.0, "qwen2"]
    assert header.get("tinyq.adapters") == ("adapter",)
    assert header.get("tinyq.source.digest") == open_checkpoint(base).digest()


@pytest.mark.parametrize(
    ("family", "variant", "settings", "says"),
    [
        ("llama", "plain", {"use_dora": True}, "has DoRA on .* cannot express; merge it with `tinyq convert BASE"),
        ("llama", "biases", {"target_modules": ["q_proj"], "lora_bias": True}, "has a bias for model"),
        (
            "llama",
            "plain",
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            r"has a trained lm_head\.weight",
        ),
        ("qwen2", "plain", {"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "has trained rows of"),
        (
            "qwen2",
            "tied",
            {"target_modules": ["embed_tokens"]},
            "changes embedding and output projection .* separately",
        ),
        ("qwen2", "tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, r"lm_head\.weight"),
        ("gpt2", "plain", {"target_modules": ["wpe"]}, r"cannot be applied to position_embd\.weight of gpt2"),
        ("nanochat", "plain", {"target_modules": ["embed_tokens"]}, r"a function is applied to its rows \(normed\)"),
    ],
)
def test_what_llama_cpp_cannot_apply_is_refused(
    family: str, variant: str, settings: Mapping[str, Any], says: str, made: Made, tmp_path: Path
) -> None:
    adapter = make_adapter(made(family, variant), tmp_path / "adapter", **settings)
    with pytest.raises(InputError, match=says):
        planned(made(family, variant), adapter.path)


def test_the_command(tinyq: Callable[..., Ran], made: Made, tmp_path: Path) -> None:
    base, out = made("llama", "plain"), tmp_path / "out.gguf"
    adapter = write_adapter_for(base, tmp_path / "adapter", "q_proj")
    shown = tinyq("convert", adapter, out, "--base", base, "--dry-run")
    assert (shown.code, out.exists()) == (0, False)
    assert "blk.0.attn_q.weight" in shown.out
    ran = tinyq("convert", adapter, out, "--base", base, "--json", "-")
    report = json.loads(ran.out)
    assert (ran.code, report["target"], report["bytes"]) == (0, "llama", out.stat().st_size)
    assert [tensor["rank"] for tensor in report["tensors"]] == [RANK] * 3
    again = tinyq("convert", adapter, out, "--base", base)
    assert (again.code, "--force" in again.err) == (2, True)
    for option, says in (
        (("--prove",), "--prove and --base exclude each other"),
        (("--lora", adapter), "--lora and --base exclude each other"),
        (("--swap", "0:1"), "layer surgery and --base exclude each other"),
        (("--type", "q4_k_m"), "--type is q4_k_m; an adapter is stored as auto, f32, f16, bf16"),
        (("--base", tmp_path / "nothing"), "no such file or folder"),
    ):
        failed = tinyq("convert", adapter, tmp_path / "other.gguf", "--base", base, *option)
        assert (failed.code, failed.err.count("\n")) == (2, 1)
        assert says in failed.err
        assert not (tmp_path / "other.gguf").exists()
    for command in (("eval", out), ("quantize", out, tmp_path / "q.gguf", "q8_0"), ("verify", out, "--source", base)):
        refused = tinyq(*command)
        assert (refused.code, "is an adapter, not a model" in refused.err) == (2, True)
    assert tinyq("inspect", out).code == 0
