"""Arithmetic between layers: interpolate, merge, scale."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from surgery.algebra import METHODS, Half, Method, Stack, blend, scaled, with_half
from surgery.ops.base import Arguments, Op, Span, check, check_once, expand, keyword_texts, span_text


@dataclass(frozen=True, kw_only=True)
class Interpolate(Op):
    """Inserts (1 - alpha) · first + alpha · second after `first`, or replaces layer `replace` by it.

    With `only` the other half of the new layer is that of `first`, or that of the replaced layer.
    """

    first: int
    second: int
    alpha: float
    replace: int | None = None
    method: Method = "linear"
    only: Half | None = None

    name: ClassVar[str] = "interpolate"
    usage: ClassVar[str] = "A:B@ALPHA[=N][,slerp]"
    help: ClassVar[str] = "Insert (1 - ALPHA)·A + ALPHA·B after layer A, or put it in the place of layer N."
    takes_only: ClassVar[bool] = True

    @classmethod
    def parse(cls, args: Arguments) -> Interpolate:
        """Parse `A:B@ALPHA[=N][,slerp]`, or `A:B, ALPHA` in a recipe; errors as `Op.parse`."""
        head, *rest = args.parts
        match = re.fullmatch(r"([^@=]*)(?:@([^=]*))?(?:=(.*))?", head)
        if match is None:
            raise args.wrong(f"{head!r} does not have this form")
        pair, alpha, place = match.groups()
        numbers = [part for part in rest if part not in METHODS]
        if (alpha is None) != bool(numbers) or len(numbers) > 1:
            raise args.wrong("ALPHA is missing or given twice; expected one number from 0 to 1")
        value = args.number(alpha if alpha is not None else numbers[0])
        if not 0.0 <= value <= 1.0:
            raise args.wrong(f"ALPHA is {value:g}; expected a number from 0 to 1")
        place = args.keywords.get("replace", place)
        first, second = args.pair(pair)
        return cls(
            first=first,
            second=second,
            alpha=value,
            replace=None if place is None else args.index(place),
            method=args.method,
            only=args.only,
        )

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.first, self.second, *(() if self.replace is None else (self.replace,)))
        mixed = blend(((stack[self.first], 1.0 - self.alpha), (stack[self.second], self.alpha)), self.method)
        if self.replace is not None:
            made = with_half(stack[self.replace], mixed, self.only)
            return (*stack[: self.replace], made, *stack[self.replace + 1 :])
        made = with_half(stack[self.first], mixed, self.only)
        return (*stack[: self.first + 1], made, *stack[self.first + 1 :])

    @property
    def arguments(self) -> tuple[str, ...]:
        place = () if self.replace is None else (f"replace={self.replace}",)
        return (f"{self.first}:{self.second}", f"{self.alpha!r}", *place, *keyword_texts(self.method, self.only))


@dataclass(frozen=True)
class Merge(Op):
    """Replaces the first of two layers by their mean and removes the second.

    With `only` the other half is that of the first.
    """

    first: int
    second: int
    method: Method = "linear"
    only: Half | None = None

    name: ClassVar[str] = "merge"
    usage: ClassVar[str] = "A:B[,slerp]"
    help: ClassVar[str] = "Put the mean of layers A and B in the place of A, and leave B out."
    takes_only: ClassVar[bool] = True

    @classmethod
    def parse(cls, args: Arguments) -> Merge:
        args.refuse("replace")
        if any(part not in METHODS for part in args.parts[1:]):
            raise args.wrong(f"unexpected argument {args.parts[1]!r}")
        return cls(*args.pair(args.parts[0]), args.method, args.only)

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.first, self.second)
        check_once(self, (self.first, self.second))
        mean = blend(((stack[self.first], 0.5), (stack[self.second], 0.5)), self.method)
        out = list(stack)
        out[self.first] = with_half(stack[self.first], mean, self.only)
        del out[self.second]
        return tuple(out)

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.first}:{self.second}", *keyword_texts(self.method, self.only))


@dataclass(frozen=True)
class Scale(Op):
    """Multiplies the contributions of these layers to the residual stream by `factor`, by scaling their output projections."""

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
