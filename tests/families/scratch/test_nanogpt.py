"""What nanoGPT's checkpoints are refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.families.registry import load_model
from tests.made_checkpoints import Made


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"n_head": 3}, CheckpointError, "n_head is 3, which does not divide the hidden size 64"),
        ({"n_head": None}, CheckpointError, "n_head is missing"),
        ({"value_residual": True}, UnsupportedError, "value_residual is a key that nanoGPT's GPTConfig does not have"),
        ({"activation_function": "mish"}, CheckpointError, "activation_function is 'mish'; expected one of"),
    ],
)
def test_refusals(made: Made, tmp_path: Path, change: dict[str, Any], kind: type[InputError], message: str) -> None:
    loaded = torch.load(made("nanogpt", "plain") / "ckpt.pt", weights_only=True)
    loaded["model_args"] |= change
    torch.save(loaded, tmp_path / "ckpt.pt")
    with pytest.raises(kind, match=message) as error:
        load_model(tmp_path / "ckpt.pt")
    assert "\n" not in str(error.value)


def test_a_mask_that_is_not_causal(made: Made, tmp_path: Path) -> None:
    source = made("nanogpt", "minGPT")
    weights = torch.load(source / "model.pt", weights_only=True)
    weights["transformer.h.1.attn.bias"] = torch.ones(1, 1, 96, 96)
    torch.save(weights, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text())), "utf-8")
    with pytest.raises(CheckpointError, match=r"h\.1\.attn\.bias .*is not a causal mask"):
        load_model(tmp_path)
