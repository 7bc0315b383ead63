"""One layer elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check
from surgery.plan import Stack


@dataclass(frozen=True)
class Move(Op):
    """Layer `layer` becomes layer `to`; those between close the gap."""

    layer: int
    to: int

    name: ClassVar[str] = "move"
    usage: ClassVar[str] = "A:B"
    help: ClassVar[str] = "Move layer A so that it becomes layer B."

    @classmethod
    def parse(cls, args: Arguments) -> Move:
        args.refuse("only", "method", "replace")
        return cls(*args.pair(args.one()))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.layer, self.to)
        out = list(stack)
        out.insert(self.to, out.pop(self.layer))
        return tuple(out)

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.layer}:{self.to}",)
