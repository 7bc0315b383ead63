"""Refusing weights packed in a format that `unpack` does not read, recognised by tensor names and dtypes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint

INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}

ORIGINAL = "or convert the original checkpoint"
DEQUANTIZE = f"load it in transformers, call the model's dequantize(), save it in 16 bit and convert that, {ORIGINAL}"


@dataclass(frozen=True)
class Packing:
    """A packing that cannot be read: what it is (`what`), a pattern of its tensors' names, and what the user can do.

    `integers`: others have tensors of these names too, but not of integers.
    """

    what: str
    pattern: str
    advice: str
    integers: bool = False


PACKINGS = (
    Packing(
        "belongs to a LoRA adapter",
        r".*\.lora_(A|B|embedding_A|embedding_B)(\..*)?",
        "give the adapter's folder with --lora, and its base model as SOURCE",
    ),
    Packing(
        "is a flattened parameter of FSDP",
        r"(.*\.)?_?flat_param(_\d+)?",
        "save the model with state_dict_type FULL_STATE_DICT and convert that",
    ),
    Packing(
        "is packed by bitsandbytes (4 bit) without its quant_state",
        r".*\.(quant_state\.bitsandbytes__\w+|absmax|nested_absmax|quant_map)",
        DEQUANTIZE,
    ),
    Packing(
        "is packed by HQQ",
        r".*\.W_q",
        f"dequantize it with hqq, save it in 16 bit and convert that, {ORIGINAL}",
        integers=True,  # a query projection may have this name
    ),
)
CODES = re.compile(r".*\.(qweight|weight_packed)|.*_proj_blocks")
"""Names of packed integers in the formats that `unpack` reads, if the config names another method."""


def refuse_packed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself. Raises UnsupportedError, naming a tensor, for an adapter or weights stored as packed integers."""
    for packing in PACKINGS:
        pattern = re.compile(packing.pattern)
        for name, tensor in checkpoint.tensors.items():
            if pattern.fullmatch(name) and (tensor.dtype in INTEGERS or not packing.integers):
                raise UnsupportedError(f"{checkpoint.path}: tensor {name} {packing.what}; {packing.advice}")
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype in INTEGERS and (name.endswith(".weight") or CODES.fullmatch(name)):
            method = _method(checkpoint.config)
            by = f" by {method}" if method else ""
            raise UnsupportedError(
                f"{checkpoint.path}: tensor {name} is stored as {tensor.dtype}, packed{by}, which is not read; {DEQUANTIZE}"
            )
    return checkpoint


def _method(config: Mapping[str, object]) -> str | None:
    stated = config.get("quantization_config")
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    return method if isinstance(method, str) else None
