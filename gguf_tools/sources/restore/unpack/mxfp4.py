"""MXFP4 as gpt-oss is published: `…_blocks` (experts, outputs, groups, 16) of pairs of 4-bit floats, `…_scales` of exponents.

The even element of a pair is in the lower bits. transformers' model has the experts transposed, (experts, inputs, outputs).
Source: `convert_moe_packed_tensors` of transformers' integrations/mxfp4.py.
"""

from __future__ import annotations

from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.unpack.base import Affine, Bits, Groups
from gguf_tools.sources.restore.unpack.found import Found
from gguf_tools.sources.restore.unpack.minifloat import E2M1, E8M0, ByteScales
from gguf_tools.sources.restore.unpack.stated import Stated, misfit
from gguf_tools.tensors.views import Joined, Reshaped, Transposed, matrices

BLOCKS, SCALES = "_blocks", "_scales"
GROUP, HALF = 32, 16
KEYS = frozenset({"quant_method", "modules_to_not_convert", "dequantize"})


def find(checkpoint: Checkpoint, said: Stated) -> list[Found]:
    """The experts' weights that are packed. Errors as `unpack`."""
    names = [name for name in checkpoint.tensors if name.endswith(BLOCKS)]
    if names:
        said.require_known("MXFP4", KEYS)
    return [_experts(checkpoint, name.removesuffix(BLOCKS)) for name in names]


def _experts(checkpoint: Checkpoint, name: str) -> Found:
    """One tensor of experts, (experts, inputs, outputs)."""
    blocks, scales = checkpoint.tensors[name + BLOCKS], checkpoint.tensors.get(name + SCALES)
    if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[3] != HALF:
        raise misfit(checkpoint, name + BLOCKS, blocks, f"U8 of shape (experts, outputs, groups, {HALF})")
    if scales is None or scales.dtype != "U8" or scales.shape != blocks.shape[:3]:
        raise misfit(
            checkpoint, name + SCALES, scales or blocks, f"U8 of shape {blocks.shape[:3]} beside {name}{BLOCKS}"
        )
    experts, outputs, groups, _ = blocks.shape
    inputs = groups * GROUP
    stacked = Affine(
        shape=(experts, outputs, inputs),
        codes=Bits(tensor=Reshaped(blocks, (experts, outputs, groups * HALF)), bits=4, count=inputs),
        scale=ByteScales(scales, E8M0),
        groups=Groups(inputs, GROUP),
        table=E2M1,
    )
    entries = tuple(Transposed(matrix) for matrix in matrices(stacked))
    return Found(
        name,
        Joined(entries, (experts, inputs, outputs)),
        (name + BLOCKS, name + SCALES),
        f"4-bit floats, groups of {GROUP}",
    )
