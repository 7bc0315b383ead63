"""The whole order at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, Span, check, expand, span_text
from surgery.plan import Stack


@dataclass(frozen=True)
class Path(Op):
    """The layers that run, in the order in which they run; any may run several times, or not at all."""

    spans: tuple[Span, ...]

    name: ClassVar[str] = "path"
    usage: ClassVar[str] = "I..J,N,…"
    help: ClassVar[str] = 'The layers that run, in order, such as "0..14,12..14,15..39".'

    @classmethod
    def parse(cls, args: Arguments) -> Path:
        args.refuse("only", "method", "replace")
        return cls(tuple(args.span(part) for part in args.parts))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *(end for span in self.spans for end in span))
        return tuple(stack[index] for index in expand(self.spans))

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(map(span_text, self.spans))
