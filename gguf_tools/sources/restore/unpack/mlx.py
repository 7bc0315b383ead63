"""MLX: integers packed along the inputs without gaps, with a scale and a bias for each group of inputs.

`weight` (…, outputs, inputs · bits / 32) of U32, `scales` and `biases` (…, outputs, groups). A weight is scale · q + bias. In the
modes mxfp4, nvfp4 and mxfp8 it is a small float times a scale stored as a byte, without biases. The config's `quantization` has
bits and group size, and those of single layers under their names.
Source: `mx.quantize` of the MLX documentation; `quantized.cpp` of MLX's CPU backend.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint
from gguf_tools.sources.restore.unpack.base import Affine, Bits, Floats, Groups
from gguf_tools.sources.restore.unpack.bits import dense_words
from gguf_tools.sources.restore.unpack.found import Found
from gguf_tools.sources.restore.unpack.minifloat import E2M1, E4M3, E8M0, ByteScales
from gguf_tools.sources.restore.unpack.stated import KEY, ORIGINAL, beside, misfit
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray

SCALES = ".scales"
BITS = (2, 3, 4, 5, 6, 8)
KEYS = frozenset({"group_size", "bits", "mode", "quant_method"})
MODES: Mapping[str, tuple[int, int, FloatArray, FloatArray]] = {
    "mxfp4": (4, 32, E2M1, E8M0),
    "nvfp4": (4, 16, E2M1, E4M3),
    "mxfp8": (8, 32, E4M3, E8M0),
}
"""Mode → bits, group size, the values of the codes, the values of the scales."""


def packed(checkpoint: Checkpoint) -> list[str]:
    """The layers (names without `.weight`) that MLX packed, by their tensors."""
    stems = (name.removesuffix(SCALES) for name in checkpoint.tensors if name.endswith(SCALES))
    return [stem for stem in stems if _dtype(checkpoint, f"{stem}.weight") == "U32"]


def _dtype(checkpoint: Checkpoint, name: str) -> str | None:
    tensor = checkpoint.tensors.get(name)
    return tensor.dtype if tensor is not None else None


def find(checkpoint: Checkpoint) -> list[Found]:
    """The weights that MLX packed. Errors as `unpack`."""
    stems = packed(checkpoint)
    stated = next((checkpoint.config[key] for key in ("quantization", KEY) if key in checkpoint.config), None)
    if stems and not isinstance(stated, Mapping):
        raise CheckpointError(
            f"{checkpoint.path / CONFIG}: has no object `quantization`, which says how {stems[0]} is packed; download it again"
        )
    return [_weight(checkpoint, stem, _options(checkpoint, stem, stated)) for stem in stems if stated is not None]


def _options(checkpoint: Checkpoint, stem: str, stated: Mapping[str, object]) -> Mapping[str, object]:
    """The options of one layer: its own if the config has some, for the rest the common ones.

    Raises UnsupportedError for an option that is neither known nor the name of a layer.
    """
    where = f"{checkpoint.path / CONFIG}: quantization"
    common = {key: value for key, value in stated.items() if key in KEYS}
    for key, value in stated.items():
        if key not in KEYS and not isinstance(value, Mapping | bool):
            raise UnsupportedError(f"{where}: has the option {key}, whose meaning is not known; {ORIGINAL}")
    own = stated.get(stem)
    if not isinstance(own, Mapping):
        return common
    unknown = next((key for key in own if key not in KEYS), None)
    if unknown is not None:
        raise UnsupportedError(f"{where}: {stem} has the option {unknown}, whose meaning is not known; {ORIGINAL}")
    return {**common, **own}


def _weight(checkpoint: Checkpoint, stem: str, options: Mapping[str, object]) -> Found:
    """The weight of one layer by its options."""
    name, where = f"{stem}.weight", f"{checkpoint.path / CONFIG}: quantization"
    mode = options.get("mode", "affine")
    if not isinstance(mode, str) or mode not in ("affine", *MODES):
        known = ", ".join(("affine", *MODES))
        raise UnsupportedError(f"{where}: mode of {stem} is {mode!r}; expected one of {known}; {ORIGINAL}")
    fixed = MODES.get(mode)
    bits, size = (options.get(key) for key in ("bits", "group_size"))
    bits, size = (fixed[0] if bits is None else bits, fixed[1] if size is None else size) if fixed else (bits, size)
    if type(bits) is not int or type(size) is not int or size < 1 or bits not in ((fixed[0],) if fixed else BITS):
        raise UnsupportedError(
            f"{where}: {stem} has {bits!r} bits in groups of {size!r}; expected {', '.join(map(str, BITS))} bits and a group "
            f"size; {ORIGINAL}"
        )
    words, scales = checkpoint.tensors[name], checkpoint.tensors[stem + SCALES]
    columns = scales.columns * size if scales.shape else 0
    if len(words.shape) < 2 or not columns or words.columns != dense_words(columns, bits):
        raise misfit(checkpoint, name, words, f"U32 of (outputs, inputs) in {bits} bits with {columns} inputs")
    if scales.shape[:-1] != words.shape[:-1]:
        raise misfit(checkpoint, stem + SCALES, scales, f"a row for each of {words.shape[:-1]} rows")
    shape = (*words.shape[:-1], columns)
    codes = Bits(tensor=words, bits=bits, count=columns)
    groups = Groups(columns, size)
    if fixed:
        if scales.dtype != "U8" or size != fixed[1]:
            raise misfit(checkpoint, stem + SCALES, scales, f"U8 for groups of {fixed[1]}")
        tensor = Affine(shape=shape, codes=codes, scale=ByteScales(scales, fixed[3]), groups=groups, table=fixed[2])
        return Found(name, tensor, (name, stem + SCALES), f"{mode}, {groups}")
    biases = _biases(checkpoint, stem, scales)
    tensor = Affine(shape=shape, codes=codes, scale=Floats(scales), groups=groups, bias=Floats(biases))
    return Found(name, tensor, (name, stem + SCALES, f"{stem}.biases"), f"{bits} bits, {groups}, with biases")


def _biases(checkpoint: Checkpoint, stem: str, scales: Tensor) -> Tensor:
    biases = beside(checkpoint, stem, "biases", f"{stem}.weight")
    if biases.shape != scales.shape:
        raise misfit(checkpoint, f"{stem}.biases", biases, f"the shape of its scales, {scales.shape}")
    return biases
