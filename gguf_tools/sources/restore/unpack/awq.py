"""AWQ (AutoAWQ): integers of 4 bits with scales and zero points of groups of inputs.

Version `gemm`: `qweight` (inputs, outputs / 8), `qzeros` (groups, outputs / 8) and `scales` (groups, outputs); place i of a word
holds output `ORDER[i]` of its eight. Version `gemv`: `qweight` (outputs, inputs / 8), `qzeros` (outputs, words) and `scales`
(outputs, 8 · words) in plain order, with unused groups at the end of a row. A weight is scale · (q - zero).
Source: `awq/modules/linear/gemm.py`, `gemv.py` and `awq/utils/packing_utils.py` of AutoAWQ 0.2.9.
"""

from __future__ import annotations

from gguf_tools.errors import CheckpointError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.unpack.base import (
    Affine,
    Bits,
    BitsAcross,
    FloatColumns,
    Floats,
    Groups,
)
from gguf_tools.sources.restore.unpack.found import Found, without_zero_bias
from gguf_tools.sources.restore.unpack.stated import Stated, beside, groups_of, misfit

WEIGHT = ".qweight"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS, PER_WORD = 4, 8
KEYS = frozenset({
    "bits", "w_bit", "group_size", "q_group_size", "zero_point", "version", "format", "quant_method", "modules_to_not_convert",
    "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "meta", "sym", "desc_act", "dataset",
    "checkpoint_format", "lm_head", "pack_dtype", "method", "dynamic", "damp_percent", "true_sequential", "model_seqlen",
    "tokenizer",
})  # fmt: skip


def find(checkpoint: Checkpoint, said: Stated) -> list[Found]:
    """The weights that AWQ packed. Errors as `unpack`."""
    said.require_known("AWQ", KEYS)
    for key in ("bits", "w_bit"):
        said.choice(key, (BITS,), BITS)
    said.choice("desc_act", (False,), False)
    said.choice("pack_dtype", ("int32",), "int32")
    keys = [key for key in ("version", "format", "checkpoint_format") if said.options.get(key)]
    versions = {said.choice(key, ("gemm", "gemv")) for key in keys} or {"gemm"}
    if len(versions) > 1:
        raise CheckpointError(f"{said.where}: states both gemm and gemv; download the checkpoint again")
    read = _gemm if "gemm" in versions else _gemv
    names = [name for name in checkpoint.tensors if name.endswith(WEIGHT)]
    return [read(checkpoint, said, name.removesuffix(WEIGHT)) for name in names]


def _gemm(checkpoint: Checkpoint, said: Stated, stem: str) -> Found:
    """The weight of one layer in the version `gemm`."""
    packed = stem + WEIGHT
    words, scales, zeros = (beside(checkpoint, stem, name, packed) for name in ("qweight", "scales", "qzeros"))
    if words.dtype != "I32" or len(words.shape) != 2:
        raise misfit(checkpoint, packed, words, "I32 of two axes")
    inputs, outputs = words.shape[0], words.shape[1] * PER_WORD
    if len(scales.shape) != 2 or scales.shape[1] != outputs or not scales.shape[0]:
        raise misfit(checkpoint, f"{stem}.scales", scales, f"floats of shape (groups, {outputs})")
    if zeros.dtype != "I32" or zeros.shape != (scales.shape[0], words.shape[1]):
        raise misfit(checkpoint, f"{stem}.qzeros", zeros, f"I32 of shape ({scales.shape[0]}, {words.shape[1]})")
    groups = groups_of(checkpoint, f"{stem}.scales", scales, inputs, scales.shape[0])
    _agree(said, groups, stem)
    tensor = Affine(
        shape=(outputs, inputs),
        codes=BitsAcross(tensor=words, bits=BITS, order=ORDER),
        scale=FloatColumns(scales),
        groups=groups,
        zero=BitsAcross(tensor=zeros, bits=BITS, order=ORDER),
    )
    return _found(checkpoint, stem, tensor, groups)


def _gemv(checkpoint: Checkpoint, said: Stated, stem: str) -> Found:
    """The weight of one layer in the version `gemv`, whose group size is only stated in the config."""
    packed = stem + WEIGHT
    words, scales, zeros = (beside(checkpoint, stem, name, packed) for name in ("qweight", "scales", "qzeros"))
    if words.dtype != "I32" or len(words.shape) != 2:
        raise misfit(checkpoint, packed, words, "I32 of two axes")
    outputs, inputs = words.shape[0], words.shape[1] * PER_WORD
    size = next((said.options[key] for key in ("group_size", "q_group_size") if key in said.options), None)
    if type(size) is not int or not (size == -1 or 0 < size <= inputs):
        raise CheckpointError(
            f"{said.where}: group_size is {size!r}; expected a number of inputs; download the config again"
        )
    size = inputs if size == -1 else size
    count = -(-inputs // size)
    if zeros.dtype != "I32" or len(zeros.shape) != 2 or zeros.shape[0] != outputs or zeros.shape[1] * PER_WORD < count:
        raise misfit(checkpoint, f"{stem}.qzeros", zeros, f"I32 of shape ({outputs}, at least {-(-count // PER_WORD)})")
    if scales.shape != (outputs, zeros.shape[1] * PER_WORD):
        raise misfit(checkpoint, f"{stem}.scales", scales, f"floats of shape ({outputs}, {zeros.shape[1] * PER_WORD})")
    groups = Groups(inputs, size)
    tensor = Affine(
        shape=(outputs, inputs),
        codes=Bits(tensor=words, bits=BITS, count=inputs),
        scale=Floats(scales),
        groups=groups,
        zero=Bits(tensor=zeros, bits=BITS, count=zeros.shape[1] * PER_WORD),
    )
    return _found(checkpoint, stem, tensor, groups)


def _agree(said: Stated, groups: Groups, stem: str) -> None:
    for key in ("group_size", "q_group_size"):
        if said.options.get(key) != -1:
            said.agree(key, groups.size, stem)


def _found(checkpoint: Checkpoint, stem: str, tensor: Affine, groups: Groups) -> Found:
    used = [f"{stem}.{name}" for name in ("qweight", "scales", "qzeros")] + without_zero_bias(checkpoint, stem)
    return Found(f"{stem}.weight", tensor, tuple(used), f"4 bits, {groups}, asymmetric")
