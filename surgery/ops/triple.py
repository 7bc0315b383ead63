"""One layer three times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check
from surgery.plan import Stack


@dataclass(frozen=True)
class Triple(Op):
    """Two copies of the layer right after it."""

    layer: int

    name: ClassVar[str] = "triple"
    usage: ClassVar[str] = "N"
    help: ClassVar[str] = "Insert two copies of layer N after it."

    @classmethod
    def parse(cls, args: Arguments) -> Triple:
        args.refuse("only", "method", "replace")
        return cls(args.index(args.one()))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.layer)
        return (*stack[: self.layer], *(stack[self.layer],) * 3, *stack[self.layer + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (str(self.layer),)
