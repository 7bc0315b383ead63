"""Layers, blocks and halves in the sentences of ops."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.algebra import Half, Method, Original
from surgery.ops.base import Operand, Span

HALF_NAMES: dict[Half, str] = {"attention": "attention", "ffn": "feed-forward"}


def listed(words: Sequence[object]) -> str:
    """a; a and b; a, b and c."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def from_to(span: Span) -> str:
    """3, or 3 to 5."""
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"


def capital(text: str) -> str:
    """The text as a sentence begins."""
    return text[0].upper() + text[1:]


def layers(span: Span) -> str:
    """layer 3, layers 3 and 4, layers 3 to 5."""
    ends = listed(span) if span[1] - span[0] == 1 else from_to(span)
    return f"layer{'s' * (span[0] != span[1])} {ends}"


def block(span: Span, source: str = "") -> str:
    """Layer 3 is, Layers 3 to 5 are; of another model with its name."""
    of = f" of {source}" if source else ""
    return f"{capital(layers(span))}{of} {'is' if span[0] == span[1] else 'are'}"


def spans(found: Sequence[Span]) -> str:
    """Layer 3 is, Layers 3 and 5 to 7 are."""
    one = len(found) == 1 and found[0][0] == found[0][1]
    return f"Layer{'s' * (not one)} {listed([*map(from_to, found)])} {'is' if one else 'are'}"


def layer_name(operand: Operand) -> str:
    """layer 3, or layer 3 of B."""
    return f"layer {operand.index} of {operand.source}" if isinstance(operand, Original) else f"layer {operand}"


def by_method(method: Method) -> str:
    """How layers are blended, unless linearly."""
    return {"linear": "", "slerp": " (spherical)", "slerp-tensor": " (spherical, tensor by tensor)"}[method]


def only_half(half: Half | None) -> str:
    """The half that an op is restricted to, at a sentence's end."""
    return "" if half is None else f", in its {HALF_NAMES[half]} only"


def half_of(half: Half | None) -> str:
    """The half that an op is restricted to, at a sentence's start."""
    return "" if half is None else f"the {HALF_NAMES[half]} halves of "
