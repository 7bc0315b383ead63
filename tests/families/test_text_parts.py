"""The text part of models that see: with text alone, transformers' whole model computes what the text family does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gguf_tools.evaluation.float64 import in_float64
from gguf_tools.families.registry import load_model
from gguf_tools.reference import Reference

PROMPT = [int(n) for n in np.random.default_rng(5).integers(0, 280, 20)]
TEXT = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
MROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}
SEEING: dict[str, tuple[Any, dict[str, Any], str]] = {
    "qwen2_vl": (transformers.Qwen2VLForConditionalGeneration, {"embed_dim": 32, "hidden_size": 64}, "qwen2"),
    "qwen2_5_vl": (transformers.Qwen2_5_VLForConditionalGeneration, {"out_hidden_size": 64}, "qwen2"),
    "qwen3_vl": (
        transformers.Qwen3VLForConditionalGeneration,
        {"out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        "qwen3",
    ),
}


@pytest.mark.parametrize("kind", SEEING)
@pytest.mark.parametrize("stated", [True, False], ids=["rope stated", "rope left out"])
def test_text_alone(tmp_path: Path, kind: str, stated: bool) -> None:
    """`mrope` for text is plain rope, and where no rope is stated the base is the class's own."""
    made, vision, family = SEEING[kind]
    text = TEXT | ({"head_dim": 16} if family == "qwen3" else {})
    rope: dict[str, Any] = {}
    if family == "qwen2":
        rope = {"rope_scaling": MROPE} | ({"rope_theta": 5e4} if stated else {})
    elif stated:
        rope = {"rope_parameters": {"rope_theta": 5e4, **MROPE, "type": "default"}}
    config: Any = transformers.AutoConfig.for_model(kind, text_config=text | rope, vision_config={**VISION, **vision})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model: Any = made(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else 0.2))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text("utf-8"))
    saved["text_config"].pop("rope_parameters")
    path.write_text(json.dumps(saved | {"text_config": saved["text_config"] | rope}), "utf-8")
    with torch.inference_mode(), in_float64():
        loaded = made.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager").double().eval()
        wanted = loaded(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0].numpy()
    ours = load_model(tmp_path)
    (found,) = Reference(ours, torch.float64).logits([PROMPT])
    assert ours.family == family
    assert np.square(found - wanted).sum() / np.square(wanted).sum() <= 1e-20
