"""nanochat: its published forward pass, its folders, what is refused by name, and the form without the cap."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.families.scratch.nanochat import tiny
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.rewrites.approximations import LogitFit
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from tests.oracle import convert, nmse, reference

PROMPTS = (tuple(range(3, 60)), (7, 7, 280), (1,))


def rms(x: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), eps=float(torch.finfo(torch.float32).eps))


def forward(w: Mapping[str, Tensor], config: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """nanochat's `GPT.forward` of January 2026, in float64 and with the mask of flash attention's window (left, 0)."""
    heads, length, count = config["n_head"], len(tokens), config["n_layer"]
    size = config["n_embd"] // heads
    freqs = torch.outer(torch.arange(length).double(), 10000.0 ** -(torch.arange(0, size, 2).double() / size))
    cos, sin = freqs.cos()[:, None], freqs.sin()[:, None]

    def rotary(x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, -1)
        return torch.cat([x1 * cos + x2 * sin, x1 * -sin + x2 * cos], -1)

    x = x0 = rms(w["transformer.wte.weight"][tokens])
    ones, zeros = torch.ones(count), torch.zeros(count)
    pattern = config.get("window_pattern", "L")
    for n in range(count):
        x = w.get("resid_lambdas", ones)[n] * x + w.get("x0_lambdas", zeros)[n] * x0
        prefix, y = f"transformer.h.{n}.", rms(x)
        q, k, v = ((y @ w[f"{prefix}attn.c_{name}.weight"].T).view(length, -1, size) for name in "qkv")
        q, k = rms(rotary(q)), rms(rotary(k))
        left = config["sequence_len"] // 2 if pattern[n % len(pattern)] == "S" and n < count - 1 else length
        apart = torch.arange(length)[:, None] - torch.arange(length)
        mask = (apart >= 0) & (apart <= left)
        q, k, v = (part.swapdims(0, 1) for part in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + out.swapdims(0, 1).flatten(1) @ w[f"{prefix}attn.c_proj.weight"].T
        x = x + functional.relu(rms(x) @ w[f"{prefix}mlp.c_fc.weight"].T).square() @ w[f"{prefix}mlp.c_proj.weight"].T
    logits = rms(x) @ w["lm_head.weight"].T
    return 15.0 * (logits[:, : config["vocab_size"]] / 15.0).tanh()


def written(folder: Path, variant: str, **changes: Any) -> Path:
    """A tiny checkpoint with entries of its model_config changed."""
    tiny(folder, variant, 4)
    meta = folder / "meta_000650.json"
    stated = json.loads(meta.read_text("utf-8"))
    stated["model_config"] |= changes
    meta.write_text(json.dumps(stated), "utf-8")
    return folder


@pytest.mark.parametrize("variant", ["first", "lambdas and windows"])
def test_reference_is_the_published_forward(variant: str, tmp_path: Path) -> None:
    folder = written(tmp_path, variant)
    config = json.loads((folder / "meta_000650.json").read_text("utf-8"))["model_config"]
    weights = {name: t.double() for name, t in torch.load(folder / "model_000650.pt", weights_only=True).items()}
    wanted = [forward(weights, config, torch.tensor(prompt)).numpy() for prompt in PROMPTS]
    assert wanted[0].shape == (57, 290)
    assert nmse(reference(load_model(folder), PROMPTS), wanted) < 1e-24


def test_the_file_is_read_with_its_own_meta(tmp_path: Path) -> None:
    folder = written(tmp_path, "first")
    (folder / "model_000200.pt").write_bytes((folder / "model_000650.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"2 torch files \(model_000200.pt, model_000650.pt\); expected one"):
        load_model(folder)
    assert load_model(folder / "model_000650.pt").spec.context_length == 64
    with pytest.raises(CheckpointError, match="n_head is missing"):
        load_model(folder / "model_000200.pt")


def test_a_meta_without_a_model(tmp_path: Path) -> None:
    folder = written(tmp_path, "first")
    (folder / "meta_000650.json").write_text('{"step": 650}', "utf-8")
    with pytest.raises(CheckpointError, match="has no object model_config"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"n_head": 5}, "n_head is 5, which does not divide the hidden size 64"),
        ({"n_head": 3}, "n_head is 3, which does not divide"),
        ({"vocab_size": 321}, "vocab_size is 321, but transformer.wte.weight has 320 rows"),
        ({"window_pattern": "SX"}, "window_pattern is 'SX'; expected a text of S and L"),
        ({"n_experts": 4}, "n_experts is a key that nanochat's GPTConfig does not have"),
    ],
)
def test_configs_that_are_wrong(changes: dict[str, Any], error: str, tmp_path: Path) -> None:
    folder = written(tmp_path, "first", **changes)
    with pytest.raises((CheckpointError, UnsupportedError), match=error):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "thing"),
    [
        ("value_embeds.1.weight", "value embeddings"),
        ("transformer.h.1.attn.ve_gate.weight", "value embeddings"),
        ("smear_gate.weight", "smeared embeddings"),
        ("backout_lambda", "backout"),
        ("bigram_embed.weight", "bigram embeddings"),
    ],
)
def test_what_llama_cpp_has_not_is_refused_by_name(name: str, thing: str, tmp_path: Path) -> None:
    folder = written(tmp_path, "first")
    weights = torch.load(folder / "model_000650.pt", weights_only=True)
    torch.save({**weights, name: torch.ones(4)}, folder / "model_000650.pt")
    with pytest.raises(UnsupportedError, match=rf"no llama.cpp architecture has {thing}.*: {name}"):
        load_model(folder)


@pytest.mark.parametrize("type_name", ["f16", "q8_0"])
def test_small_types_and_caches_hold_the_constants(type_name: str, tmp_path: Path) -> None:
    """The constants of the norms that change nothing fit an F16 file, an F16 cache and flash attention."""
    folder = written(tmp_path / "source", "first")
    out = convert(folder, tmp_path / "out.gguf", type_name)
    options = RuntimeOptions(threads=1, kv_type="f16", flash_attn=True)
    with Runtime(out, options) as runtime:
        logits = runtime.logits(PROMPTS)
    assert nmse(logits, reference(load_model(folder), PROMPTS)) < {"f16": 2e-5, "q8_0": 1e-2}[type_name]


def test_without_the_cap_when_approximations_are_allowed(tmp_path: Path) -> None:
    folder = written(tmp_path / "source", "first")
    exact = open_source(Request(source=folder, type="f32")).plan
    cheap = open_source(Request(source=folder, type="f32", allow_approximate=True)).plan
    assert (exact.target.name, cheap.target.name) == ("gemma3", "qwen3")
    assert cheap.extra_parameters < exact.extra_parameters / 3
    fit = cheap.fits[0]
    assert isinstance(fit, LogitFit)
    assert fit.agreement == 1.0
    assert 0 < fit.kl < 0.1
    out = convert(folder, tmp_path / "out.gguf", allow_approximate=True)
    assert np.isclose(read_header(out).metadata[keys.APPROXIMATE_KL].value, fit.kl)
    with Runtime(out, RuntimeOptions(threads=1)) as runtime:
        logits = runtime.logits(PROMPTS)
    # What the cap makes of the file's logits is what the model computes.
    assert nmse([15.0 * np.tanh(part / 15.0) for part in logits], reference(load_model(folder), PROMPTS)) < 1e-12
