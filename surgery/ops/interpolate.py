"""A new layer between two."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check, keyword_texts
from surgery.plan import METHODS, Half, Method, Stack, blend, with_half


@dataclass(frozen=True)
class Interpolate(Op):
    """(1 - alpha) · first + alpha · second, inserted after `first`, or in the place of layer `replace`.

    With `only` the other half of the new layer is that of `first`, or that of the layer replaced.
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
        head, *rest = args.parts
        match = re.fullmatch(r"([^@=]*)(?:@([^=]*))?(?:=(.*))?", head)
        if match is None:
            raise args.wrong(f"{head!r} is not of this form")
        pair, alpha, place = match.groups()
        numbers = [part for part in rest if part not in METHODS]
        if (alpha is None) != bool(numbers) or len(numbers) > 1:
            raise args.wrong("one ALPHA from 0 to 1 expected")
        value = args.number(alpha if alpha is not None else numbers[0])
        if not 0.0 <= value <= 1.0:
            raise args.wrong(f"ALPHA is {value:g}, a number from 0 to 1 expected")
        place = args.keywords.get("replace", place)
        first, second = args.pair(pair)
        return cls(first, second, value, None if place is None else args.index(place), args.method, args.only)

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
