"""How much a measurement of sensitivities computes: on how many tokens, and which tensors it rounds together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

WORK = 5e12
"""Multiplications by a weight (tokens × weights × runs) that a measurement takes, as long as larger groups of tensors allow it:
some minutes on two cores."""
FEWEST_TOKENS = 512
"""Tokens on which every model is measured."""

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def most_tokens(tensors: int, weights: int) -> int:
    """Tokens on which a model of `weights` weights can be measured `tensors` times within `WORK`; at least `FEWEST_TOKENS`."""
    return max(FEWEST_TOKENS, int(WORK / max(1, tensors * weights)))


def most_runs(tokens: int, weights: int) -> int:
    """Runs of a model of `weights` weights on `tokens` tokens within `WORK`."""
    return int(WORK / max(1, tokens * weights))


def grouped(names: Sequence[str], runs: int) -> list[tuple[str, ...]]:
    """Tensors to round together: each alone if that takes at most `runs` runs, else those of one role in consecutive layers.

    A tensor's role is its name without the number of the layer. Groups are as small as `runs` allows, or all layers. The first
    and the last layer with a role are never grouped, because they are often far more sensitive than the others.
    """
    roles: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        found = _LAYER.fullmatch(name)
        roles.setdefault(found[2] if found else name, []).append((int(found[1]) if found else 0, name))
    layers = [[name for _, name in sorted(members)] for members in roles.values()]
    sizes = range(1, max(map(len, layers), default=1) + 1)
    choices = ([group for members in layers for group in _split(members, size)] for size in sizes)
    groups: list[tuple[str, ...]] = []
    for groups in choices:
        if len(groups) <= runs:
            break
    return groups


def _split(members: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """The first and the last alone, and the others in runs of at most `size`, of nearly equal lengths."""
    inner = members[1:-1]
    count = -(-len(inner) // size)
    ends = [len(inner) * n // count for n in range(count + 1)] if count else []
    runs = [tuple(inner[start:stop]) for start, stop in pairwise(ends)]
    return [tuple(members[:1]), *runs, *([tuple(members[-1:])] if len(members) > 1 else [])]
