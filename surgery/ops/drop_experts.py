"""Leave experts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, Span, check, check_once, expand, span_text
from surgery.plan import DropExperts, Stack, edited


@dataclass(frozen=True)
class DropExpertsOp(Op):
    """The experts are left out of these layers, with their rows of the router (and of its bias)."""

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
