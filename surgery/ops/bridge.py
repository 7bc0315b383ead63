"""A copy of one layer elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check
from surgery.plan import Stack


@dataclass(frozen=True)
class Bridge(Op):
    """A copy of layer `source` after layer `after`."""

    source: int
    after: int

    name: ClassVar[str] = "bridge"
    usage: ClassVar[str] = "SRC:DST"
    help: ClassVar[str] = "Insert a copy of layer SRC after layer DST."

    @classmethod
    def parse(cls, args: Arguments) -> Bridge:
        args.refuse("only", "method", "replace")
        return cls(*args.pair(args.one()))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.source, self.after)
        return (*stack[: self.after + 1], stack[self.source], *stack[self.after + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.source}:{self.after}",)
