"""`tinyq surgery --lora`: adapters merged into a folder, as PEFT merges them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from gguf_tools import operate
from gguf_tools.errors import InputError
from gguf_tools.families.registry import load_model
from gguf_tools.reference import Reference
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.tensors.error import nmse
from surgery.checkpoint.adapters import RECORD
from tests.conftest import Ran
from tests.made_checkpoints import Made
from tests.peft_adapters import TOKENS, logits_of, make_adapter


def test_a_bf16_folder_is_peft_s_to_a_unit(qwen3_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_folder, tmp_path / "adapter", dtype=torch.bfloat16)
    operate(qwen3_folder, tmp_path / "merged", lora=adapter.path)
    theirs = adapter.model.merge_and_unload().state_dict()
    base, made = open_checkpoint(qwen3_folder).tensors, open_checkpoint(tmp_path / "merged").tensors
    for name, tensor in made.items():
        assert tensor.dtype == "BF16"
        wanted, found, old = theirs[name].to(torch.float64).numpy(), tensor.array(), base[name].array()
        change = np.abs(found - old)
        assert (np.abs(found - wanted) <= 2.0**-7 * np.maximum(change, np.abs(found))).all(), name


@pytest.mark.parametrize("variant", ["plain", "tied"])
def test_transformers_loads_the_folder_and_computes_what_peft_computes(
    variant: str, made: Made, tmp_path: Path
) -> None:
    base = made("qwen2", variant)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "down_proj"], use_dora=True)
    result = operate(base, tmp_path / "merged", lora=[adapter.path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    assert nmse(adapter.logits, logits_of(loaded)) < 1e-12
    assert any("is merged into 4 tensors" in note for note in result.notes)
    with safe_open(tmp_path / "merged/model.safetensors", "pt") as opened:
        (recorded,) = json.loads(opened.metadata()[RECORD])
    assert (recorded["adapter"], recorded["scale"]) == ("adapter", 1.0)
    assert not (tmp_path / "merged/tinyq-recipe.toml").exists()


def test_surgery_follows_the_merge(made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    operate(base, tmp_path / "merged", lora=adapter.path)
    operate(tmp_path / "merged", tmp_path / "twice", "swap(0:1) + interpolate(1:2, 0.5)")
    operate(base, tmp_path / "once", "swap(0:1) + interpolate(1:2, 0.5)", lora=adapter.path)
    first, second = (
        Reference(load_model(tmp_path / name), torch.float64).logits([TOKENS])[0] for name in ("once", "twice")
    )
    assert nmse(second, first) < 1e-12


def test_what_cannot_be_merged_is_refused(tinyq: Callable[..., Ran], made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"]).path
    for arguments, says in (
        (("--lora", tmp_path / "nothing"), "no such folder"),
        (("--lora", adapter, "--delete", "auto:1"), "an op that measures would not see the adapter"),
    ):
        ran = tinyq("surgery", base, tmp_path / "out", *arguments)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert says in ran.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="there is no op"):
        operate(base, tmp_path / "out")
