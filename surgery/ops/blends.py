"""Arithmetic between layers: interpolate, merge, scale."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from surgery.algebra import METHODS, Half, Method, Original, Stack, blend, scaled, with_half
from surgery.ops.base import (
    Arguments,
    Op,
    Operand,
    Span,
    check,
    check_once,
    donors_of,
    expand,
    keyword_texts,
    layer_at,
    operand_text,
    own,
    span_text,
)
from surgery.ops.words import HALF_NAMES, by_method, layer_name, layers, only_half


@dataclass(frozen=True, kw_only=True)
class Interpolate(Op):
    """Inserts (1 - alpha) · first + alpha · second after `first`, or replaces layer `replace` by it.

    Without `replace`, `first` is a layer of the stack; `second`, and `first` with `replace`, may be a donor's.

    With `only` the other half of the new layer is that of `first`, or that of the replaced layer.
    """

    first: Operand
    second: Operand
    alpha: float
    replace: int | None = None
    method: Method = "linear"
    only: Half | None = None

    name: ClassVar[str] = "interpolate"
    usage: ClassVar[str] = "L:M@ALPHA[=N][,slerp|slerp-tensor]"
    help: ClassVar[str] = (
        "Insert (1 - ALPHA)·L + ALPHA·M after layer L, or put it in the place of layer N. L or M may be a layer B:N of --with."
    )
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
        first, second = args.operands(pair)
        if place is None and isinstance(first, Original):
            raise args.wrong(
                f"{operand_text(first)} is no layer of the model, and =N does not say which one is replaced"
            )
        return cls(
            first=first,
            second=second,
            alpha=value,
            replace=None if place is None else args.index(place),
            method=args.method,
            only=args.only,
        )

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *own(self.first, self.second, self.replace))
        layers = [layer_at(stack, operand) for operand in (self.first, self.second)]
        mixed = blend(list(zip(layers, (1.0 - self.alpha, self.alpha), strict=True)), self.method)
        (place,) = own(self.first) if self.replace is None else (self.replace,)
        made = with_half(stack[place], mixed, self.only)
        return (*stack[: place if self.replace is not None else place + 1], made, *stack[place + 1 :])

    @property
    def donors(self) -> tuple[Original, ...]:
        return donors_of(self.first, self.second)

    @property
    def sentence(self) -> str:
        first, second = layer_name(self.first), layer_name(self.second)
        mixed = f"{1 - self.alpha:g} of {first} and {self.alpha:g} of {second}{by_method(self.method)}"
        place = f"is inserted after {first}" if self.replace is None else f"takes the place of layer {self.replace}"
        return f"A layer made of {mixed} {place}{only_half(self.only)}."

    @property
    def arguments(self) -> tuple[str, ...]:
        place = () if self.replace is None else (f"replace={self.replace}",)
        pair = f"{operand_text(self.first)}:{operand_text(self.second)}"
        return (pair, f"{self.alpha!r}", *place, *keyword_texts(self.method, self.only))


@dataclass(frozen=True)
class Merge(Op):
    """Replaces the first of two layers by their mean and removes the second, unless that is a donor's.

    With `only` the other half is that of the first.
    """

    first: int
    second: Operand
    method: Method = "linear"
    only: Half | None = None

    name: ClassVar[str] = "merge"
    usage: ClassVar[str] = "L:M[,slerp|slerp-tensor]"
    help: ClassVar[str] = (
        "Put the mean of layers L and M in the place of L, and leave M out. M may be a layer B:N of --with."
    )
    takes_only: ClassVar[bool] = True

    @classmethod
    def parse(cls, args: Arguments) -> Merge:
        args.refuse("replace")
        if any(part not in METHODS for part in args.parts[1:]):
            raise args.wrong(f"unexpected argument {args.parts[1]!r}")
        first, second = args.operands(args.parts[0])
        if isinstance(first, Original):
            raise args.wrong(f"{operand_text(first)} is not a layer of the model; name the model's own layer first")
        return cls(first, second, args.method, args.only)

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *own(self.first, self.second))
        check_once(self, own(self.first, self.second))
        mean = blend(((stack[self.first], 0.5), (layer_at(stack, self.second), 0.5)), self.method)
        out = list(stack)
        out[self.first] = with_half(stack[self.first], mean, self.only)
        for index in own(self.second):
            del out[index]
        return tuple(out)

    @property
    def donors(self) -> tuple[Original, ...]:
        return donors_of(self.second)

    @property
    def sentence(self) -> str:
        first, second = layer_name(self.first), layer_name(self.second)
        gone = "" if isinstance(self.second, Original) else f", and {second} is left out"
        mean = f"The mean of {first} and {second}{by_method(self.method)}"
        return f"{mean} takes the place of {first}{only_half(self.only)}{gone}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.first}:{operand_text(self.second)}", *keyword_texts(self.method, self.only))


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
    def sentence(self) -> str:
        one, where = self.span[0] == self.span[1], layers(self.span)
        what = (
            f"What {where} add{'s' * one}" if self.only is None else f"What the {HALF_NAMES[self.only]} of {where} adds"
        )
        return f"{what} to the residual stream is multiplied by {self.factor:g}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{span_text(self.span)}@{self.factor!r}", *keyword_texts(only=self.only))
