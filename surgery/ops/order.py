"""Ops that reorder or remove layers: swap, move, reverse, cycle, delete, path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from gguf_tools.errors import InputError
from surgery.algebra import Half, Stack, with_half
from surgery.ops.base import (
    AUTO,
    Arguments,
    Op,
    Span,
    check,
    check_once,
    expand,
    keyword_texts,
    span_text,
    unresolved,
)
from surgery.ops.words import block, capital, from_to, half_of, listed, spans

MEASURES = ("norm", "influence")
"""What a layer does to the residual stream: ‖out - in‖ / ‖in‖, or 1 - cos(in, out), as means over tokens."""


@dataclass(frozen=True)
class Swap(Op):
    """Exchanges the layers of each pair, or only their halves `only`."""

    pairs: tuple[tuple[int, int], ...]
    only: Half | None = None

    name: ClassVar[str] = "swap"
    usage: ClassVar[str] = "A:B[,C:D…]"
    help: ClassVar[str] = "Exchange layers A and B (and C and D …)."
    takes_only: ClassVar[bool] = True

    @classmethod
    def parse(cls, args: Arguments) -> Swap:
        args.refuse("method", "replace")
        return cls(tuple(args.pair(part) for part in args.parts), args.only)

    def apply(self, stack: Stack) -> Stack:
        named = [index for pair in self.pairs for index in pair]
        check(self, stack, *named)
        check_once(self, named)
        out = list(stack)
        for a, b in self.pairs:
            out[a], out[b] = with_half(stack[a], stack[b], self.only), with_half(stack[b], stack[a], self.only)
        return tuple(out)

    @property
    def sentence(self) -> str:
        pairs = listed([f"layers {a} and {b}" for a, b in self.pairs])
        return capital(f"{half_of(self.only)}{pairs} change places.")

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*(f"{a}:{b}" for a, b in self.pairs), *keyword_texts(only=self.only))


@dataclass(frozen=True)
class Move(Op):
    """Moves layer `layer` to index `to`; the layers between shift by one."""

    layer: int
    to: int

    name: ClassVar[str] = "move"
    usage: ClassVar[str] = "A:B"
    help: ClassVar[str] = "Move layer A so that it becomes layer B."

    @classmethod
    def parse(cls, args: Arguments) -> Move:
        args.refuse("only", "method", "replace")
        return cls(*args.pair(args.one()))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, self.layer, self.to)
        out = list(stack)
        out.insert(self.to, out.pop(self.layer))
        return tuple(out)

    @property
    def sentence(self) -> str:
        return f"Layer {self.layer} is moved and becomes layer {self.to}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.layer}:{self.to}",)


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
    def sentence(self) -> str:
        return f"{block(self.span)} put in the opposite order."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (span_text(self.span),)


@dataclass(frozen=True)
class Cycle(Op):
    """Rotates the block: each layer moves `by` places towards the end, and the last ones move to the start."""

    span: Span
    by: int = 1

    name: ClassVar[str] = "cycle"
    usage: ClassVar[str] = "I..J[@K]"
    help: ClassVar[str] = "Rotate layers I to J by K places towards the end (1 by default; negative the other way)."

    @classmethod
    def parse(cls, args: Arguments) -> Cycle:
        args.refuse("only", "method", "replace")
        block, at, by = args.one().partition("@")
        if at and not re.fullmatch(r"[+-]?\d{1,9}", by.strip()):
            raise args.wrong(f"K is {by.strip()!r}; expected a whole number")
        return cls(args.span(block.strip()), int(by.strip()) if at else 1)

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *self.span)
        first, last = self.span
        block = stack[first : last + 1]
        cut = -self.by % len(block)
        return (*stack[:first], *block[cut:], *block[:cut], *stack[last + 1 :])

    @property
    def sentence(self) -> str:
        count, end = abs(self.by), "end" if self.by >= 0 else "start"
        return f"{block(self.span)} rotated by {count} {'place' if count == 1 else 'places'} towards the {end}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{span_text(self.span)}@{self.by}",)


@dataclass(frozen=True)
class Delete(Op):
    """Removes all of these layers at once; at least one layer must remain.

    With `auto` these are that many layers, which change the residual stream least `by` one of MEASURES on a text.
    """

    spans: tuple[Span, ...]
    auto: int = 0
    by: str = MEASURES[0]

    keywords: ClassVar[frozenset[str]] = frozenset({"by"})
    name: ClassVar[str] = "delete"
    usage: ClassVar[str] = "N|I..J[,…] or auto:N[,by=influence]"
    help: ClassVar[str] = (
        "Leave out layer N, or I to J; or the N layers that change the residual stream least on a text: by ‖out - in‖ / ‖in‖, or "
        "by block influence, 1 - cos(in, out). auto has to be the first op."
    )

    @classmethod
    def parse(cls, args: Arguments) -> Delete:
        args.refuse("only", "method", "replace")
        if args.parts[0].startswith(AUTO):
            count, by = args.index(args.one().removeprefix(AUTO)), args.keywords.get("by", MEASURES[0])
            if by not in MEASURES or not count:
                raise args.wrong(f"by={by} is not known; expected {' or '.join(MEASURES)}" if count else "N is 0")
            return cls((), count, by)
        if "by" in args.keywords:
            raise args.wrong("by says how auto:N is measured, and layers are named")
        return cls(tuple(args.span(part) for part in args.parts))

    @property
    def measures(self) -> bool:
        return self.auto > 0

    def apply(self, stack: Stack) -> Stack:
        if self.measures:
            raise unresolved(self)
        check(self, stack, *(end for span in self.spans for end in span))
        gone = expand(self.spans)
        check_once(self, gone)
        if len(gone) == len(stack):
            raise InputError(f"{self}: all {len(stack)} layers would be deleted; keep at least one")
        return tuple(layer for n, layer in enumerate(stack) if n not in set(gone))

    @property
    def sentence(self) -> str:
        if self.measures:
            what = "relative norm of the change" if self.by == MEASURES[0] else "block influence"
            which = "layer that changes" if self.auto == 1 else f"{self.auto} layers that change"
            return f"The {which} the residual stream least {'is' if self.auto == 1 else 'are'} left out, by {what}."
        return f"{spans(self.spans)} left out."

    @property
    def arguments(self) -> tuple[str, ...]:
        if self.measures:
            return (f"{AUTO}{self.auto}", *([f"by={self.by}"] if self.by != MEASURES[0] else []))
        return tuple(map(span_text, self.spans))


@dataclass(frozen=True)
class Path(Op):
    """Replaces the stack by the given layers in the given order; layers may occur several times or not at all."""

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
    def sentence(self) -> str:
        return f"The layers run in the order {', '.join(map(from_to, self.spans))}."

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(map(span_text, self.spans))
