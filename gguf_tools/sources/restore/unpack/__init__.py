"""Unpacking weights that another quantizer packed: the numbers that it stored, without quantizing again.

Each format's module finds its weights by the names and types of their tensors and checks the options in the config, a closed
world: an option whose meaning is not known is refused by name. Weights stay lazy and are computed a few rows at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gguf_tools.errors import CheckpointError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.packing import Packing
from gguf_tools.sources.restore.unpack import awq, bitsandbytes, compressed, gptq, mlx, mxfp4, torchao
from gguf_tools.sources.restore.unpack.found import Found
from gguf_tools.sources.restore.unpack.stated import stated

__all__ = ["unpack"]


def unpack(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with packed weights under their published names; one without packed weights is returned unchanged.

    Raises UnsupportedError for an option of the quantizer that is not known, CheckpointError for tensors that do not fit together
    or contradict the config.
    """
    by_format = {name: found for name, found in _find(checkpoint).items() if found}
    if not by_format:
        return checkpoint
    all_found = [one for found in by_format.values() for one in found]
    tensors = dict(checkpoint.tensors)
    for one in all_found:
        for name in one.used:
            if tensors.pop(name, None) is None:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor {name} is missing for {one.name}; download the checkpoint again"
                )
        if one.name in tensors:
            raise CheckpointError(
                f"{checkpoint.path}: has the tensor {one.name} beside its packed form; download it again"
            )
        tensors[one.name] = one.tensor
    packings = [packing for name, found in by_format.items() for packing in _counted(name, found)]
    notes = [packing.note for packing in packings]
    return replace(
        checkpoint, tensors=tensors, packings=(*checkpoint.packings, *packings), notes=(*checkpoint.notes, *notes)
    )


def _find(checkpoint: Checkpoint) -> dict[str, list[Found]]:
    """The packed weights by the name of their format."""
    said = stated(checkpoint)
    names = checkpoint.tensors
    found: dict[str, list[Found]] = {}
    if any(name.endswith(gptq.WEIGHT) for name in names):
        indexed = any(name.endswith(".g_idx") for name in names)
        if said.method == "gptq" or (said.method is None and indexed):
            found["GPTQ"] = gptq.find(checkpoint, said)
        elif said.method == "awq" or said.method is None:
            found["AWQ"] = awq.find(checkpoint, said)
    if said.method in (None, "bitsandbytes"):
        found["bitsandbytes"] = bitsandbytes.find(checkpoint, said)
    if compressed.stated_by(said):
        compressed.check(said)
    if compressed.stated_by(said) or said.method is None:
        found["compressed-tensors"] = compressed.find(checkpoint, said)
    if said.method in (None, "mxfp4"):
        found["MXFP4"] = mxfp4.find(checkpoint, said)
    if said.method in (None, "torchao"):
        found["torchao"] = torchao.find(checkpoint, said)
    if said.method in (None, "mlx"):
        found["MLX"] = mlx.find(checkpoint)
    return found


def _counted(name: str, found: list[Found]) -> list[Packing]:
    """The packings of one format, one for each scheme, the most weights first."""
    tensors: Counter[str] = Counter(one.scheme for one in found)
    weights: Counter[str] = Counter()
    for one in found:
        weights[one.scheme] += one.tensor.size
    return [Packing(format=name, scheme=s, tensors=tensors[s], weights=count) for s, count in weights.most_common()]
