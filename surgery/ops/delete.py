"""Leave layers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gguf_tools.errors import InputError
from surgery.ops.base import Arguments, Op, Span, check, check_once, expand, span_text
from surgery.plan import Stack


@dataclass(frozen=True)
class Delete(Op):
    """All of these layers are left out at once; at least one layer must stay."""

    spans: tuple[Span, ...]

    name: ClassVar[str] = "delete"
    usage: ClassVar[str] = "N|I..J[,…]"
    help: ClassVar[str] = "Leave out layer N, or I to J."

    @classmethod
    def parse(cls, args: Arguments) -> Delete:
        args.refuse("only", "method", "replace")
        return cls(tuple(args.span(part) for part in args.parts))

    def apply(self, stack: Stack) -> Stack:
        check(self, stack, *(end for span in self.spans for end in span))
        gone = expand(self.spans)
        check_once(self, gone)
        if len(gone) == len(stack):
            raise InputError(f"{self}: all {len(stack)} layers would go; leave at least one")
        return tuple(layer for n, layer in enumerate(stack) if n not in set(gone))

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(map(span_text, self.spans))
