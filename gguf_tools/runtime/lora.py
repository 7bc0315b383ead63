"""LoRA adapters in llama.cpp (`llama_adapter_lora_init`, `llama_set_adapters_lora`). For the worker process only."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib

from gguf_tools.errors import LlamaError


def load_adapters(model: Any, paths: Sequence[str]) -> list[Any]:
    """The adapters in these GGUF files, which belong to the model and are freed with it. Raises LlamaError."""
    loaded = []
    for path in paths:
        adapter = lib.llama_adapter_lora_init(model, os.fsencode(path))
        if not adapter:
            raise LlamaError(f"the adapter {path} cannot be applied to the model")
        loaded.append(adapter)
    return loaded


def apply_adapters(context: Any, adapters: Sequence[Any]) -> None:
    """Apply the adapters, each with the scale 1, to all that the context computes. Raises LlamaError."""
    if not adapters:
        return
    handles = (lib.llama_adapter_lora_p_ctypes * len(adapters))(*adapters)
    scales = (ctypes.c_float * len(adapters))(*[1.0] * len(adapters))
    if lib.llama_set_adapters_lora(context, handles, len(adapters), scales):
        raise LlamaError("llama_set_adapters_lora failed")
