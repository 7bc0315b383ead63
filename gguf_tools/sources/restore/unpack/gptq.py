"""GPTQ (AutoGPTQ, GPTQModel): integers packed along the inputs, with scales and zero points of groups of inputs.

`qweight` (inputs · bits / 32, outputs) has a column per output; `scales` are (groups, outputs), `qzeros` (groups, outputs · bits
/ 32), and `g_idx` (inputs) is the group of each input. A weight is scale · (q - zero). `gptq` stores zero - 1, `gptq_v2` zero.
Source: `BaseQuantLinear.dequantize_weight` and `convert_gptq_v1_to_v2_format` of GPTQModel 7.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.errors import CheckpointError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.unpack.base import Affine, BitColumns, BitsAcross, FloatColumns, Groups
from gguf_tools.sources.restore.unpack.found import Found, without_zero_bias
from gguf_tools.sources.restore.unpack.stated import Stated, beside, misfit
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray

WEIGHT = ".qweight"
BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
KEYS = frozenset({
    # of the numbers
    "bits", "group_size", "sym", "desc_act", "checkpoint_format", "format", "pack_dtype", "is_marlin_format", "quant_method",
    "method", "dynamic", "lm_head", "modules_in_block_to_quantize", "modules_to_not_convert",
    # of how they were found or are to be computed with
    "act_group_aware", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs", "damp_auto_increment",
    "damp_percent", "dataset", "desc_act_type", "disable_exllama", "exllama_config", "hyb_act", "max_input_length", "meta",
    "model_file_base_name", "model_name_or_path", "model_seqlen", "module_name_preceding_first_block", "mse", "pad_token_id",
    "static_groups", "tokenizer", "true_sequential", "use_cuda_fp16", "use_exllama", "version",
})  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class GPTQWeight(Affine):
    """A weight; in the format that stores zero - 1, a stored 2^bits - 1 is refused: programs read it as 2^bits or as 0."""

    most: int
    stored_zeros: Tensor

    def zeros(self, first: int, last: int) -> FloatArray:
        found = super().zeros(first, last)
        if self.add_to_zero and found.size and found.max() > self.most:
            raise CheckpointError(
                f"tensor {', '.join(self.stored_zeros.sources)} holds the zero point {self.most} in GPTQ's first format, which "
                f"some programs read as {self.most + 1} and some as 0; save it in the format gptq_v2"
            )
        return found


def find(checkpoint: Checkpoint, said: Stated) -> list[Found]:
    """The weights that GPTQ packed. Errors as `unpack`."""
    said.require_known("GPTQ", KEYS)
    said.choice("is_marlin_format", (False,), False)
    said.choice("pack_dtype", ("int32",), "int32")
    formats = {said.choice(key, FORMATS, "gptq") for key in ("checkpoint_format", "format") if said.options.get(key)}
    first = "gptq_v2" not in formats
    names = [name for name in checkpoint.tensors if name.endswith(WEIGHT)]
    return [_weight(checkpoint, said, name.removesuffix(WEIGHT), first) for name in names]


def _weight(checkpoint: Checkpoint, said: Stated, stem: str, first: bool) -> Found:
    """The weight of one layer; `first`: in the format that stores zero - 1."""
    packed = stem + WEIGHT
    words, scales, zeros = (beside(checkpoint, stem, name, packed) for name in ("qweight", "scales", "qzeros"))
    index = checkpoint.tensors.get(f"{stem}.g_idx")
    if words.dtype != "I32" or len(words.shape) != 2:
        raise misfit(checkpoint, packed, words, "I32 of two axes")
    if len(scales.shape) != 2 or scales.shape[1] != words.shape[1] or not scales.shape[0]:
        raise misfit(checkpoint, f"{stem}.scales", scales, f"floats of shape (groups, {words.shape[1]})")
    groups, outputs = scales.shape
    bits = _bits(checkpoint, said, stem, words, index)
    inputs = index.shape[0] if index is not None and len(index.shape) == 1 else words.shape[0] * 32 // bits
    if words.shape[0] != -(-inputs * bits // 32):
        raise misfit(
            checkpoint, packed, words, f"{-(-inputs * bits // 32)} rows of words for {inputs} inputs of {bits} bits"
        )
    if zeros.dtype != "I32" or zeros.shape != (groups, -(-outputs * bits // 32)):
        raise misfit(checkpoint, f"{stem}.qzeros", zeros, f"I32 of shape ({groups}, {-(-outputs * bits // 32)})")
    spread = _groups(said, stem, index, inputs, groups)
    tensor = GPTQWeight(
        shape=(outputs, inputs),
        codes=BitColumns(tensor=words, bits=bits, count=inputs),
        scale=FloatColumns(scales),
        groups=spread,
        zero=BitsAcross(tensor=zeros, bits=bits),
        add_to_zero=1 if first else 0,
        most=(1 << bits) - 1,
        stored_zeros=zeros,
    )
    used = [packed, f"{stem}.scales", f"{stem}.qzeros", *([f"{stem}.g_idx"] if index is not None else [])]
    symmetric = said.options.get("sym")
    kind = (", symmetric" if symmetric else ", asymmetric") if isinstance(symmetric, bool) else ""
    used += without_zero_bias(checkpoint, stem)
    runs = spread if said.options.get("desc_act") else Groups(inputs, spread.size)
    return Found(f"{stem}.weight", tensor, tuple(used), f"{bits} bits, {runs}{kind}")


def _bits(checkpoint: Checkpoint, said: Stated, stem: str, words: Tensor, index: Tensor | None) -> int:
    """Bits of a weight's integers: by the shapes if `g_idx` says how many inputs there are, else as stated."""
    if index is None or not index.size:
        return int(said.choice("bits", BITS))
    found = next((bits for bits in BITS if -(-index.size * bits // 32) == words.shape[0]), None)
    if found is None:
        raise misfit(checkpoint, stem + WEIGHT, words, f"words of 2, 3, 4 or 8 bits for each of {index.size} inputs")
    if not said.options.get("dynamic"):
        said.agree("bits", found, stem)
    return found


def _groups(said: Stated, stem: str, index: Tensor | None, inputs: int, groups: int) -> Groups:
    """The group of each input: as `g_idx` says, if there is one, else runs of one size."""
    size = -(-inputs // groups)
    wanted = said.options.get("group_size")
    if type(wanted) is int and 0 < wanted < inputs and not said.options.get("dynamic"):
        said.agree("group_size", size if -(-inputs // wanted) != groups else wanted, stem)
        size = wanted
    # Without desc_act the index only repeats the runs; it decides nevertheless.
    return Groups(inputs, size, index, groups)
