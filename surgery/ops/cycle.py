"""A block of layers rotated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, Span, check, span_text
from surgery.plan import Stack


@dataclass(frozen=True)
class Cycle(Op):
    """Each layer of the block moves `by` places towards the end, and the last ones come round to the block's start."""

    span: Span
    by: int = 1

    name: ClassVar[str] = "cycle"
    usage: ClassVar[str] = "I..J[@K]"
    help: ClassVar[str] = "Rotate layers I to J by K places towards the end (1 by default; negative the other way)."

    @classmethod
    def parse(cls, args: Arguments) -> Cycle:
        args.refuse("only", "method", "replace")
        block, at, by = args.one().partition("@")
        if at and not re.fullmatch(r"[+-]?\d{1,9}", by.strip()):
            raise args.wrong(f"{by.strip()!r} is not a whole number of places")
        return cls(args.span(block.strip()), int(by) if at else 1)

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *self.span)
        first, last = self.span
        block = stack[first : last + 1]
        cut = -self.by % len(block)
        return (*stack[:first], *block[cut:], *block[:cut], *stack[last + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{span_text(self.span)}@{self.by}",)
