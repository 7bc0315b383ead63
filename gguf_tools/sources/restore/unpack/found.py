"""What a format's module says of one packed weight."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor


@dataclass(frozen=True)
class Found:
    """A weight under its published name, the names of the stored tensors that it replaces, and how it was packed."""

    name: str
    tensor: Tensor
    used: tuple[str, ...]
    scheme: str


def without_zero_bias(checkpoint: Checkpoint, stem: str) -> list[str]:
    """The name of the bias of a packed layer if it is all zeros, else nothing.

    AutoGPTQ and AutoAWQ give a bias of zeros to layers of models that have none; it changes nothing.
    """
    name = f"{stem}.bias"
    bias = checkpoint.tensors.get(name)
    return [name] if bias is not None and len(bias.shape) == 1 and not bias.array().any() else []
