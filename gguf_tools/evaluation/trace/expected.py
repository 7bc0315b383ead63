"""What a file should hold: the model that the reference runs, the same with the weights rounded to the file's types, and the
file's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.evaluation.reference_source import ReferenceSource
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.source import GGUFSource, GGUFTensor
from gguf_tools.model.spec import Attention, Model
from gguf_tools.targets.base import Lowered
from gguf_tools.targets.planner import plan_for
from gguf_tools.targets.registry import lift, target_named
from gguf_tools.tensors.base import InMemory, Tensor
from quant.encode import FloatArray, decode_rows, encode_rows
from quant.types import TensorType


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The source's model after the rewrites that the file's architecture needs, and what it is lowered to.

    `gelu` is the target's bound for its activation function. `notes` say what the architecture cannot express. `query_scale` is
    what the target multiplies queries with, by layer, where its graph scales scores by another factor.
    """

    model: Model
    lowered: Lowered
    gelu: float = 0.0
    notes: tuple[str, ...] = ()
    query_scale: Mapping[int, float]

    def names(self, n: int, role: str) -> tuple[str, ...]:
        """The file's tensors that layer n's role (`-1` for none) is stored in."""
        tensors = self.model.tensors if n < 0 else self.model.layer_tensors[n]
        tensor = tensors.get(role)
        if tensor is None:
            return ()
        mine, place = set(tensor.sources), f"blk.{n}." if n >= 0 else ""
        return tuple(
            output.name
            for output in self.lowered.tensors
            if mine & set(output.tensor.sources)
            and output.name.startswith(place)
            and (n >= 0 or "blk." not in output.name)
        )


def expected_of(found: ReferenceSource, source: GGUFSource) -> Expected:
    """The model that a file of this architecture should hold.

    Raises UnsupportedError if there is no torch reference of the source, or the architecture has no target.
    """
    if found.model is None:
        raise UnsupportedError(
            f"{found.path}: tinyq has no family for it, so that its intermediates are not known; compare the logits with "
            "tinyq eval"
        )
    if keys.APPROXIMATE in source.header.metadata and found.origin != "rebuilt":
        raise UnsupportedError(
            f"{source.path}: was converted with --allow-approximate, so that its weights are not the source's; trace it against "
            "itself (--reference with the file)"
        )
    made, lacks = plan_for(found.model, source.architecture)
    notes = tuple(f"the architecture {source.architecture} does not support {lack}" for lack in lacks)
    try:
        lowered = made.lower()
    except (InputError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as error:
        why = str(error) if isinstance(error, InputError) else "it has other parts or sizes"
        raise UnsupportedError(
            f"{source.path}: {found.path} cannot be converted to {source.architecture} ({why}); give its own source"
        ) from error
    target = target_named(source.architecture)
    return Expected(
        model=made.model,
        lowered=lowered,
        gelu=target.nmse,
        notes=notes,
        query_scale=_query_scales(made.model, as_file(source, lowered, {})),
    )


def as_file(source: GGUFSource, lowered: Lowered, tensors: Mapping[str, Tensor]) -> Model:
    """The model as the file's architecture lifts it, from the lowered metadata and tensors, some of them replaced.

    The file's own metadata count only outside the architecture's keys.
    """
    own = f"{source.architecture}."
    metadata = {key: field for key, field in source.header.metadata.items() if not key.startswith(own)}
    metadata |= lowered.metadata
    whole = {output.name: tensors.get(output.name, output.tensor) for output in lowered.tensors}
    return lift(GGUFSource(replace(source.header, metadata=metadata), whole))


def rounded(source: GGUFSource, expected: Expected) -> Model | None:
    """The expected model with each tensor rounded to the type that the file has it in; None if nothing is rounded.

    Types that tinyq cannot encode, and tensors of another shape than the source's, stay as they are.
    """
    changed = {}
    for output in expected.lowered.tensors:
        stored = source.tensors.get(output.name)
        if not isinstance(stored, GGUFTensor) or stored.entry.type.name == "f32":
            continue
        if stored.shape == output.tensor.shape and stored.entry.type.encodes:
            changed[output.name] = rounded_to(output.tensor, stored.entry.type)
    return as_file(source, expected.lowered, changed) if changed else None


def rounded_to(tensor: Tensor, dtype: TensorType) -> InMemory:
    """The tensor after encoding to and decoding from a type, without importance matrix."""
    rows = tensor.array().reshape(-1, tensor.columns)
    values: FloatArray = decode_rows(encode_rows(rows, dtype), dtype, tensor.columns).reshape(tensor.shape)
    return InMemory(values, tensor.sources)


def _query_scales(model: Model, file: Model) -> dict[int, float]:
    """The factor on each attention layer's queries: the model's scale of scores over that of the file's graph."""
    scales = {}
    for n, (mine, theirs) in enumerate(zip(model.spec.layers, file.spec.layers, strict=True)):
        if isinstance(mine.mixer, Attention) and isinstance(theirs.mixer, Attention):
            factor = mine.mixer.score_scale / theirs.mixer.score_scale
            if abs(factor - 1.0) > 1e-9:
                scales[n] = factor
    return scales


def coarsest_types(source: GGUFSource, layers: int) -> dict[int, str]:
    """The type with the fewest bits among each layer's matrices, and under -1 that of the embedding and the output."""
    found: dict[int, TensorType] = {}
    for name, tensor in source.tensors.items():
        if not isinstance(tensor, GGUFTensor) or len(tensor.shape) < 2:
            continue
        n = int(name.split(".")[1]) if name.startswith("blk.") else -1
        kind = tensor.entry.type
        if n < layers and (n not in found or _bits(kind) < _bits(found[n])):
            found[n] = kind
    return {n: kind.name for n, kind in found.items()}


def _bits(kind: TensorType) -> float:
    """Bits per weight; BF16 counts as less than F16, as it is coarser."""
    return 8.0 * kind.block_bytes / kind.block - (0.5 if kind.name == "bf16" else 0.0)
