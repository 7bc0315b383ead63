"""torchao: integers of up to 8 bits stored as I8, with scales and zero points of groups of inputs.

A tensor subclass `x.weight` is saved as `x._weight_qdata` (outputs, inputs), and `x._weight_scale` and `x._weight_zero_point`
(outputs, groups); the file's metadata have JSON under the weight's name. A weight is scale · (q - zero).
Source: `torchao/prototype/safetensors`, `Int8Tensor` and `IntxUnpackedToInt8Tensor` of torchao 0.18.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.unpack.base import Affine, Floats, Groups, Integers, Reader
from gguf_tools.sources.restore.unpack.found import Found
from gguf_tools.sources.restore.unpack.stated import ORIGINAL, Stated, misfit
from gguf_tools.tensors.views import Reshaped

CODES = re.compile(r"(.*)\._(\w+)_qdata")
TYPES = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
KEYS = frozenset({
    "quant_method", "quant_type", "quant_type_kwargs", "modules_to_not_convert", "include_input_output_embeddings",
    "untie_embedding_weights",
})  # fmt: skip
DATA = frozenset({"act_quant_kwargs", "activation_quantization", "reduce_range", "block_size", "dtype", "target_dtype"})
"""Known attributes; those of activations do not change weights."""
PARTS = frozenset({"qdata", "scale", "zero_point"})
MOST = 1 << 16
"""Most characters of the JSON of one weight."""


def find(checkpoint: Checkpoint, said: Stated) -> list[Found]:
    """The weights that torchao packed. Errors as `unpack`."""
    found = [match for match in map(CODES.fullmatch, checkpoint.tensors) if match]
    if found:
        said.require_known("torchao", KEYS)
    return [_weight(checkpoint, f"{match[1]}.{match[2]}", f"{match[1]}._{match[2]}_") for match in found]


def _weight(checkpoint: Checkpoint, name: str, prefix: str) -> Found:
    """The weight `name`, whose parts begin with `prefix`."""
    size = _group_size(checkpoint, name)
    codes, scale = checkpoint.tensors[f"{prefix}qdata"], checkpoint.tensors.get(f"{prefix}scale")
    if codes.dtype != "I8" or len(codes.shape) != 2:
        raise misfit(checkpoint, f"{prefix}qdata", codes, "I8 of two axes")
    rows, columns = codes.shape
    if scale is None:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {prefix}scale is missing beside {prefix}qdata; download it again"
        )
    everywhere = size[0] == rows
    count = columns // size[1] if size[1] and columns % size[1] == 0 else 0
    shape = (1 if everywhere else rows, count)
    if size[0] not in (1, rows) or not count or scale.size != shape[0] * count:
        raise misfit(checkpoint, f"{prefix}scale", scale, f"a scale for each block of {size[0]} × {size[1]} weights")
    zero: Reader | int = 0
    zeros = checkpoint.tensors.get(f"{prefix}zero_point")
    used = [f"{prefix}qdata", f"{prefix}scale"]
    if zeros is not None:
        used.append(f"{prefix}zero_point")
        if zeros.dtype != "I8" or zeros.size != scale.size:
            raise misfit(checkpoint, f"{prefix}zero_point", zeros, f"I8 of shape {scale.shape}")
        zero = Integers(Reshaped(zeros, shape))
    groups = Groups(columns, size[1])
    tensor = Affine(
        shape=codes.shape,
        codes=Integers(codes),
        scale=Floats(Reshaped(scale, shape)),
        groups=groups,
        zero=zero,
        everywhere=everywhere,
    )
    return Found(name, tensor, tuple(used), f"integers in 8 bits, {'one scale' if everywhere else groups}")


def _group_size(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    """The size of the blocks that have one scale, (outputs, inputs), by the JSON in the file's metadata.

    Raises CheckpointError if it is broken, UnsupportedError for another kind of tensor, or an attribute that is not known.
    """
    try:
        stated: Any = json.loads(checkpoint.metadata.get(name, "")[:MOST])
    except (ValueError, RecursionError):
        stated = None
    data = stated.get("_data") if isinstance(stated, Mapping) else None
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"{checkpoint.path}: the metadata do not say what {name} is; download the checkpoint again"
        )
    kind, parts = stated.get("_type"), stated.get("_tensor_data_names")
    if kind not in TYPES:
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {name} is a {kind} of torchao; expected {' or '.join(TYPES)}; {ORIGINAL}"
        )
    unknown = [key for key in data if key not in DATA]
    unknown += [str(part) for part in parts if part not in PARTS] if isinstance(parts, list) else []
    if unknown:
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {name} has the attribute {unknown[0]}, whose meaning is not known; {ORIGINAL}"
        )
    size = data.get("block_size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise CheckpointError(
            f"{checkpoint.path}: block_size of {name} is {size!r}; expected two numbers; download it again"
        )
    return size[0], size[1]
