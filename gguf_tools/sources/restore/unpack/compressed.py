"""compressed-tensors (llm-compressor): integers packed in words or stored as I8, and 4-bit floats.

`weight_packed` (…, outputs, words) of I32 holds q + 2^(bits-1) (pack-quantized), of U8 pairs of 4-bit floats (mxfp4, nvfp4);
`weight` of I8 holds q (int-quantized). `weight_scale` is (outputs, groups), (outputs, 1) or one number. A weight is
scale · (q - zero). `weight_g_idx` has the group of each input. FP8 weights are read by `restore.fp8`.
Source: the compressors of compressed-tensors 0.20 (`pack_quantized/helpers.py`, `forward_helpers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.unpack.base import Affine, Bits, BitsDown, Floats, Groups, Integers, Reader, leading
from gguf_tools.sources.restore.unpack.bits import dense_words, padded_words
from gguf_tools.sources.restore.unpack.found import Found
from gguf_tools.sources.restore.unpack.minifloat import E2M1, E4M3, E8M0, ByteScales
from gguf_tools.sources.restore.unpack.stated import ORIGINAL, Stated, beside, groups_of, misfit
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped

PACKED, SCALE = ".weight_packed", ".weight_scale"
KEYS = frozenset({
    "config_groups", "quant_method", "kv_cache_scheme", "format", "quantization_status", "global_compression_ratio", "ignore",
    "sparsity_config", "transform_config", "moe_sparsity_config", "version", "run_compressed", "dequantize",
    "use_optimized_inference",
})  # fmt: skip
GROUP_KEYS = frozenset({"targets", "weights", "input_activations", "output_activations", "format"})
WEIGHT_KEYS = frozenset({
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype",
    "zp_dtype", "observer", "observer_kwargs",
})  # fmt: skip
FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense", "fakequant",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized",
)  # fmt: skip


def stated_by(said: Stated) -> bool:
    """Whether the config names this library."""
    return said.method in ("compressed-tensors", "compressed_tensors")


def check(said: Stated) -> None:
    """Raise UnsupportedError for an option that is not known, a format that is not read, sparsity, or a transform of weights."""
    said.require_known("compressed-tensors", KEYS)
    said.choice("format", FORMATS, "dense")
    for key in ("transform_config", "moe_sparsity_config"):
        if said.options.get(key):
            raise UnsupportedError(f"{said.where}: {key} is not supported; {ORIGINAL}")
    sparse = said.options.get("sparsity_config")
    if sparse and (not isinstance(sparse, Mapping) or sparse.get("format", "dense") != "dense"):
        raise UnsupportedError(f"{said.where}: sparsity_config is not supported; {ORIGINAL}")
    for name, group in _groups(said):
        for key, known, part in (("", GROUP_KEYS, group), (".weights", WEIGHT_KEYS, group.get("weights"))):
            unknown = next((k for k in part if k not in known), None) if isinstance(part, Mapping) else None
            if unknown is not None:
                raise UnsupportedError(
                    f"{said.where}: config_groups.{name}{key} has the option {unknown}, whose meaning is not known; {ORIGINAL}"
                )
        Stated(f"{said.where}: config_groups.{name}", group).choice("format", FORMATS, "dense")


def _groups(said: Stated) -> Iterator[tuple[str, Mapping[str, object]]]:
    found = said.options.get("config_groups")
    for name, group in found.items() if isinstance(found, Mapping) else ():
        if isinstance(group, Mapping):
            yield str(name), group


def _stated_bits(said: Stated) -> list[int]:
    """The numbers of bits that the config names, 4 and 8 if it names none."""
    found = []
    for _, group in _groups(said):
        weights = group.get("weights")
        bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
        if type(bits) is int and 1 <= bits <= 8:
            found.append(bits)
    return list(dict.fromkeys(found)) or [4, 8]


def find(checkpoint: Checkpoint, said: Stated) -> list[Found]:
    """The weights that compressed-tensors packed, other than FP8. Errors as `unpack`."""
    found = []
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(PACKED):
            stem = name.removesuffix(PACKED)
            found.append(_packed(checkpoint, said, stem) if tensor.dtype == "I32" else _floats(checkpoint, stem))
        elif tensor.dtype == "I8" and name.endswith(".weight") and name + "_scale" in checkpoint.tensors:
            found.append(_plain(checkpoint, name.removesuffix(".weight")))
    return found


def _packed(checkpoint: Checkpoint, said: Stated, stem: str) -> Found:
    """The weight of a layer in the format pack-quantized."""
    words, scale = checkpoint.tensors[stem + PACKED], beside(checkpoint, stem, "weight_scale", stem + PACKED)
    columns = _columns(checkpoint, stem, words)
    bits, gaps = _bits(checkpoint, said, stem, words, columns)
    rows = leading(words)
    used = [stem + PACKED, stem + SCALE, f"{stem}.weight_shape"]
    groups, scales, everywhere = _scales(checkpoint, stem, scale, rows, columns)
    zero: Reader | int = 1 << (bits - 1)
    add = 0
    zeros = checkpoint.tensors.get(f"{stem}.weight_zero_point")
    if zeros is not None:
        used.append(f"{stem}.weight_zero_point")
        zero, add = _zeros(checkpoint, stem, zeros, scale, bits, gaps)
    index = checkpoint.tensors.get(f"{stem}.weight_g_idx")
    if index is not None:
        used.append(f"{stem}.weight_g_idx")
        groups = _ordered(checkpoint, stem, index, groups, scale.shape[-1])
    tensor = Affine(
        shape=(*words.shape[:-1], columns),
        codes=Bits(tensor=words, bits=bits, count=columns, gaps=gaps),
        scale=Floats(scales),
        groups=groups,
        zero=zero,
        add_to_zero=add,
        everywhere=everywhere,
    )
    kind = "symmetric" if zeros is None else "asymmetric"
    return Found(f"{stem}.weight", tensor, _with_runtime(checkpoint, stem, used), f"{bits} bits, {groups}, {kind}")


def _with_runtime(checkpoint: Checkpoint, stem: str, used: list[str]) -> tuple[str, ...]:
    """The names with that of the scale of the inputs of a layer, which only an engine that computes in 4 bits needs."""
    name = f"{stem}.input_global_scale"
    return (*used, name) if name in checkpoint.tensors else tuple(used)


def _columns(checkpoint: Checkpoint, stem: str, words: Tensor) -> int:
    """The columns of a packed weight, by its `weight_shape`."""
    name = f"{stem}.weight_shape"
    shape = beside(checkpoint, stem, "weight_shape", stem + PACKED)
    if shape.dtype not in ("I64", "I32") or not 2 <= shape.size <= 3:
        raise misfit(checkpoint, name, shape, "I64 of two sizes")
    sizes = [int(size) for size in shape.numbers(0, shape.size)]
    if len(words.shape) < 2 or prod(sizes[:-1]) not in (leading(words), words.shape[-2]) or not 0 < sizes[-1] < 1 << 31:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is {tuple(sizes)}, which does not fit {stem}{PACKED} of shape {words.shape}; "
            "download the checkpoint again"
        )
    return sizes[-1]


def _bits(checkpoint: Checkpoint, said: Stated, stem: str, words: Tensor, columns: int) -> tuple[int, bool]:
    """(bits, whether words have unused bits) of those that the config names, by the length of a row.

    Version 0.9 of the library and earlier ones left bits of a word unused that are too few for an integer.
    """
    stated = _stated_bits(said)
    for gaps, length in ((False, dense_words), (True, padded_words)):
        found = [bits for bits in stated if length(columns, bits) == words.columns]
        if len(found) == 1:
            return found[0], gaps
    many = " or ".join(map(str, stated))
    raise misfit(checkpoint, stem + PACKED, words, f"rows of words for {columns} integers of {many} bits")


def _scales(checkpoint: Checkpoint, stem: str, scale: Tensor, rows: int, columns: int) -> tuple[Groups, Tensor, bool]:
    """(groups of columns, scales as (rows, groups), whether one row of scales is for all rows)."""
    if scale.size == 1:
        return Groups(columns, columns), Reshaped(scale, (1, 1)), True
    count = scale.size // rows if rows and scale.size % rows == 0 else 0
    fits = scale.shape[-1:] == (count,) or scale.shape == (rows,)
    if not count or not fits:
        raise misfit(checkpoint, stem + SCALE, scale, f"one scale, or (rows, groups) with {rows} rows")
    return groups_of(checkpoint, stem + SCALE, scale, columns, count), Reshaped(scale, (rows, count)), False


def _zeros(
    checkpoint: Checkpoint, stem: str, zeros: Tensor, scale: Tensor, bits: int, gaps: bool
) -> tuple[Reader, int]:
    """The reader of the zero points, and what is to be added to them: they are packed along the outputs, or I8."""
    name = f"{stem}.weight_zero_point"
    if zeros.dtype == "I8" and zeros.shape == scale.shape:
        return Integers(Reshaped(zeros, (leading(zeros), zeros.columns))), 1 << (bits - 1)
    rows = scale.shape[0]
    length = (padded_words if gaps else dense_words)(rows, bits)
    if zeros.dtype != "I32" or len(scale.shape) != 2 or zeros.shape != (length, scale.shape[1]):
        raise misfit(
            checkpoint, name, zeros, f"I32 of shape ({length}, {scale.shape[-1]}), or I8 of the shape of the scales"
        )
    return BitsDown(tensor=zeros, bits=bits, gaps=gaps), 0


def _ordered(checkpoint: Checkpoint, stem: str, index: Tensor, groups: Groups, count: int) -> Groups:
    """The groups as `weight_g_idx` assigns columns to them; -1 in it means that they are in order."""
    name = f"{stem}.weight_g_idx"
    if index.dtype not in ("I32", "I64") or index.shape != (groups.columns,):
        raise misfit(checkpoint, name, index, f"I32 of shape ({groups.columns},)")
    return Groups(groups.columns, groups.size, index, count)


def _plain(checkpoint: Checkpoint, stem: str) -> Found:
    """The weight of a layer whose integers are stored as I8."""
    name = f"{stem}.weight"
    codes, scale = checkpoint.tensors[name], checkpoint.tensors[stem + SCALE]
    if len(codes.shape) < 2:
        raise misfit(checkpoint, name, codes, "I8 of two axes")
    used = [name, stem + SCALE]
    groups, scales, everywhere = _scales(checkpoint, stem, scale, leading(codes), codes.columns)
    zero: Reader | int = 0
    zeros = checkpoint.tensors.get(f"{stem}.weight_zero_point")
    if zeros is not None:
        used.append(f"{stem}.weight_zero_point")
        if zeros.dtype != "I8" or zeros.size != scale.size:
            raise misfit(checkpoint, f"{stem}.weight_zero_point", zeros, f"I8 of shape {scale.shape}")
        zero = Integers(Reshaped(zeros, scales.shape))
    tensor = Affine(
        shape=codes.shape, codes=Integers(codes), scale=Floats(scales), groups=groups, zero=zero, everywhere=everywhere
    )
    kind = "symmetric" if zeros is None else "asymmetric"
    return Found(name, tensor, tuple(used), f"8 bits, {'one scale' if everywhere else groups}, {kind}")


def _floats(checkpoint: Checkpoint, stem: str) -> Found:
    """The weight of a layer of 4-bit floats: MXFP4, or NVFP4, which has a scale of the whole tensor besides."""
    packed, scale = checkpoint.tensors[stem + PACKED], beside(checkpoint, stem, "weight_scale", stem + PACKED)
    if packed.dtype != "U8" or len(packed.shape) < 2:
        raise misfit(checkpoint, stem + PACKED, packed, "I32, or U8 with two 4-bit floats in a byte")
    columns = packed.columns * 2
    size, what, table = (32, "MXFP4", E8M0) if scale.dtype == "U8" else (16, "NVFP4", E4M3)
    if scale.dtype not in ("U8", "F8_E4M3") or scale.shape != (*packed.shape[:-1], -(-columns // size)):
        raise misfit(checkpoint, stem + SCALE, scale, f"U8 or F8_E4M3 for each group of 32 or 16 of {columns} columns")
    used = [stem + PACKED, stem + SCALE]
    divisor = None
    if what == "NVFP4":
        divisor = beside(checkpoint, stem, "weight_global_scale", stem + PACKED)
        used.append(f"{stem}.weight_global_scale")
        if divisor.size != 1 or divisor.dtype != "F32":
            raise misfit(checkpoint, f"{stem}.weight_global_scale", divisor, "one F32")
    tensor = Affine(
        shape=(*packed.shape[:-1], columns),
        codes=Bits(tensor=packed, bits=4, count=columns),
        scale=ByteScales(scale, table, divisor),
        groups=Groups(columns, size),
        table=E2M1,
    )
    return Found(f"{stem}.weight", tensor, _with_runtime(checkpoint, stem, used), f"{what}, groups of {size}")
