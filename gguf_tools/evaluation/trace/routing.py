"""Which experts each side selected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_tools.evaluation.trace.points import Doubles, Graph
from gguf_tools.model.spec import ModelSpec, MoE


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The experts selected in one layer, by token, best first: the reference's (from the tokens on) and llama.cpp's."""

    layer: int
    experts: int
    reference: tuple[tuple[int, ...], ...]
    model: tuple[tuple[int, ...], ...]

    @property
    def agreement(self) -> float:
        """The share of tokens for which both selected the same experts."""
        same = (set(a) == set(b) for a, b in zip(self.reference, self.model, strict=True))
        return float(np.mean(list(same)))

    def load(self, chosen: tuple[tuple[int, ...], ...]) -> list[int]:
        """How many tokens were sent to each expert."""
        return list(map(int, np.bincount(np.array(chosen, np.int64).reshape(-1), minlength=self.experts)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layer": self.layer,
            "agreement": self.agreement,
            "reference": [list(row) for row in self.reference],
            "model": [list(row) for row in self.model],
            "load_reference": self.load(self.reference),
            "load_model": self.load(self.model),
        }


def routing_of(chosen: Mapping[int, Doubles], graph: Graph, spec: ModelSpec) -> tuple[Routing, ...]:
    """The routing of each layer whose selection llama.cpp's graph names; `chosen` are the reference's experts by layer."""
    found = []
    for n, mine in sorted(chosen.items()):
        theirs, ffn = graph.values(n, "moe.chosen", mine.shape[1]), spec.layers[n].feed_forward
        if theirs is not None and isinstance(ffn, MoE):
            pair = (tuple(tuple(map(int, row)) for row in rows) for rows in (mine, theirs))
            found.append(Routing(layer=n, experts=ffn.experts, reference=next(pair), model=next(pair)))
    return tuple(found)
