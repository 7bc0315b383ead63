"""Refusing weights packed by another quantizer, recognised by tensor names and dtypes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint

INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}

ORIGINAL = "or convert the original checkpoint"
DEQUANTIZE = f"load it in transformers, call the model's dequantize(), save it in 16 bit and convert that, {ORIGINAL}"


@dataclass(frozen=True)
class Packing:
    """A packing that cannot be read: what it is (`what`), a pattern of its tensors' names, and what the user can do.

    `also` is a further condition on the checkpoint and the tensor's name.
    """

    what: str
    pattern: str
    advice: str
    also: Callable[[Checkpoint, str], bool] = lambda _checkpoint, _name: True


def _unsigned_weight(checkpoint: Checkpoint, name: str) -> bool:
    weight = checkpoint.tensors.get(name.rpartition(".")[0] + ".weight")
    return weight is not None and weight.dtype == "U32"


def _has_group_index(checkpoint: Checkpoint, name: str) -> bool:
    return name.rpartition(".")[0] + ".g_idx" in checkpoint.tensors


PACKINGS = (
    Packing(
        "belongs to a LoRA adapter",
        r".*\.lora_(A|B|embedding_A|embedding_B)(\..*)?",
        "merge it into its base model (peft: merge_and_unload, then save_pretrained) and convert the result",
    ),
    Packing(
        "is a flattened parameter of FSDP",
        r"(.*\.)?_?flat_param(_\d+)?",
        "save the model with state_dict_type FULL_STATE_DICT and convert that",
    ),
    Packing(
        "is packed by bitsandbytes (4 bit)",
        r".*\.(quant_state\.bitsandbytes__\w+|absmax|nested_absmax|quant_map)",
        DEQUANTIZE,
    ),
    Packing("is packed by bitsandbytes (8 bit)", r".*\.SCB", DEQUANTIZE),
    Packing(
        "is packed by MLX",
        r".*\.scales",
        f"unpack it with `mlx_lm.convert --dequantize` and convert that, {ORIGINAL}",
        _unsigned_weight,
    ),
    Packing(
        "is packed by GPTQ",
        r".*\.qweight",
        f"dequantize it with GPTQModel, save it in 16 bit and convert that, {ORIGINAL}",
        _has_group_index,
    ),
    Packing(
        "is packed by AWQ",
        r".*\.qweight",
        f"dequantize it with AutoAWQ, save it in 16 bit and convert that, {ORIGINAL}",
    ),
    Packing(
        "is packed by compressed-tensors",
        r".*\.weight_packed",
        f"decompress it with the compressed-tensors library, save it in 16 bit and convert that, {ORIGINAL}",
    ),
    Packing("is packed by HQQ", r".*\.W_q", f"dequantize it with hqq, save it in 16 bit and convert that, {ORIGINAL}"),
    Packing("is packed as MXFP4", r".*_proj_blocks", DEQUANTIZE),
)


def refuse_packed(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError, naming a tensor, for an adapter or weights stored as packed integers."""
    for packing in PACKINGS:
        pattern = re.compile(packing.pattern)
        for name in checkpoint.tensors:
            if pattern.fullmatch(name) and packing.also(checkpoint, name):
                raise UnsupportedError(f"{checkpoint.path}: tensor {name} {packing.what}; {packing.advice}")
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype in INTEGERS and name.endswith(".weight"):
            method = _method(checkpoint.config)
            by = f" by {method}" if method else ""
            raise UnsupportedError(
                f"{checkpoint.path}: tensor {name} is stored as {tensor.dtype}, packed{by}; {DEQUANTIZE}"
            )


def _method(config: Mapping[str, object]) -> str | None:
    stated = config.get("quantization_config")
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    return method if isinstance(method, str) else None
