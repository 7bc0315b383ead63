"""Ops that copy layers: bridge, duplicate, triple, repeat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from surgery.algebra import Stack
from surgery.ops.base import Arguments, Op, Span, check, span_text


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
