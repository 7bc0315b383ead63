"""One layer twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check
from surgery.plan import Stack


@dataclass(frozen=True)
class Duplicate(Op):
    """A copy of the layer right after it."""

    layer: int

    name: ClassVar[str] = "duplicate"
    usage: ClassVar[str] = "N"
    help: ClassVar[str] = "Insert a copy of layer N after it."

    @classmethod
    def parse(cls, args: Arguments) -> Duplicate:
        args.refuse("only", "method", "replace")
        return cls(args.index(args.one()))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.layer)
        return (*stack[: self.layer + 1], *stack[self.layer :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (str(self.layer),)
