"""Exchange layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check, check_once, keyword_texts
from surgery.plan import Half, Stack, with_half


@dataclass(frozen=True)
class Swap(Op):
    """The layers of each pair change places, or just their halves `only`."""

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
    def arguments(self) -> tuple[str, ...]:
        return (*(f"{a}:{b}" for a, b in self.pairs), *keyword_texts(only=self.only))
