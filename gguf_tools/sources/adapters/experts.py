"""LoRA on the parameters of fused experts (PEFT's `target_parameters`), for checkpoints that store experts fused or one by one.

In memory all experts are two parameters: `gate_up_proj`, the rows of gate and then of up, and `down_proj`. Of E experts, expert e
has the rows e · rank + … of A and the columns e + E · … of B (`ParamWrapper.get_delta_weight` of `peft/tuners/lora/layer.py`).
PEFT's names do not say which parameter a pair of factors is of; the shapes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.sources.adapters.adapter import Adapter, Factors
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.low_rank import HELD, LowRank, Term
from gguf_tools.tensors.views import Computed, Reshaped, stack, take, take_columns
from gguf_tools.text import shortened
from quant.encode import FloatArray

GATE_UP, DOWN = "gate_up_proj", "down_proj"
PLACES = (".mlp.experts", ".block_sparse_moe.experts", ".feed_forward.experts")
"""What ends the names of the module that holds the experts; transformers 5 names it `mlp.experts` in memory."""
SINGLE = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Names of one expert's matrices: gate, up and down."""
Find = Callable[[str], "str | None"]
"""The checkpoint's name of a tensor; None if it has none."""


@dataclass(frozen=True, eq=False)
class Kept(Computed):
    """A tensor whose elements stay in memory while it is used: each expert takes columns of the same matrix."""

    base: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def flat(self, start: int, stop: int) -> FloatArray:
        return _kept(self)[start:stop]


@lru_cache(HELD)
def _kept(tensor: Kept) -> FloatArray:
    return tensor.base.array().reshape(-1)


def merge_experts(
    adapter: Adapter, module: str, factors: Sequence[Factors], tensors: Mapping[str, Tensor], find: Find, hidden: int
) -> dict[str, Tensor]:
    """The tensors of a layer's experts with the factors added, by name. `hidden` is the width of the model.

    Raises UnsupportedError if the checkpoint stores experts in another way, CheckpointError for shapes that do not fit.
    """
    stem = next((module.removesuffix(place) for place in PLACES if module.endswith(place)), module)
    for place in (module, *(stem + place for place in PLACES)):
        fused = [find(f"{place}.{name}") for name in (GATE_UP, DOWN)]
        if fused[0] is not None and fused[1] is not None:
            return _fused(adapter, module, factors, tensors, (fused[0], fused[1]), hidden)
        for names in SINGLE:
            if find(f"{place}.0.{names[0]}.weight") is not None:
                return _single(adapter, module, factors, tensors, find, f"{place}.{{}}.", names)
    raise UnsupportedError(
        f"{adapter.path}: has factors for the experts {shortened(module)}, which the base stores in a way that is not supported, "
        "or not at all; merge the adapter with peft (merge_and_unload, then save_pretrained) and convert the result"
    )


def _fused(
    adapter: Adapter,
    module: str,
    factors: Sequence[Factors],
    tensors: Mapping[str, Tensor],
    names: tuple[str, str],
    hidden: int,
) -> dict[str, Tensor]:
    """Experts stored as in memory, (experts, outputs, inputs) or, as in gpt-oss, (experts, inputs, outputs)."""
    both = [tensors[name] for name in names]
    for name, tensor in zip(names, both, strict=True):
        if len(tensor.shape) != 3:
            raise UnsupportedError(
                f"{adapter.path}: {name} of the base has the shape {tensor.shape}; expected one of experts"
            )
    (count, rows, columns), (_, down_rows, down_columns) = both[0].shape, both[1].shape
    transposed = rows == hidden if rows != columns else down_columns == hidden != down_rows
    made: dict[str, Tensor] = {}
    for part in factors:
        shape = (part.b.shape[0], part.a.shape[1])
        stored = shape[::-1] if transposed else shape
        at = next((n for n, tensor in enumerate(both) if tensor.shape[1:] == stored and names[n] not in made), None)
        if at is None:
            raise _misfit(adapter, module, part, [tensor.shape for tensor in both])
        terms = _terms(adapter, module, (GATE_UP, DOWN)[at], part, count, transposed)
        experts = (Reshaped(take(both[at], [n]), both[at].shape[1:]) for n in range(count))
        made[names[at]] = stack([LowRank(expert, (term,)) for expert, term in zip(experts, terms, strict=True)])
    return made


def _single(
    adapter: Adapter,
    module: str,
    factors: Sequence[Factors],
    tensors: Mapping[str, Tensor],
    find: Find,
    place: str,
    names: tuple[str, str, str],
) -> dict[str, Tensor]:
    """Experts stored one by one, each as a gate, an up and a down matrix of (outputs, inputs)."""
    experts: list[list[str]] = []
    while all(found := [find(f"{place.format(len(experts))}{name}.weight") for name in names]):
        experts.append([name for name in found if name is not None])
    gate, up, down = (tensors[name].shape for name in experts[0])
    made: dict[str, Tensor] = {}
    for part in factors:
        shape = (part.b.shape[0], part.a.shape[1])
        is_down = shape == down
        if not is_down and shape != (gate[0] + up[0], gate[1]):
            raise _misfit(adapter, module, part, [gate, up, down])
        terms = _terms(adapter, module, DOWN if is_down else GATE_UP, part, len(experts), False)
        for expert, term in zip(experts, terms, strict=True):
            if is_down:
                made[expert[2]] = LowRank(tensors[expert[2]], (term,))
                continue
            for name, rows in ((expert[0], range(gate[0])), (expert[1], range(gate[0], gate[0] + up[0]))):
                half = Term(take(term.left, rows), term.right, term.scale)
                made[name] = LowRank(tensors[name], (half,))
    return made


def _terms(adapter: Adapter, module: str, parameter: str, part: Factors, experts: int, transposed: bool) -> list[Term]:
    """Each expert's term. Raises CheckpointError if the rank is not the config's."""
    name = f"{module}.{parameter}"
    rank, total = adapter.config.rank_of(name), part.a.shape[0]
    if total != rank * experts:
        raise CheckpointError(
            f"{adapter.path}: A of {shortened(name)} has {total} rows; expected {rank * experts}, the rank {rank} of "
            f"adapter_config.json for each of {experts} experts; check r and rank_pattern"
        )
    scale = adapter.config.scale_of(name) * adapter.scale
    left = Kept(part.b)
    return [
        Term(
            take_columns(left, n + experts * np.arange(rank)),
            take(part.a, range(n * rank, (n + 1) * rank)),
            scale,
            transposed,
        )
        for n in range(experts)
    ]


def _misfit(adapter: Adapter, module: str, part: Factors, shapes: Sequence[tuple[int, ...]]) -> CheckpointError:
    found = (part.b.shape[0], part.a.shape[1])
    return CheckpointError(
        f"{adapter.path}: factors of {shortened(module)} make matrices of shape {found}, but the base's experts have "
        f"{', '.join(map(str, shapes))}; give the base that the adapter was trained on"
    )
