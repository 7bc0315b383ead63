"""Ops on the experts of a layer: drop, swap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.algebra import DropExperts, Stack, SwapExperts, edited
from surgery.ops.base import Arguments, Op, Span, check, check_once, expand, span_text


@dataclass(frozen=True)
class DropExpertsOp(Op):
    """Removes experts from these layers, with their rows of the router (and of its bias)."""

    span: Span
    experts: tuple[int, ...]

    name: ClassVar[str] = "drop-experts"
    usage: ClassVar[str] = "L:E[,E…] or I..J:E[,E…]"
    help: ClassVar[str] = "Leave experts E out of layer L (or I to J), the router following."

    @classmethod
    def parse(cls, args: Arguments) -> DropExpertsOp:
        args.refuse("only", "method", "replace")
        layers, colon, first = args.parts[0].partition(":")
        if not colon:
            raise args.wrong("the experts are missing")
        return cls(args.span(layers.strip()), tuple(args.index(part) for part in (first, *args.parts[1:])))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *self.span)
        check_once(self, self.experts, "expert")
        inside = set(expand((self.span,)))
        edit = DropExperts(tuple(sorted(self.experts)))
        return tuple(edited(layer, edit) if n in inside else layer for n, layer in enumerate(stack))

    @property
    def arguments(self) -> tuple[str, ...]:
        first, *rest = map(str, self.experts)
        return (f"{span_text(self.span)}:{first}", *rest)


@dataclass(frozen=True)
class SwapExpertsOp(Op):
    """Exchanges two experts of a layer and their rows of the router, which does not change the layer's output."""

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
            raise args.wrong(f"{len(numbers)} numbers are given; expected a layer and two experts")
        return cls(*map(args.index, numbers))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.layer)
        check_once(self, (self.first, self.second), "expert")
        edit = SwapExperts(min(self.first, self.second), max(self.first, self.second))
        return (*stack[: self.layer], edited(stack[self.layer], edit), *stack[self.layer + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.layer}:{self.first}:{self.second}",)
