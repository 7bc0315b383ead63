"""Layers that add more or less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, Span, check, expand, keyword_texts, span_text
from surgery.plan import Half, Stack, scaled


@dataclass(frozen=True)
class Scale(Op):
    """What these layers add to the residual stream, times `factor`: their output projections are multiplied."""

    span: Span
    factor: float
    only: Half | None = None

    name: ClassVar[str] = "scale"
    usage: ClassVar[str] = "N@F|I..J@F"
    help: ClassVar[str] = "Multiply what layer N (or I to J) adds to the residual stream by F."
    takes_only: ClassVar[bool] = True

    @classmethod
    def parse(cls, args: Arguments) -> Scale:
        args.refuse("method", "replace")
        layers, at, factor = args.one().partition("@")
        if not at:
            raise args.wrong("the factor is missing")
        return cls(args.span(layers.strip()), args.number(factor), args.only)

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *self.span)
        inside = set(expand((self.span,)))
        return tuple(scaled(layer, self.factor, self.only) if n in inside else layer for n, layer in enumerate(stack))

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{span_text(self.span)}@{self.factor!r}", *keyword_texts(only=self.only))
