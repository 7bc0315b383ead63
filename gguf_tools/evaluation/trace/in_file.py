"""Faults of a file: each of its tensors, and each value of its metadata, in place of what the file should hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from gguf_tools.evaluation.trace.hypotheses import Hypothesis
from gguf_tools.evaluation.trace.stated import stated_otherwise
from gguf_tools.evaluation.trace.tensors import told_apart
from gguf_tools.evaluation.trace.work import Work
from gguf_tools.model.spec import LayerSpec
from gguf_tools.reference import Reference
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.reference.weights import Weights

MOST_NAMED = 3
"""Most differences that are named together."""


def of_layer(work: Work, n: int, mine: Reference) -> Iterator[Hypothesis]:
    """What layer n of the file states or stores otherwise, one by one, and then all together; `mine` is the file's reference."""
    spec, held = work.stored.reference.spec.layers[n], work.stored.reference.layers[n]
    if n >= len(mine.spec.layers):
        return
    stated, theirs = mine.spec.layers[n], mine.layers[n]
    said = []
    for text, changed in stated_otherwise(spec, stated):
        said.append(text)
        yield Hypothesis(text, changed, held, in_file=True)
    for roles, text in differing(work, n, held, theirs, spec):
        said.append(text)
        yield Hypothesis(text, spec, {**held, **{role: theirs[role] for role in roles}}, roles[0], in_file=True)
    said += [f"{role} is only in the {place}" for role, place in _unpaired(held, theirs)]
    if len(said) > 1:
        yield Hypothesis(_together(said), stated, theirs, in_file=True)


def differing(
    work: Work, n: int, held: Weights, theirs: Weights, spec: LayerSpec | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(roles, how it differs) for each tensor of the file that is not what it should be; n is `OUTSIDE` for no layer.

    A tensor of the file that holds the weights of several roles is told as one.
    """
    found: dict[str, list[str]] = {}
    for role, tensor in theirs.items():
        mine = held.get(role)
        if mine is not None and mine.shape == tensor.shape and not torch.equal(mine, tensor):
            found.setdefault(", ".join(work.names(n, role)) or role, []).append(role)
    for names, roles in found.items():
        if len(roles) == 1:
            told = told_apart(held[roles[0]], theirs[roles[0]], spec, roles[0], held)
            yield (roles[0],), f"{work.label(n, roles[0], theirs)}: {told}"
        else:
            mine, tensor = (torch.cat([one[role] for role in roles]) for one in (held, theirs))
            yield tuple(roles), f"{names}: {told_apart(mine, tensor, None, '')}"


def of_ends(work: Work, mine: Reference) -> Iterator[tuple[str, str, Reference]]:
    """(text, role, the reference so) for what the file states or stores otherwise outside its layers."""
    stored = work.stored.reference
    bare, theirs = replace(stored.spec, layers=()), replace(mine.spec, layers=())
    for text, changed in stated_otherwise(bare, theirs):
        yield text, "", stored.changed(replace(changed, layers=stored.spec.layers), stored.weights)
    for roles, text in differing(work, OUTSIDE, stored.weights, mine.weights, None):
        given = {role: mine.weights[role] for role in roles}
        yield text, roles[0], stored.changed(stored.spec, {**stored.weights, **given})


def _unpaired(held: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The roles that only the source, or only the file, has a tensor of."""
    missing = [(role, "source") for role in held if role not in theirs]
    return missing + [(role, "file") for role in theirs if role not in held]


def _together(said: list[str]) -> str:
    """Several differences as one cause."""
    more = len(said) - MOST_NAMED
    return "; ".join(said[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
