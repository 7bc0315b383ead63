"""The definition of a target: a llama.cpp architecture, the features it expresses, and the conversion from and to a Model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf_tools.formats.gguf.header import Metadata
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.features import undeclared
from gguf_tools.model.spec import Model, ModelSpec
from gguf_tools.rewrites.approximations import Approximation
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.targets.limits import graph_limits
from gguf_tools.tensors.base import Tensor


@dataclass(frozen=True)
class OutputTensor:
    """A tensor with its GGUF name; its shape is in numpy's axis order, the reverse of GGUF's."""

    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Lowered:
    """A model converted to a target: the architecture's metadata and all tensors in file order."""

    architecture: str
    metadata: Metadata
    tensors: tuple[OutputTensor, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A llama.cpp architecture.

    The planner applies `rewrites` in order, as far as they apply. `lacks` then lists what the architecture cannot express of
    the resulting spec: features outside `expresses` (keys of `model.features`), what `limits` reports about the others, and what
    no architecture computes.
    `lower` is called only if that list is empty. `lift` reads a file of this architecture as a Model, with the file's
    weights unchanged. `approximations` are applied only if the user permits them.

    `nmse` bounds the error of the logits of an F32 file of a model with features whose keys contain `coarse` (any, if that is
    empty), where llama.cpp's own arithmetic is coarser than float32's or differs from the model's, for the reason `why`.
    """

    name: str
    rewrites: tuple[Rewrite, ...]
    expresses: frozenset[str]
    limits: Callable[[ModelSpec], list[str]]
    lower: Callable[[Model], Lowered]
    lift: Callable[[GGUFSource], Model]
    approximations: tuple[Approximation, ...] = ()
    nmse: float = 0.0
    why: str = ""
    coarse: str = "activation=gelu"

    def bound(self, spec: ModelSpec) -> float:
        """`nmse` for a model of this spec, before rewrites: 0 for one without such features, whose arithmetic is float32's."""
        return self.nmse if any(self.coarse in feature.key for feature in spec.features) else 0.0

    def lacks(self, spec: ModelSpec) -> list[str]:
        """Descriptions of what the architecture cannot express of this spec; empty if it expresses the spec exactly."""
        return list(
            dict.fromkeys([*undeclared(spec.features, self.expresses), *graph_limits(spec), *self.limits(spec)])
        )
