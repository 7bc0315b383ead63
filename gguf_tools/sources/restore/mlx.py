"""Restoring checkpoints that MLX saved (safetensors metadata `format: mlx`) to the published layout.

When mlx-lm loads a published checkpoint it stacks the experts under `mlp.switch_mlp`, swaps the last two axes of convolutions,
and for Qwen3-Next and Qwen3.5 adds 1 to the norm weights that are stored minus 1; it saves them in that form.
Source: `sanitize` in `mlx_lm/models/qwen3_next.py`, `qwen3_5.py` and `qwen3_moe.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_tools.errors import CheckpointError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped, shifted, take

STACKED = re.compile(r"(.*\.mlp)\.switch_mlp\.(gate|up|down)_proj\.weight")
NORMS = re.compile(r"(.*\.)?(input_layernorm|post_attention_layernorm|q_norm|k_norm)\.weight|model\.norm\.weight")


def undo_mlx(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with MLX's changes undone; a checkpoint not saved by MLX is returned unchanged.

    If the convolutions have the published order of axes, MLX did not transform the file, whatever its metadata say; mlx-lm
    decides the same way. Raises CheckpointError if a tensor of stacked experts does not have three axes.
    """
    if checkpoint.metadata.get("format") != "mlx":
        return checkpoint
    metadata = {**checkpoint.metadata, "format": "pt"}
    convolutions = [name for name in checkpoint.tensors if name.endswith("conv1d.weight")]
    if any(checkpoint.tensors[name].shape[-1:] != (1,) for name in convolutions):
        note = f"the metadata say MLX, but {convolutions[0]} has the published order of axes: read as published"
        return replace(checkpoint, metadata=metadata, notes=(*checkpoint.notes, note))
    tensors: dict[str, Tensor] = {}
    stacked = False
    for name, tensor in checkpoint.tensors.items():
        match = STACKED.fullmatch(name)
        if match:
            stacked = True
            tensors |= _apart(checkpoint, name, tensor, match[1], match[2])
        elif name in convolutions:
            # Only an axis of length 1 moves, so the data keeps its order.
            tensors[name] = Reshaped(tensor, (tensor.shape[0], 1, *tensor.shape[1:-1]))
        else:
            tensors[name] = tensor
    restored = replace(checkpoint, tensors=tensors, metadata=metadata)
    done = ["experts unstacked"] if stacked else []
    done += ["convolution axes swapped back"] if convolutions else []
    if signature(restored).hybrid:
        done.append("1 subtracted from the norm weights")
        tensors |= {name: shifted(tensor, -1.0) for name, tensor in tensors.items() if NORMS.fullmatch(name)}
    what = ", ".join(done) or "nothing to undo"
    return replace(restored, tensors=tensors, notes=(*checkpoint.notes, f"saved by MLX: {what}"))


def _apart(checkpoint: Checkpoint, name: str, stack: Tensor, prefix: str, projection: str) -> dict[str, Tensor]:
    if len(stack.shape) != 3:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} has shape {stack.shape}; expected (experts, rows, columns); save it again"
        )
    return {
        f"{prefix}.experts.{e}.{projection}_proj.weight": Reshaped(take(stack, [e]), stack.shape[1:])
        for e in range(stack.shape[0])
    }
