"""Exchange experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check, check_once
from surgery.plan import Stack, SwapExperts, edited


@dataclass(frozen=True)
class SwapExpertsOp(Op):
    """Two experts of a layer change places, and so do their rows of the router: the layer computes the same."""

    layer: int
    first: int
    second: int

    name: ClassVar[str] = "swap-experts"
    usage: ClassVar[str] = "L:E:E"
    help: ClassVar[str] = "Exchange two experts of layer L, the router following."

    @classmethod
    def parse(cls, args: Arguments) -> SwapExpertsOp:
        args.refuse("only", "method", "replace")
        numbers = args.one().split(":")
        if len(numbers) != 3:
            raise args.wrong("a layer and two experts expected")
        return cls(*map(args.index, numbers))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.layer)
        check_once(self, (self.first, self.second), "expert")
        edit = SwapExperts(min(self.first, self.second), max(self.first, self.second))
        return (*stack[: self.layer], edited(stack[self.layer], edit), *stack[self.layer + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.layer}:{self.first}:{self.second}",)
