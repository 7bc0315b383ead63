"""The torch reference against transformers' own classes, on checkpoints in the published layouts."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration
from transformers.utils import logging as transformers_logging

from gguf_tools.evaluation.conformance import ORACLE, OracleTests
from gguf_tools.families.registry import load_model, own_families
from gguf_tools.families.tiny.hybrid import QWEN35_VARIANTS, config_of
from tests.oracle import PROMPTS, nmse, source_reference

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
logging.getLogger("transformers").setLevel(logging.ERROR)


class TestFamilies(OracleTests):
    families = own_families()


def test_the_text_part_of_a_model_with_a_vision_tower(tmp_path: Path) -> None:
    text = config_of(replace(QWEN35_VARIANTS["moe"], layers="DA"))
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": text["hidden_size"],
    }
    config: Any = Qwen3_5MoeConfig(text_config=text, vision_config=vision | {"num_position_embeddings": 16})
    for part in (config, config.text_config):
        part._experts_implementation = "eager"
        part._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Qwen3_5MoeForConditionalGeneration(config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15)).float())
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        wanted = [
            model(input_ids=torch.tensor([list(prompt)]), use_cache=False).logits[0].numpy() for prompt in PROMPTS
        ]
    assert any("visual" in note for note in load_model(tmp_path).notes)
    assert nmse(wanted, source_reference(tmp_path)) <= ORACLE
