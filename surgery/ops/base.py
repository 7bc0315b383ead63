"""The base class of ops, and the parser of their arguments."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

from gguf_tools.errors import InputError
from surgery.algebra import HALVES, METHODS, Half, Layer, Method, Original, Stack

Span = tuple[int, int]
"""First and last index, both included."""
Operand = int | Original
"""A layer of the stack by its index, or a donor's."""
AUTO = "auto:"
"""How an op's value begins that is to be resolved by measuring."""
DONOR = r"[A-Za-z][A-Za-z0-9_]*"
"""The name of a donor, as in `B:3`."""


class Op(ABC):
    """One step of a recipe: a frozen description that maps a stack of layers to a stack of layers.

    `usage` is the form of its option's value; `keywords` are those of its own, beside `only`, `method` and `replace`; `parse`
    reads that value, or the text in parentheses in a recipe.
    """

    name: ClassVar[str]
    usage: ClassVar[str]
    help: ClassVar[str]
    takes_only: ClassVar[bool] = False
    keywords: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    @abstractmethod
    def parse(cls, args: Arguments) -> Op:
        """The op with these arguments; otherwise InputError, which shows the form."""

    @abstractmethod
    def apply(self, stack: Stack) -> Stack:
        """The new stack; InputError, with the valid range, if an index is not in the stack."""

    @property
    def measures(self) -> bool:
        """Whether the op is to be resolved by measuring (`surgery.auto`) before it can be applied."""
        return False

    @property
    def donors(self) -> tuple[Original, ...]:
        """The layers of other models that the op names."""
        return ()

    @property
    @abstractmethod
    def sentence(self) -> str:
        """What the op does, for readers of a model card; layers are numbered from 0, as they stand when the op is reached."""

    @property
    @abstractmethod
    def arguments(self) -> tuple[str, ...]:
        """The arguments as written in the parentheses of a recipe."""

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.arguments)})"


@dataclass(frozen=True)
class Arguments:
    """An op's arguments: `parts` separated by commas, and `keywords` of the form key=value."""

    op: type[Op]
    text: str
    parts: tuple[str, ...]
    keywords: Mapping[str, str]

    @classmethod
    def read(cls, op: type[Op], text: str) -> Arguments:
        """Split an option's value, or the text in parentheses in a recipe."""
        pieces = [piece.strip() for piece in text.split(",")]
        named = [piece for piece in pieces if re.match(r"[a-z]+\s*=", piece)]
        keywords = {key.strip(): value.strip() for key, _, value in (piece.partition("=") for piece in named)}
        known = {"only", "method", "replace", *op.keywords}
        args = cls(op, text, tuple(piece for piece in pieces if piece not in named), keywords)
        if set(keywords) - known:
            raise args.wrong(f"{min(set(keywords) - known)!r} is not an argument")
        if not args.parts or not all(args.parts):
            raise args.wrong("an argument is missing")
        return args

    def wrong(self, problem: str) -> InputError:
        """The error for arguments that do not have the op's form."""
        return InputError(f"{self.op.name} {self.text}: {problem}; write {self.op.name} as {self.op.usage}")

    def refuse(self, *keywords: str) -> None:
        """Raise InputError if any of these keywords was given."""
        for key in keywords:
            if key in self.keywords:
                raise self.wrong(f"{self.op.name} takes no {key}")

    def one(self) -> str:
        """The only part."""
        if len(self.parts) != 1:
            raise self.wrong(f"{len(self.parts)} arguments are given; expected one")
        return self.parts[0]

    def index(self, text: str) -> int:
        """A layer's or an expert's number."""
        if not re.fullmatch(r"\d{1,9}", text.strip()):
            raise self.wrong(f"{text.strip()!r} is not a layer or expert number")
        return int(text.strip())  # int alone takes fewer characters for white space than strip

    def pair(self, text: str) -> tuple[int, int]:
        """A:B."""
        first, colon, second = text.partition(":")
        if not colon:
            raise self.wrong(f"{text!r} is not a pair A:B")
        return self.index(first), self.index(second)

    def operands(self, text: str) -> tuple[Operand, Operand]:
        """Two layers A:B, each of which may be a donor's, as in 3:B:4."""
        match = re.fullmatch(rf"(?:({DONOR}):)?([^:]*):(?:({DONOR}):)?([^:]*)", text.strip())
        if match is None:
            raise self.wrong(f"{text!r} is not a pair")
        source, first, other, second = match.groups()
        return self._operand(source, first), self._operand(other, second)

    def _operand(self, source: str | None, text: str) -> Operand:
        index = self.index(text)
        return Original(index, source) if source else index

    def span(self, text: str) -> Span:
        """I..J, or one number."""
        first, dots, last = text.partition("..")
        start = self.index(first)
        stop = self.index(last) if dots else start
        if stop < start:
            raise self.wrong(f"{text} is descending; expected {stop}..{start}")
        return start, stop

    def number(self, text: str) -> float:
        """A finite number."""
        try:
            value = float(text)
        except ValueError:
            raise self.wrong(f"{text.strip()!r} is not a number") from None
        if not isfinite(value):
            raise self.wrong(f"{text.strip()!r} is not a finite number")
        return value

    @property
    def only(self) -> Half | None:
        """The half given by only=…, or None."""
        value = self.keywords.get("only")
        if value is not None and value not in HALVES:
            raise self.wrong(f"only={value} is not known; expected {' or '.join(HALVES)}")
        return value

    @property
    def method(self) -> Method:
        """The blend method, given by method=… or as one of the parts."""
        word = next((part for part in self.parts if part in METHODS), None)
        value = self.keywords.get("method", word or "linear")
        if value not in METHODS:
            raise self.wrong(f"method={value} is not known; expected {' or '.join(METHODS)}")
        return value


def keyword_texts(method: Method = "linear", only: Half | None = None) -> tuple[str, ...]:
    """The two keywords in the text of a recipe, if they differ from the defaults."""
    texts = (f"method={method}" if method != "linear" else "", f"only={only}" if only else "")
    return tuple(text for text in texts if text)


def span_text(span: Span) -> str:
    """I..J, or the one number."""
    return str(span[0]) if span[0] == span[1] else f"{span[0]}..{span[1]}"


def operand_text(operand: Operand) -> str:
    """N, or B:N for a donor's layer."""
    return f"{operand.source}:{operand.index}" if isinstance(operand, Original) else str(operand)


def layer_at(stack: Stack, operand: Operand) -> Layer:
    """The layer that an operand names, whose index is known to be in the stack."""
    return operand if isinstance(operand, Original) else stack[operand]


def donors_of(*operands: Operand) -> tuple[Original, ...]:
    """The operands that are layers of donors."""
    return tuple(operand for operand in operands if isinstance(operand, Original))


def own(*operands: Operand | None) -> tuple[int, ...]:
    """The operands that are indices of the stack."""
    return tuple(operand for operand in operands if isinstance(operand, int))


def expand(spans: Sequence[Span]) -> list[int]:
    """Every index of the spans, in order."""
    return [index for first, last in spans for index in range(first, last + 1)]


def unresolved(op: Op) -> InputError:
    """The error for an op that is applied without having been resolved by measuring."""
    return InputError(
        f"{op}: the indices have to be measured first, which tinyq surgery does (--dry-run shows them, --save-recipe writes them)"
    )


def check(op: Op, stack: Stack, *indices: int) -> None:
    """Raise InputError, with the valid range, if an index is not in the stack."""
    for index in indices:
        if not 0 <= index < len(stack):
            raise InputError(
                f"{op}: there is no layer {index}; the model has {len(stack)} layers at this point, 0 to {len(stack) - 1}"
            )


def check_once(op: Op, indices: Sequence[int], what: str = "layer") -> None:
    """Raise InputError if an index occurs twice."""
    twice = next((index for n, index in enumerate(indices) if index in indices[:n]), None)
    if twice is not None:
        raise InputError(f"{op}: {what} {twice} is given twice; give each once, or use two ops one after the other")
