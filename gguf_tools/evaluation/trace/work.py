"""The passes of the reference over one file's intermediates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch

from gguf_tools.errors import InputError
from gguf_tools.evaluation.trace.compare import FACTOR, PointError, error, floor_of, mask_for
from gguf_tools.evaluation.trace.expected import Expected, as_file, coarsest_types, rounded
from gguf_tools.evaluation.trace.passes import Passes, errors_of
from gguf_tools.evaluation.trace.points import Doubles, Graph, exists
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Model
from gguf_tools.progress import StageProgress
from gguf_tools.reference import Reference
from gguf_tools.reference.observe import OUTSIDE


class Work:
    """The passes over one file's intermediates."""

    def __init__(
        self,
        source: GGUFSource,
        expected: Expected,
        own: Model | None,
        graph: Graph,
        tokens: Sequence[int],
        position: int | None,
        progress: StageProgress,
    ) -> None:
        """Load the reference, and another with the weights rounded to the file's types where they are not F32.

        `own` is the model that the file holds, None if its metadata contradict its tensors.
        """
        self.own = own
        self.source, self.expected, self.graph, self.tokens = source, expected, graph, tokens
        self.position, self.progress = position, progress
        self.passes = Passes(Reference(expected.model, torch.float64), expected.query_scale)
        self.types = coarsest_types(source, len(expected.model.spec.layers))
        coarse = rounded(source, expected)
        self.coarse = Passes(Reference(coarse, torch.float64), {}) if coarse else None
        self.chosen: dict[int, Doubles] = {}

    @cached_property
    def stored(self) -> Passes:
        """The passes of what a file of this architecture and these types should hold, in the file's own form."""
        if self.coarse:
            return self.coarse
        return Passes(Reference(as_file(self.source, self.expected.lowered, {}), torch.float64), {})

    @cached_property
    def mine(self) -> Reference | None:
        """The reference of the file's own weights and metadata; None if they are not those of a model that can be run."""
        try:
            return Reference(self.own, torch.float64) if self.own else None
        except InputError:
            return None

    def names(self, n: int, role: str) -> tuple[str, ...]:
        """The file's tensors that the role of layer n (`OUTSIDE` for none) is stored in."""
        if self.own and n < len(self.own.layer_tensors):
            tensors = self.own.tensors if n == OUTSIDE else self.own.layer_tensors[n]
            found = tensors[role].sources if role in tensors else ()
            if found and all(name in self.source.tensors for name in found):
                return found
        return self.expected.names(n, role)

    def label(self, n: int, role: str, roles: Iterable[str]) -> str:
        """The file's tensors that a role is stored in, for messages, with the role where they hold others of `roles` too."""
        names = self.names(n, role)
        shared = any(set(names) & set(self.names(n, other)) for other in roles if other != role)
        return f"{', '.join(names)} ({role})" if names and shared else ", ".join(names) or role

    def run(self) -> tuple[list[PointError], list[str]]:
        """The errors of all points in order of computation, and the points that the graph has no name for."""
        whole = self.passes.whole(self.tokens)
        self.chosen = {n: points["moe.chosen"] for n, points in whole.items() if "moe.chosen" in points}
        outside = whole[OUTSIDE]
        points: list[PointError] = []
        unnamed: dict[str, None] = {}
        layers = len(self.expected.model.spec.layers)
        start = {"embedding": outside["embedding"]}
        points += self._judged(OUTSIDE, start, start, self.coarse.start(self.tokens) if self.coarse else None)
        for n in range(layers):
            self.progress("comparing layers", n, layers)
            x = self.input_of(n)
            if x is None:
                continue
            mine = self.passes.layer(n, x)
            points += self._judged(n, mine, whole[n], self.coarse.layer(n, x) if self.coarse else None)
            there = {point.point for point in points if point.layer == n}
            form = self.expected.model.spec.layers[n]
            unnamed |= dict.fromkeys(point for point in mine if point not in there and exists(point, form))
        end = {point: outside[point] for point in ("final_norm", "logits")}
        x = self.input_of(layers)
        local = self.passes.end(x) if x is not None else end
        coarse = self.coarse.end(x) if self.coarse and x is not None else None
        points += self._judged(OUTSIDE, local, end, coarse, end_to_end=x is None)
        return points, list(unnamed)

    def selected(self) -> dict[int, Doubles]:
        """The experts that llama.cpp selected, by layer."""
        found = {n: self.graph.values(n, "moe.chosen", mine.shape[1]) for n, mine in self.chosen.items()}
        return {n: values for n, values in found.items() if values is not None}

    def input_of(self, n: int) -> Doubles | None:
        """What llama.cpp's layer n reads: the embedding, or the output of the layer before it; (tokens, hidden)."""
        hidden = self.expected.model.spec.hidden
        if n == 0:
            return self.graph.values(OUTSIDE, "embedding", hidden)
        return self.graph.values(n - 1, "layer_out", hidden)

    def floor(self, n: int, point: str) -> float:
        """The NMSE that llama.cpp's arithmetic explains at a point of layer n (`OUTSIDE` for none)."""
        return floor_of(n, point, self.types, self.expected.gelu, centred=self.expected.model.spec.output_norm.centred)

    def _judged(
        self,
        n: int,
        mine: dict[str, Doubles],
        whole: dict[str, Doubles],
        coarse: dict[str, Doubles] | None,
        *,
        end_to_end: bool = False,
    ) -> list[PointError]:
        """The errors of a layer's points, with what the rounding of the weights predicts (`coarse`).

        Where the points are compared `end_to_end`, the activation functions of all layers act on them.
        """
        local = errors_of(self.passes, n, mine, self.graph, self.position)
        entire = errors_of(self.passes, n, whole, self.graph, self.position)
        made = []
        for point, (found, _) in local.items():
            predicted = 0.0
            if coarse and point in coarse and point != "moe.chosen" and coarse[point].shape == mine[point].shape:
                predicted = error(mine[point], coarse[point], mask_for(point, mine, coarse)).nmse
            floor = self.floor(n, point) + (self.expected.gelu if end_to_end else 0.0)
            made.append(
                PointError(
                    layer=None if n == OUTSIDE else n,
                    point=point,
                    tensor=self.graph.name_of(n, point),
                    local=found,
                    whole=entire[point][0],
                    tolerance=floor + FACTOR * predicted,
                    predicted=predicted,
                )
            )
        return made
