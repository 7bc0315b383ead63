"""Ops that copy layers: bridge, graft, duplicate, triple, repeat; and attenuate, which weakens copies."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from gguf_tools.errors import InputError
from surgery.algebra import Original, Stack, scaled
from surgery.ops.base import DONOR, Arguments, Op, Span, check, expand, span_text
from surgery.ops.words import block, capital, layers


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
    def sentence(self) -> str:
        return f"A copy of layer {self.source} is inserted after layer {self.after}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.source}:{self.after}",)


@dataclass(frozen=True)
class Graft(Op):
    """Copies of the layers `span` of the donor `source`, of which the first becomes layer `to`."""

    source: str
    span: Span
    to: int

    name: ClassVar[str] = "graft"
    usage: ClassVar[str] = "B:I..J@K"
    help: ClassVar[str] = (
        "Insert layers I to J of another model, which --with names B, before layer K, so that the first becomes layer K "
        "(K = number of layers: behind the last)."
    )

    @classmethod
    def parse(cls, args: Arguments) -> Graft:
        """Parse `B:I..J@K`; errors as `Op.parse`."""
        args.refuse("only", "method", "replace")
        match = re.fullmatch(rf"({DONOR}):([^@:]*)@([^@:]*)", args.one())
        if match is None:
            raise args.wrong(f"{args.one()!r} is not of this form")
        source, block, place = match.groups()
        return cls(source, args.span(block.strip()), args.index(place))

    def apply(self, stack: Stack) -> Stack:
        if self.to > len(stack):
            raise InputError(f"{self}: there is no place {self.to}; at this point the places are 0 to {len(stack)}")
        return (*stack[: self.to], *self.donors, *stack[self.to :])

    @property
    def donors(self) -> tuple[Original, ...]:
        return tuple(Original(index, self.source) for index in expand((self.span,)))

    @property
    def sentence(self) -> str:
        becomes = " and becomes" if self.span[0] == self.span[1] else "; the first becomes"
        return f"{block(self.span, self.source)} inserted{becomes} layer {self.to}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.source}:{span_text(self.span)}@{self.to}",)


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
    def sentence(self) -> str:
        return f"A copy of layer {self.layer} is inserted after it."

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
    def sentence(self) -> str:
        return f"Two copies of layer {self.layer} are inserted after it."

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
            raise args.wrong(f"K is {times.strip()!r}; expected a whole number")
        count = int(times.strip()) if times else 2
        if not 1 <= count <= MAX_TIMES:
            raise args.wrong(f"K is {count}; expected a number from 1 to {MAX_TIMES}")
        return cls(args.span(block.strip()), count)

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *self.span)
        first, last = self.span
        return (*stack[:first], *stack[first : last + 1] * self.times, *stack[last + 1 :])

    @property
    def sentence(self) -> str:
        one = self.span[0] == self.span[1]
        times = "once" if self.times == 1 else "twice" if self.times == 2 else f"{self.times} times"
        return f"{capital(layers(self.span))} run{'s' * one} {times}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{span_text(self.span)}x{self.times}",)


ALL = "all"


@dataclass(frozen=True)
class Attenuate(Op):
    """Attenuates the layers of the block (all layers for None) that run more than once in it.

    The contribution of each of n copies to the residual stream is multiplied by sqrt(1/n), which keeps the variance of a sum
    of independent outputs. The queries and keys of all copies except the first are multiplied by sqrt(1/2) each, which halves
    their attention scores. Source: recipes for repeated layers in issue 198 of arcee-ai/mergekit, where n is 2.
    """

    span: Span | None

    name: ClassVar[str] = "attenuate"
    usage: ClassVar[str] = "all|I..J"
    help: ClassVar[str] = (
        "Attenuate the layers (of I to J) that run n times: multiply the contribution of each copy by √(1/n), and q and k of all "
        "copies except the first by √½ (mergekit issue 198)."
    )

    @classmethod
    def parse(cls, args: Arguments) -> Attenuate:
        args.refuse("only", "method", "replace")
        text = args.one()
        return cls(None if text == ALL else args.span(text))

    def apply(self, stack: Stack) -> Stack:
        """The new stack. Raises InputError if an index is not in the stack, or no layer of the block runs more than once."""
        first, last = self.span or (0, len(stack) - 1)
        check(self, stack, first, last)
        block = stack[first : last + 1]
        times = Counter(block)
        if max(times.values()) == 1:
            raise InputError(
                f"{self}: no layer from {first} to {last} runs more than once; repeat or duplicate it first"
            )
        made = []
        for n, layer in enumerate(block):
            copy = layer in block[:n]
            weaker = scaled(layer, sqrt(1 / times[layer]), query_key=sqrt(0.5) if copy else 1.0)
            made.append(weaker if times[layer] > 1 else layer)
        return (*stack[:first], *made, *stack[last + 1 :])

    @property
    def sentence(self) -> str:
        where = "" if self.span is None else f" among {layers(self.span)}"
        added = "what each copy adds to the residual stream is multiplied by √(1/n)"
        return f"Of every layer{where} that runs n times, {added}, and the queries and keys of all but the first by √½."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (ALL if self.span is None else span_text(self.span),)
