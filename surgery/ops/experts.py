"""Ops on the experts of a layer: drop, swap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.algebra import DropExperts, Stack, SwapExperts, edited
from surgery.ops.base import AUTO, Arguments, Op, Span, check, check_once, expand, span_text, unresolved
from surgery.ops.words import layers, listed

MAX_EXPERTS = 1 << 16


@dataclass(frozen=True)
class DropExpertsOp(Op):
    """Removes experts from these layers, with their rows of the router (and of its bias).

    With `auto` (a number) or `share` (of all) these are that many of each layer, those of the smallest saliency on a text.
    """

    span: Span
    experts: tuple[int, ...]
    auto: int = 0
    share: float = 0.0

    name: ClassVar[str] = "drop-experts"
    usage: ClassVar[str] = "L:E[,E…], I..J:E[,E…] or auto:N[%]"
    help: ClassVar[str] = (
        "Leave experts E out of layer L (or I to J), the router following; or the N (N %) of each layer that give least on a "
        "text (REAP: router weight times norm of the output, over the tokens routed to an expert). auto has to be the first op."
    )

    @classmethod
    def parse(cls, args: Arguments) -> DropExpertsOp:
        """Parse `L:E[,E…]`, `I..J:E[,E…]`, `auto:N` or `auto:N%`; errors as `Op.parse`."""
        args.refuse("only", "method", "replace")
        if args.parts[0].startswith(AUTO):
            text = args.one().removeprefix(AUTO)
            count = args.number(text.removesuffix("%")) if text.endswith("%") else args.index(text)
            if not 0 < count < (100 if text.endswith("%") else MAX_EXPERTS):
                raise args.wrong(f"{text} is no number of experts, nor a share between 0 and 100 %")
            return cls((0, 0), (), share=count / 100) if text.endswith("%") else cls((0, 0), (), auto=int(count))
        layers, colon, first = args.parts[0].partition(":")
        if not colon:
            raise args.wrong("the experts are missing")
        return cls(args.span(layers.strip()), tuple(args.index(part) for part in (first, *args.parts[1:])))

    @property
    def measures(self) -> bool:
        return self.auto > 0 or self.share > 0

    def apply(self, stack: Stack) -> Stack:
        if self.measures:
            raise unresolved(self)
        check(self, stack, *self.span)
        check_once(self, self.experts, "expert")
        inside = set(expand((self.span,)))
        edit = DropExperts(tuple(sorted(self.experts)))
        return tuple(edited(layer, edit) if n in inside else layer for n, layer in enumerate(stack))

    @property
    def sentence(self) -> str:
        if self.measures:
            if self.auto == 1:
                return "The expert of each layer that gives least on a text is left out."
            share = f"{self.share * 100:g} % of the experts" if self.share else f"{self.auto} experts"
            return f"The {share} of each layer that give least on a text are left out."
        names = f"Expert {self.experts[0]} is" if len(self.experts) == 1 else f"Experts {listed(self.experts)} are"
        return f"{names} left out of {layers(self.span)}."

    @property
    def arguments(self) -> tuple[str, ...]:
        if self.measures:
            return (f"{AUTO}{self.auto}" if self.auto else f"{AUTO}{self.share * 100:g}%",)
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
    def sentence(self) -> str:
        return f"Experts {self.first} and {self.second} of layer {self.layer} change places."

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"{self.layer}:{self.first}:{self.second}",)
