"""A block of layers backwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, Span, check, span_text
from surgery.plan import Stack


@dataclass(frozen=True)
class Reverse(Op):
    """The block in the opposite order."""

    span: Span

    name: ClassVar[str] = "reverse"
    usage: ClassVar[str] = "I..J"
    help: ClassVar[str] = "Put layers I to J in the opposite order."

    @classmethod
    def parse(cls, args: Arguments) -> Reverse:
        args.refuse("only", "method", "replace")
        return cls(args.span(args.one()))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *self.span)
        first, last = self.span
        return (*stack[:first], *reversed(stack[first : last + 1]), *stack[last + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (span_text(self.span),)
