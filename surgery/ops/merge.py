"""Two layers into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgery.ops.base import Arguments, Op, check, check_once, keyword_texts
from surgery.plan import METHODS, Half, Method, Stack, blend, with_half


@dataclass(frozen=True)
class Merge(Op):
    """The mean of two layers takes the place of the first, and the second is gone.

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
            raise args.wrong(f"{args.parts[1]!r} is not expected")
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
