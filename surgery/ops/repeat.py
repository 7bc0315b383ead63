"""A block of layers several times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, Span, check, span_text
from surgery.plan import Stack

MAX_TIMES = 1000


@dataclass(frozen=True)
class Repeat(Op):
    """The block runs `times` times in all."""

    span: Span
    times: int = 2

    name: ClassVar[str] = "repeat"
    usage: ClassVar[str] = "I..J[xK]"
    help: ClassVar[str] = "Run the block of layers I to J K times (2 by default)."

    @classmethod
    def parse(cls, args: Arguments) -> Repeat:
        args.refuse("only", "method", "replace")
        block, _, times = args.one().partition("x")
        if times and not re.fullmatch(r"\d{1,9}", times.strip()):
            raise args.wrong(f"{times.strip()!r} is not a number of times")
        count = int(times) if times else 2
        if not 1 <= count <= MAX_TIMES:
            raise args.wrong(f"K is {count}, a number from 1 to {MAX_TIMES} expected")
        return cls(args.span(block.strip()), count)

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *self.span)
        first, last = self.span
        return (*stack[:first], *stack[first : last + 1] * self.times, *stack[last + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{span_text(self.span)}x{self.times}",)
