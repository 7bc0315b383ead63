"""Runs the torch reference: from the tokens on, and layer by layer from llama.cpp's own input."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gguf_tools.evaluation.trace.compare import (
    Error,
    Points,
    chosen_error,
    error,
    mask_for,
)
from gguf_tools.evaluation.trace.points import Doubles, Graph, exists
from gguf_tools.model.spec import Attention, LayerSpec, MoE
from gguf_tools.reference import Reference
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.reference.weights import Weights


class Passes:
    """A reference in float64, and its points in the layout of `Graph`: (tokens, width), the state (1, width).

    `query_scale` multiplies the queries of a layer, as the target does.
    """

    def __init__(self, reference: Reference, query_scale: Mapping[int, float]) -> None:
        self.reference, self.query_scale = reference, query_scale

    def whole(self, tokens: Sequence[int]) -> dict[int, dict[str, Doubles]]:
        """The points of the whole model from the tokens on, by layer, those outside the layers under `OUTSIDE`."""
        found: dict[int, dict[str, Doubles]] = {}
        with torch.inference_mode():
            self.reference.forward(
                torch.tensor([list(tokens)]),
                lambda n, point, values: found.setdefault(n, {}).update({point: self._flat(n, point, values)}),
            )
        return found

    def layer(
        self, n: int, x: Doubles, spec: LayerSpec | None = None, weights: Weights | None = None
    ) -> dict[str, Doubles]:
        """The points of layer n for an input (tokens, hidden), with another spec or other weights if given."""
        reference = self.reference
        if weights is not None:
            reference = copy.copy(reference)
            reference.layers = [*reference.layers[:n], weights, *reference.layers[n + 1 :]]
        found: dict[str, Doubles] = {}
        with torch.inference_mode():
            reference.layer(
                n,
                spec or reference.spec.layers[n],
                self.tensor(x),
                lambda _, point, values: found.update({point: self._flat(n, point, values)}),
            )
        return found

    def end(self, x: Doubles, reference: Reference | None = None) -> dict[str, Doubles]:
        """The final norm and the logits for the last layer's output (tokens, hidden)."""
        found: dict[str, Doubles] = {}
        with torch.inference_mode():
            (reference or self.reference).final_norm(
                self.tensor(x), lambda n, point, values: found.update({point: self._flat(n, point, values)})
            )
        return found

    def start(self, tokens: Sequence[int]) -> dict[str, Doubles]:
        """The embedding of tokens."""
        with torch.inference_mode():
            x = self.reference.embed(torch.tensor([list(tokens)]))
        return {"embedding": self._flat(OUTSIDE, "embedding", x)}

    def tensor(self, x: Doubles) -> torch.Tensor:
        """Activations (tokens, hidden) as a batch of one sequence."""
        return torch.from_numpy(np.ascontiguousarray(x))[None].to(self.reference.dtype)

    def _flat(self, n: int, point: str, values: torch.Tensor) -> Doubles:
        array = values[0].numpy().astype(np.float64)
        if n in self.query_scale and point.startswith("attn.q") and self._scaled(n, point):
            array = array * self.query_scale[n]
        return array.reshape(len(array), -1)

    def _scaled(self, n: int, point: str) -> bool:
        """Whether a target that scales queries has done so at this point: in the norm's weights, or in the matrix."""
        mixer = self.reference.spec.layers[n].mixer
        normed = isinstance(mixer, Attention) and mixer.qk_norm is not None
        return not normed or point in ("attn.q_normed", "attn.q_rope")


def measured_by(reference: Reference, n: int, logits: Doubles) -> Doubles:
    """What layer n's experts are selected by, (tokens, experts), given the router's logits."""
    ffn = reference.spec.layers[n].feed_forward
    assert isinstance(ffn, MoE)
    measure = logits
    if ffn.router.score_bias:
        values = torch.from_numpy(logits)
        measure = (values.softmax(-1) if ffn.router.score == "softmax" else values.sigmoid()).numpy()
    bias = reference.layers[n].get("moe.router_bias")
    return measure if bias is None else measure + bias.numpy().astype(np.float64)


def errors_of(
    passes: Passes, n: int, mine: Points, graph: Graph, position: int | None = None
) -> dict[str, tuple[Error, Doubles]]:
    """The error of each of a layer's points that llama.cpp's graph names, in order of computation, and llama.cpp's values.

    `position` limits the comparison to one token.
    """
    layer = passes.reference.spec.layers[n] if n != OUTSIDE else None
    theirs = {
        point: values
        for point, array in mine.items()
        if exists(point, layer) and (values := graph.values(n, point, array.shape[1])) is not None
    }
    found = {}
    for point, values in theirs.items():
        if point == "moe.chosen":
            logits = mine["moe.logits"]
            noise = np.sqrt(np.square(theirs.get("moe.logits", logits) - logits).mean())
            made = chosen_error(measured_by(passes.reference, n, logits), mine[point], values, float(noise))
        else:
            mask = mask_for(point, mine, theirs)
            if position is not None and len(values) > 1:
                at = np.arange(len(values)) == position
                mask = at if mask is None else mask & at
            made = error(mine[point], values, mask)
        found[point] = made, values
    return found
