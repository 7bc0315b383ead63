"""Scales of activations and of the KV cache, needed only by inference engines that compute or cache in FP8."""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_tools.formats.float8 import FLOAT8
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor

CACHE = re.compile(
    r".*\.(self_attn|attn|attention)\.(.*\.)?(([kqv]|kv|prob)(_cache)?|[kv]_proj\.output)_(scale|zero_point)"
    r"|.*_proj\.[kqv]_(scale|zero_point)"
)
"""Names of scales of keys, values and attention (compressed-tensors `kv_cache_scheme`, ModelOpt, Quark, vLLM)."""
ACTIVATION = re.compile(r".*\.(input|activation|output)_(scale(_ub)?|zero_point)")
"""Names of scales of a projection's inputs or outputs (`activation_scheme: static`, ModelOpt, FBGEMM)."""
WHY = {"cache": "llama.cpp's cache is not FP8", "activations": "weights do not need them"}


def drop_runtime_scales(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without the scales of activations and of the KV cache.

    In a checkpoint that is not quantized only scalars are taken for such scales: a vector of that name would be a weight.
    """
    quantized = bool(checkpoint.config.get("quantization_config")) or any(
        tensor.dtype in FLOAT8 for tensor in checkpoint.tensors.values()
    )
    found = {what: [] for what in WHY}  # type: dict[str, list[str]]
    for name, tensor in checkpoint.tensors.items():
        what = _kind(name, tensor, quantized=quantized)
        if what:
            found[what].append(name)
    notes = [
        f"{len(names)} scales of {'the ' if what == 'cache' else ''}{what} (such as {names[0]}) are left out: {WHY[what]}"
        for what, names in found.items()
        if names
    ]
    if not notes:
        return checkpoint
    gone = {name for names in found.values() for name in names}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone}
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *notes))


def _kind(name: str, tensor: Tensor, *, quantized: bool) -> str | None:
    if tensor.size != 1 and not quantized:
        return None
    if CACHE.fullmatch(name):
        return "cache"
    return "activations" if ACTIVATION.fullmatch(name) else None
