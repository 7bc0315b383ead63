"""Observation of the activations of a forward pass, at points that have a name."""

from __future__ import annotations

from collections.abc import Callable

import torch

Observer = Callable[[int, str, torch.Tensor], None]
"""Called with (layer number, name of the point, activations of shape (batch, length, …)).

The layer number is `OUTSIDE` for points outside the layers. The state of a recurrent mixer is that after the last token, shape
(batch, 1, …).
"""

Observe = Callable[[str, torch.Tensor], None]
"""An `Observer` of one layer."""

OUTSIDE = -1
"""The layer number of the embedding, the final norm and the logits."""


def unobserved(_point: str, _values: torch.Tensor) -> None:
    """The `Observe` of a forward pass that nobody looks at; what only observers need is not computed then."""
