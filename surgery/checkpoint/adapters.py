"""Merging adapters into a checkpoint that is written again: its tensors keep their names and types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.adapters.merge import merge_adapters
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor
from surgery.arithmetic import Doubles, Rounded

RECORD = "tinyq.adapters"
"""The key of safetensors' metadata under which merged adapters are recorded, as JSON."""


@dataclass(frozen=True, eq=False)
class Merged(Rounded):
    """A tensor with adapters merged, rounded once to the type of the tensor that it replaces."""

    base: Tensor
    dtype: str = field(default="F32", kw_only=True)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def values(self, start: int, stop: int) -> Doubles:
        return self.base.numbers(start, stop)


def merged_as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its adapters merged; without any, itself.

    Raises UnsupportedError if its weights are packed, and as `merge_adapters`.
    """
    if not checkpoint.adapters:
        return checkpoint
    if "quantization_config" in checkpoint.config:
        raise UnsupportedError(
            f"{checkpoint.path}: is quantized (quantization_config), and a merged adapter would be rounded again; merge it with "
            "`tinyq convert --lora`"
        )
    made = merge_adapters(checkpoint)
    common = next(iter(checkpoint.tensors.values())).dtype
    tensors = {name: _as_stored(tensor, checkpoint.tensors.get(name), common) for name, tensor in made.tensors.items()}
    return replace(made, tensors=tensors, metadata={**made.metadata, RECORD: _record(made)})


def _as_stored(tensor: Tensor, before: Tensor | None, common: str) -> Tensor:
    dtype = common if before is None else before.dtype
    return tensor if tensor is before or tensor.dtype == dtype else Merged(tensor, dtype=dtype)


def _record(checkpoint: Checkpoint) -> str:
    listed: list[Mapping[str, object]] = [
        {"adapter": adapter.path.resolve().name, "sha256": adapter.digest, "scale": adapter.scale}
        for adapter in checkpoint.merged
    ]
    return json.dumps(listed)
