"""Runs the reference on candidates: the tensors are in memory once, and what is cut out of them is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.description.assignment import Assignment
from gguf_tools.description.choices import Choices
from gguf_tools.description.decoder import Decoder, decoder
from gguf_tools.description.placing import Placing
from gguf_tools.description.schema import VOCABULARY, Description, Source, name_pattern, roles_of
from gguf_tools.description.solver.evidence import Batch
from gguf_tools.errors import InputError
from gguf_tools.model.norms import Shape
from gguf_tools.model.spec import LayerSpec
from gguf_tools.reference import Reference
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import InMemory

MOST_KEPT = 4096
"""Tensors that are kept; the oldest go first."""


class Engine:
    """Evaluates choices: `rows` are the vocabulary rows whose logits are compared, `context` the number of positions."""

    def __init__(
        self,
        assignment: Assignment,
        checkpoint: Checkpoint,
        rows: NDArray[np.int64],
        context: int,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Load all tensors but those that the model computes."""
        self.assignment, self.rows, self.context, self.dtype = assignment, rows, context, dtype
        structure = assignment.structure
        computed = [name_pattern(name) for name in structure.computed]
        kept = {name: t for name, t in checkpoint.tensors.items() if not any(each.fullmatch(name) for each in computed)}
        tensors = {name: InMemory(np.ascontiguousarray(tensor.array()), (name,)) for name, tensor in kept.items()}
        padded = structure.rows > structure.vocabulary
        model = {VOCABULARY: structure.vocabulary} if padded else {}
        empty = Description(path=Path("description"), model=model, norm={}, layer={})
        self._placing = Placing(empty, replace(checkpoint, tensors=tensors))
        self._kept: dict[object, torch.Tensor] = {}
        self.evaluations = 0

    def decoder(self, choices: Choices) -> Decoder:
        """The decoder that the choices make."""
        return decoder(self.assignment, choices, self.context)

    def reference(self, made: Decoder) -> Reference:
        """The reference of a decoder, with the output projection reduced to `rows`."""
        spec = made.spec
        weights = dict(self._weights(made.outside, spec.roles(), None))
        matrix = weights["embedding" if spec.tied else "output"]
        key = ("rows", spec.tied, made.outside)
        if key not in self._kept:
            self._kept[key] = matrix[torch.from_numpy(self.rows)]
        weights["output"] = self._kept[key]
        if spec.output_bias:
            weights["output_bias"] = weights["output_bias"][torch.from_numpy(self.rows)]
        layers = [
            self._multiplied(self._weights(sources, layer.roles(spec.hidden), n), layer)
            for n, (layer, sources) in enumerate(zip(spec.layers, made.layers, strict=True))
        ]
        return Reference.assembled(replace(spec, tied=False), weights, layers, self.dtype)

    @staticmethod
    def _multiplied(weights: dict[str, torch.Tensor], layer: LayerSpec) -> dict[str, torch.Tensor]:
        """A layer's weights times the factors of its spec."""
        return weights | {role: weights[role] * factor for role, factor in layer.multipliers}

    def logits(self, choices: Choices, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of `rows`, shape (sequences, length, rows). Raises InputError for choices that the shapes do not allow."""
        self.evaluations += 1
        reference = self.reference(self.decoder(choices))
        with torch.inference_mode():
            return reference.head(reference.forward(tokens)).double()

    def residual(self, choices: Choices, batch: Batch) -> torch.Tensor:
        """(logits − golden) / |golden|, whose squares add up to the NMSE."""
        return (self.logits(choices, batch.tokens) - batch.logits) / batch.logits.square().sum().sqrt()

    def error(self, choices: Choices, batch: Batch) -> float:
        """The NMSE; infinite for choices that shapes or arithmetic do not allow."""
        try:
            found = float(self.residual(choices, batch).square().sum())
        except (InputError, ValueError, ZeroDivisionError, RuntimeError):  # torch's error for shapes that do not fit
            return float("inf")
        return found if found == found else float("inf")

    def _weights(
        self, sources: tuple[Source, ...], shapes: Mapping[str, Shape], n: int | None
    ) -> dict[str, torch.Tensor]:
        """The weights of each role, in memory."""
        by_role, out = roles_of(sources), {}
        for role, shape in shapes.items():
            if role not in by_role:
                raise InputError(f"{role} has no tensor")
            source = by_role[role]
            key = (source, role, shape, n)
            if key not in self._kept:
                own = {other: shapes[other] for other in source.roles if other in shapes}
                tensor = self._placing.placed([source], own, n)[role]
                if len(self._kept) >= MOST_KEPT:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[key] = torch.from_numpy(tensor.array()).to(self.dtype)
            out[role] = self._kept[key]
        return out
