"""LoRA adapters made by PEFT for tiny checkpoints, with the logits of PEFT's own model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TOKENS = tuple(range(1, 20))


@dataclass(frozen=True)
class MadeAdapter:
    """The folder of an adapter, PEFT's model with it, and its logits of `TOKENS` before any merge, in float64."""

    path: Path
    model: Any
    logits: NDArray[np.float64]


def make_adapter(base: Path, out: Path, *, dtype: torch.dtype = torch.float64, **settings: Any) -> MadeAdapter:
    """Train nothing, but give every trainable weight of an adapter for `base` a value far from its initial one."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, experts_implementation="eager")
        model = get_peft_model(loaded, LoraConfig(**settings))
        torch.manual_seed(7)
        for _, weight in model.named_parameters():
            if weight.requires_grad:
                weight.data = weight.data + 0.05 * torch.randn_like(weight)
        model.save_pretrained(str(out))
    return MadeAdapter(out, model, logits_of(model))


def logits_of(model: Any) -> NDArray[np.float64]:
    """Logits of `TOKENS`, shape (tokens, vocabulary)."""
    with torch.inference_mode():
        return np.asarray(model(input_ids=torch.tensor([TOKENS])).logits[0].to(torch.float64).numpy())
