"""Packed weights: the quantizer's options, and the types and shapes of the tensors; the first weights of each are read."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.formats.safetensors import WIDTHS, Stored, write_safetensors
from gguf_tools.sources.checkpoint import CONFIG, SINGLE, open_checkpoint
from gguf_tools.sources.restore.unpack import unpack

MOST = 1 << 16
"""Bytes of a tensor; the file is written anew for each input."""
PATTERN = bytes(range(251))
STATE = "a.weight.quant_state.bitsandbytes__nf4"


def _config(method: str, **options: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **options}}


_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32, "strategy": "group"}
_GROUPS = {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS}}
DOCUMENTS: tuple[dict[str, Any], ...] = (
    {
        "config": _config("gptq", bits=4, group_size=32, sym=True, desc_act=True, checkpoint_format="gptq_v2"),
        "tensors": {
            "a.qweight": ["I32", [8, 32]],
            "a.qzeros": ["I32", [2, 4]],
            "a.scales": ["F16", [2, 32]],
            "a.g_idx": ["I32", [64]],
            "a.bias": ["F16", [32]],
        },
    },
    {
        "config": _config("awq", bits=4, group_size=32, version="gemm", zero_point=True),
        "tensors": {"a.qweight": ["I32", [64, 4]], "a.qzeros": ["I32", [2, 4]], "a.scales": ["F16", [2, 32]]},
    },
    {
        "config": _config("awq", bits=4, group_size=32, version="gemv"),
        "tensors": {"a.qweight": ["I32", [32, 8]], "a.qzeros": ["I32", [32, 1]], "a.scales": ["F16", [32, 8]]},
    },
    {
        "config": _config("compressed-tensors", format="pack-quantized", config_groups=_GROUPS),
        "tensors": {
            "a.weight_packed": ["I32", [32, 8]],
            "a.weight_scale": ["BF16", [32, 2]],
            "a.weight_shape": ["I64", [2]],
            "a.weight_zero_point": ["I32", [4, 2]],
        },
        "shape": [32, 64],
    },
    {
        "config": _config("compressed-tensors", format="int-quantized"),
        "tensors": {"a.weight": ["I8", [32, 64]], "a.weight_scale": ["F32", [32, 1]]},
    },
    {
        "config": _config("compressed-tensors", format="nvfp4-pack-quantized"),
        "tensors": {
            "a.weight_packed": ["U8", [32, 32]],
            "a.weight_scale": ["F8_E4M3", [32, 4]],
            "a.weight_global_scale": ["F32", [1]],
        },
    },
    {
        "config": {"quantization": {"bits": 4, "group_size": 32, "mode": "affine", "a": {"bits": 4, "group_size": 32}}},
        "tensors": {"a.weight": ["U32", [32, 8]], "a.scales": ["F16", [32, 2]], "a.biases": ["F16", [32, 2]]},
    },
    {
        "config": _config("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "tensors": {
            "a.weight": ["U8", [1024, 1]],
            "a.weight.absmax": ["U8", [32]],
            "a.weight.quant_map": ["F32", [16]],
            "a.weight.nested_absmax": ["F32", [1]],
            "a.weight.nested_quant_map": ["F32", [256]],
        },
        "state": {
            "quant_type": "nf4",
            "blocksize": 64,
            "dtype": "bfloat16",
            "shape": [32, 64],
            "nested_blocksize": 256,
            "nested_dtype": "float32",
            "nested_offset": 0.5,
        },
    },
    {
        "config": _config("bitsandbytes", load_in_8bit=True),
        "tensors": {"a.weight": ["I8", [32, 64]], "a.SCB": ["F32", [32]]},
    },
    {
        "config": _config("mxfp4"),
        "tensors": {"a.up_proj_blocks": ["U8", [2, 8, 2, 16]], "a.up_proj_scales": ["U8", [2, 8, 2]]},
    },
)
KEYS = tuple(
    dict.fromkeys(key for one in DOCUMENTS for key in (*one["tensors"], *one["config"].get("quantization_config", ())))
)
VALUES = (
    *WIDTHS,
    1,
    2,
    3,
    4,
    8,
    16,
    32,
    64,
    128,
    -1,
    0,
    [32, 64],
    [64, 4],
    [1],
    "gptq",
    "marlin",
    "gemv",
    "int32",
    "dense",
)


def _data(document: dict[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """The bytes of a tensor: a pattern, or the shape that it states."""
    count = prod(shape) * WIDTHS[dtype]
    if name.endswith("weight_shape") and isinstance(document.get("shape"), list):
        sizes = [size for size in document["shape"] if type(size) is int and abs(size) < 1 << 62]
        stated = b"".join(size.to_bytes(8, "little", signed=True) for size in sizes)
        return (stated + bytes(count))[:count]
    return (PATTERN * (count // len(PATTERN) + 1))[:count]


def _prepare(folder: Path) -> Prepared:
    def read(data: bytes) -> bool:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        if not isinstance(document, dict) or not isinstance(document.get("tensors"), dict):
            return False
        stored = []
        for name, entry in document["tensors"].items():
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list)):
                return False
            dtype, shape = entry
            if (
                not isinstance(dtype, str)
                or dtype not in WIDTHS
                or not all(type(size) is int and 0 <= size <= MOST for size in shape)
            ):
                return False
            if prod(shape) > MOST:
                return False
            content = _data(document, name, dtype, tuple(shape))
            stored.append(Stored(name=name, dtype=dtype, shape=tuple(shape), width=WIDTHS[dtype], pieces=[content]))
        if any(not name.isascii() for name in document["tensors"]):
            return False
        if "state" in document:
            text = json.dumps(document["state"]).encode()
            stored.append(Stored(name=STATE, dtype="U8", shape=(len(text),), width=1, pieces=[text]))
        write_safetensors(folder / SINGLE, stored, {})
        (folder / CONFIG).write_text(json.dumps(document.get("config", {})), "utf-8")
        unpacked = unpack(open_checkpoint(folder))
        for name, tensor in unpacked.tensors.items():
            if name not in document["tensors"] or tensor.dtype.startswith(("F3", "F1", "BF")):
                few = tensor.flat(0, min(tensor.size, 100))
                assert few.shape == (min(tensor.size, 100),)
        return bool(unpacked.packings)

    return Prepared([json.dumps(document).encode() for document in DOCUMENTS], read)


TARGETS = (
    Target(
        name="packed-weights",
        title="packed weights: options, types and shapes, and the first weights",
        prepare=_prepare,
        mutate=json_mutator(KEYS, VALUES),
        executions=50_000,
    ),
)
