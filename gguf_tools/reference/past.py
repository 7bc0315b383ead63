"""What one layer keeps of the positions that it has read: keys and values, or the state of a recurrence."""

from __future__ import annotations

import torch


class Past:
    """The memory of one layer that reads a sequence of `total` positions in blocks, the first of which begins at 0.

    `start` is the number of positions read before the present block.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.start = 0
        self._grown: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}

    def extended(self, name: str, block: torch.Tensor) -> torch.Tensor:
        """All of `name` so far, the block's included, along axis 2: (batch, heads, positions, width)."""
        if name not in self._grown:
            shape = (*block.shape[:2], self.total, *block.shape[3:])
            self._grown[name] = block.new_empty(shape)
        end = self.start + block.shape[2]
        self._grown[name][:, :, self.start : end] = block
        return self._grown[name][:, :, :end]

    def kept(self, name: str) -> torch.Tensor | None:
        """What the previous block left under `name`; None for the first."""
        return self._kept.get(name)

    def keep(self, name: str, value: torch.Tensor) -> None:
        """Leave a value to the next block."""
        self._kept[name] = value.clone()

    def advance(self, count: int) -> None:
        """A block of `count` positions was read."""
        self.start += count
