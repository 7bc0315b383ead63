"""A summary of assigned types: tensors and weights per type, bits per weight, and fallbacks with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod

from quant.recipes import TensorFacts, TypeChoice, TypeRecipe
from quant.types import row_bytes


@dataclass(frozen=True)
class TypeShare:
    """The number of tensors of one type, with their weights and bytes."""

    type: str
    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True)
class FallBack:
    """Tensors that fell back from one type to another for the same reason."""

    wanted: str
    type: str
    reason: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A summary over all tensors.

    `bits_per_weight` is 8 · `bytes` / `weights` (data without padding and metadata); `nominal_bits_per_weight` that of the
    recipe's base type. `types` is sorted by descending bytes.
    """

    recipe: str
    tensors: int
    weights: int
    bytes: int
    bits_per_weight: float
    nominal_bits_per_weight: float
    types: tuple[TypeShare, ...]
    fall_backs: tuple[FallBack, ...]
    kept: int

    @property
    def fallen_back(self) -> int:
        """Number of tensors that fell back."""
        return sum(len(group.tensors) for group in self.fall_backs)

    def as_dict(self) -> dict[str, object]:
        """The report as plain data, for JSON."""
        return {**asdict(self), "fallen_back": self.fallen_back}


def summarize(recipe: TypeRecipe, tensors: Sequence[TensorFacts], choices: Sequence[TypeChoice]) -> Report:
    """The summary of the types that `recipes.assign` assigned; both sequences are in the same order."""
    shares: dict[str, TypeShare] = {}
    groups: dict[tuple[str, str, str], list[str]] = {}
    for tensor, choice in zip(tensors, choices, strict=True):
        dtype, weights = choice.type.name, prod(tensor.shape)
        size = prod(tensor.shape[:-1]) * row_bytes(choice.type, tensor.shape[-1])
        had = shares.get(dtype, TypeShare(dtype, 0, 0, 0))
        shares[dtype] = TypeShare(dtype, had.tensors + 1, had.weights + weights, had.bytes + size)
        if choice.fell_back:
            groups.setdefault((choice.wanted.name, dtype, choice.reason), []).append(choice.name)
    weights, size = sum(share.weights for share in shares.values()), sum(share.bytes for share in shares.values())
    return Report(
        recipe=recipe.name,
        tensors=len(choices),
        weights=weights,
        bytes=size,
        bits_per_weight=8 * size / weights if weights else 0.0,
        nominal_bits_per_weight=recipe.base.bits,
        types=tuple(sorted(shares.values(), key=lambda share: -share.bytes)),
        fall_backs=tuple(FallBack(*key, tuple(names)) for key, names in groups.items()),
        kept=sum(choice.kept for choice in choices),
    )
