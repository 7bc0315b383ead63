"""The torch reference against transformers' own classes, which load the tiny checkpoints as published ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.families.tiny.attention import Variant
from tests.oracle import PROMPTS, nmse, source_reference

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
logging.getLogger("transformers").setLevel(logging.ERROR)

# transformers computes norms, softmax of routers and rope angles in float32 whatever the type of the weights.
LIMIT = 1e-11

CASES: dict[str, Variant] = {
    f"{family}-{name}": variant
    for family, variants in (
        ("llama", field_tiny.LLAMA),
        ("mixtral", field_tiny.MIXTRAL),
        ("qwen2", field_tiny.QWEN2),
        ("qwen2-moe", field_tiny.QWEN2_MOE),
        ("qwen3", field_tiny.QWEN3),
        ("qwen3-moe", field_tiny.QWEN3_MOE),
        ("refused", field_tiny.REFUSED),
    )
    for name, variant in variants.items()
    # transformers believes a config that claims linear attention.
    if "linear_num_key_heads" not in variant.config
}


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_transformers(tmp_path: Path, case: str) -> None:
    field_tiny.write(tmp_path, CASES[case], 7)
    with torch.random.fork_rng():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            tmp_path,
            dtype=torch.float64,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    with torch.inference_mode():
        theirs = [model(torch.tensor([list(prompt)])).logits[0].numpy() for prompt in PROMPTS]
    assert nmse(source_reference(tmp_path), theirs) <= LIMIT
