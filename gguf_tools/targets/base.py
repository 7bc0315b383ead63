"""What a target is: one llama.cpp architecture, what it can express, and how a Model is lowered to it and lifted back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf_tools.formats.gguf.header import Metadata
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.features import features, undeclared
from gguf_tools.model.spec import Model, ModelSpec
from gguf_tools.rewrites.approximations import Approximation
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.tensors.base import Tensor


@dataclass(frozen=True)
class OutputTensor:
    """A tensor under its GGUF name, in numpy's order of axes."""

    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Lowered:
    """A model in a target's terms: the architecture's metadata and all tensors in file order."""

    architecture: str
    metadata: Metadata
    tensors: tuple[OutputTensor, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A llama.cpp architecture.

    `rewrites` are tried in order before `lacks` names what the architecture cannot express of the spec that results:
    the features that are not among those it `expresses` (keys of `model.features`), and what `limits` says of those that
    are. `lower` is called only where it lacks nothing. `lift` describes a file of this architecture as a Model, with the
    file's own numbers. `approximations` come near to what it lacks, and are applied only where the user accepts that.
    """

    name: str
    rewrites: tuple[Rewrite, ...]
    expresses: frozenset[str]
    limits: Callable[[ModelSpec], list[str]]
    lower: Callable[[Model], Lowered]
    lift: Callable[[GGUFSource], Model]
    approximations: tuple[Approximation, ...] = ()

    def lacks(self, spec: ModelSpec) -> list[str]:
        """What the architecture cannot express of this spec, in words; empty where it is exact."""
        return list(dict.fromkeys([*undeclared(features(spec), self.expresses), *self.limits(spec)]))
