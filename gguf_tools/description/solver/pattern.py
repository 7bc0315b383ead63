"""The attention pattern: jointly on a few tokens, then with several candidates on longer prompts, at last layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import torch

from gguf_tools.description.assignment import Assignment
from gguf_tools.description.choices import HEAD_FIELDS, Choices, Where
from gguf_tools.description.forms import head_dims
from gguf_tools.description.mixers import per_head_roles
from gguf_tools.description.solver.engine import Engine
from gguf_tools.description.solver.evidence import Batch
from gguf_tools.description.solver.moves import exchanges
from gguf_tools.description.solver.polish import fit
from gguf_tools.model.rope import LinearScaling, Llama3Scaling, Scaling, YarnScaling
from gguf_tools.progress import StageProgress

SHORT, MEDIUM = 4, 16
"""Tokens of the prompts on which the pattern is first enumerated, and on which the rope base is fitted."""
CARRIED = (12, 6, 3)
"""Candidates that go on from the enumeration, from its fit, and from the longer prompts."""
SECOND_BASES = (1e4, 1e6)
"""Bases that some of the layers may have, where the others have another."""
BASES = tuple(10.0 ** (x / 2) for x in range(4, 17))
PAIRS: tuple[Literal["half", "interleaved"], ...] = ("half", "interleaved")
ALIBI = 8.0
"""The largest bias of ALiBi, as its authors have it."""
USUAL_PARTS = (1.0, 0.5, 0.25)
"""Parts of a head that most models with rope rotate."""
PARTS = (0.75, 0.4, 0.125)
"""Other parts, of which an even number of dimensions is taken."""
MOST_DIMS = 8
"""Sizes of heads that are tried where one token does not settle it."""
GOAL = 1e-9
"""NMSE at which a stage needs no further changes."""
COARSE = 3e-4
"""The same for logits in 16 bits, whose rounding leaves as much on longer prompts."""
SCALINGS: tuple[Scaling, ...] = (
    *(LinearScaling(float(factor)) for factor in (2, 4, 8, 16)),
    *(Llama3Scaling(factor, 1.0, 4.0, context) for factor in (8.0, 32.0) for context in (64, 8192)),
    *(
        YarnScaling(factor=factor, original_context=context)
        for factor in (2.0, 4.0, 8.0, 16.0, 32.0, 40.0)
        for context in (64, 2048, 4096, 8192, 32768)
    ),
)
"""Scalings of the rope's frequencies that are tried, by the numbers of published models and of their small copies."""


def solve_pattern(
    engine: Engine,
    choices: Sequence[Choices],
    batches: Sequence[Batch],
    left: float,
    *,
    coarse: bool,
    tell: StageProgress = lambda *_: None,
) -> tuple[Choices, float]:
    """The choices, of those that one token leaves open, that explain the batches, of growing length; with the last NMSE.

    `left` is the NMSE on one token, which no pattern takes away. With `coarse` logits several patterns may come near, so that all
    are tried, and several go on to longer prompts.
    """
    goal = max(COARSE, 3 * left) if coarse else max(GOAL, 30 * left)
    fitted = _enumerated(engine, choices, batches[0], goal, coarse=coarse, tell=tell)
    kept = [option for option, _ in fitted[: CARRIED[1]]]
    best = fitted[0]
    for n, batch in enumerate(batches[1:], 1):
        tell(f"attention pattern on {batch.length} tokens: prompts", n, len(batches) - 1)
        found = [extended(engine, option, batch, goal) for option in kept[:1]]
        if coarse or min(error for _, error in found) > goal:
            found += [extended(engine, option, batch, goal) for option in kept[1:]]
        found.sort(key=lambda item: item[1])
        best = found[0]
        kept = [option for option, _ in found[: CARRIED[2]]]
    return best


def _enumerated(
    engine: Engine, choices: Sequence[Choices], short: Batch, goal: float, *, coarse: bool, tell: StageProgress
) -> list[tuple[Choices, float]]:
    """The patterns that explain a few tokens best, the usual ones first, and where none of those fits, all."""
    tried = [option for one in choices for option in dict.fromkeys(options(engine.assignment, one))]
    tried.sort(key=_rarity)
    count = sum(_rarity(option) <= (1 if coarse else 0) for option in tried)
    scored: list[tuple[float, int]] = []
    fitted: list[tuple[Choices, float]] = []
    for first, last in ((0, count), (count, len(tried))):
        for n in range(first, last):
            if n % 50 == 0:
                tell(f"attention pattern on {short.length} tokens: candidate", n, len(tried))
            scored.append((engine.error(tried[n], short), n))
        scored.sort()
        fitted = [_fitted(engine, tried[n], short) for _, n in scored[: CARRIED[0]]]
        fitted.sort(key=lambda item: item[1])
        if first == 0 and fitted and fitted[0][1] > goal:  # a few layers may be unlike the others
            more = [extended(engine, option, short, goal) for option, _ in fitted[:2]]
            fitted = sorted([*more, *fitted[2:]], key=lambda item: item[1])
        if fitted and fitted[0][1] <= goal:
            return fitted
    again = [min(item, _rebased(engine, item[0], short), key=lambda one: one[1]) for item in fitted[: CARRIED[1]]]
    fitted = sorted(again + fitted[CARRIED[1] :], key=lambda item: item[1])
    if fitted[0][1] <= goal:
        return fitted
    more = [extended(engine, option, short, goal) for option, _ in fitted[:4]]
    return sorted(more, key=lambda item: item[1]) + fitted[4:]


def _rarity(option: Choices) -> int:
    """0 for a pattern like that of most decoders, 1 for one that some have, 2 for one that rotates a rare part of the heads."""
    if option.dims is not None and option.dims / option.head_dim not in USUAL_PARTS:
        return 2
    return int(option.backwards or option.scale is not None or option.qk_norm == "after")


def options(assignment: Assignment, choices: Choices) -> Iterator[Choices]:
    """Every pattern of attention: which of q and k is which, heads, norms of q and k, rope, scale of the scores."""
    if any(form.spaced or form.mixer == "DeltaNet" for form in choices.forms) and choices.decay == "log":
        for way in unseen_ways(assignment, choices):
            yield from options(assignment, replace(choices, decay="rate", per_head=way))
            if way != choices.per_head:
                yield from _attention(assignment, replace(choices, per_head=way))
    yield from _attention(assignment, choices)


def unseen_ways(assignment: Assignment, choices: Choices) -> list[int]:
    """The numbers of the ways to read the vectors of linear attention that one token does not tell from the way chosen.

    A single token shows neither the decay nor its bias, of the same size. One way for other mixers.
    """
    for group, form in zip(assignment.groups, choices.forms, strict=True):
        ways = per_head_roles(group, form, choices.head_dim) if form.mixer == "DeltaNet" else []
        if ways:
            norm = ways[choices.per_head % len(ways)].index("delta.norm")
            return [n for n, way in enumerate(ways) if way.index("delta.norm") == norm]
    return [choices.per_head]


def _attention(assignment: Assignment, choices: Choices) -> Iterator[Choices]:
    """Every pattern of the layers with attention."""
    attention = next((form for form in choices.forms if form.mixer == "Attention"), None)
    if attention is None:
        yield choices
        return
    dims = [choices.head_dim]
    # Where fused rows are grouped by head, the size of the heads shows on one token; so it does by norms of each head.
    by_head = any(form.fused for form in choices.forms) and choices.qkv[1] == "kv_heads"
    by_head |= any(group.head_norms and group.head_norms[0].squeezed != (attention.q,) for group in assignment.groups)
    if attention.q == attention.kv and not by_head:
        dims = head_dims(attention)[:MOST_DIMS]
    normed = any(group.head_norms for group in assignment.groups) or _placed(choices)
    offsets = {choices.head_offset, 0.0, 1.0} if normed else {choices.head_offset}
    wheres: tuple[Where, ...] = ("before", "after") if normed else ("none", "before", "after")
    for swapped, dim, where, offset in product(_exchanged(assignment, choices, normed), dims, wheres, sorted(offsets)):
        base = replace(swapped, head_dim=dim, qk_norm=where, head_offset=offset)
        scales = (None, 1.0, 1.0 / dim) if where == "none" else (None, 1.0, 0.1)
        for scale in scales:
            if where != "after":
                yield replace(base, rotated=False, scale=scale)
                if assignment.outside.positions is None:
                    yield replace(base, rotated=False, scale=scale, alibi=ALIBI)
            for pairs, backwards, size in product(PAIRS, (False, True), rope_sizes(dim)):
                turned = None if size == dim else size
                yield replace(base, rotated=True, pairs=pairs, backwards=backwards, dims=turned, scale=scale)


def rope_sizes(dim: int) -> list[int]:
    """Numbers of dimensions of a head that rope may rotate."""
    return sorted({round(dim * part / 2) * 2 for part in (*USUAL_PARTS, *PARTS)} - {0}, reverse=True)


def _placed(choices: Choices) -> bool:
    return any(HEAD_FIELDS[0] in fields for _, fields in choices.placements)


def _exchanged(assignment: Assignment, choices: Choices, normed: bool) -> list[Choices]:
    """The choices with q and k, and with their norms, as they are and exchanged; and other orders of fused roles."""
    found = [choices]
    unseen = [move for move in exchanges(choices, assignment.structure.hidden) if _only_qk(choices, move[1])]
    found += [changed for _, changed in unseen]
    if any(form.fused for form in choices.forms):
        order, blocks = choices.qkv
        swap = {"attn.q": "attn.k", "attn.k": "attn.q"}
        found.append(replace(choices, qkv=(tuple(swap.get(role, role) for role in order), blocks)))
    if normed:
        found += [
            replace(one, heads_exchanged=not one.heads_exchanged, placements=_heads_exchanged(one)) for one in found
        ]
    return found


def _only_qk(before: Choices, after: Choices) -> bool:
    """Whether two choices differ by an exchange of q and k alone."""
    changed = {
        role
        for old, new in zip(before.forms, after.forms, strict=True)
        for a, b in zip(old.sources, new.sources, strict=True)
        if a != b
        for role in a.roles
    }
    return changed == {"attn.q", "attn.k"}


def _heads_exchanged(choices: Choices) -> tuple[tuple[int, tuple[str, ...]], ...]:
    swap = {HEAD_FIELDS[0]: HEAD_FIELDS[1], HEAD_FIELDS[1]: HEAD_FIELDS[0]}
    return tuple((count, tuple(swap.get(name, name) for name in fields)) for count, fields in choices.placements)


def unknowns(choices: Choices) -> list[str]:
    """The continuous choices of the pattern."""
    names = ["theta"] if choices.rotated else []
    names += ["alibi"] if choices.alibi else []
    return [*names, *(["second_theta"] if choices.second else []), "scale", *(["softcap"] if choices.softcap else [])]


def _fitted(engine: Engine, choices: Choices, batch: Batch, iterations: int = 4) -> tuple[Choices, float]:
    return fit(lambda tried: engine.residual(tried, batch), choices, unknowns(choices), iterations)


def _rebased(engine: Engine, choices: Choices, batch: Batch) -> tuple[Choices, float]:
    """The choices fitted from the best of `BASES` on, which a fit from another base may not reach."""
    tried = [replace(choices, theta=base) for base in BASES] if choices.rotated else [choices]
    return _fitted(engine, min(tried, key=lambda option: engine.error(option, batch)), batch, 8)


def extended(engine: Engine, choices: Choices, batch: Batch, goal: float) -> tuple[Choices, float]:
    """The choices fitted to a longer batch; where that does not explain it, with windows, scalings and single layers changed."""
    begin = choices
    choices, error = _fitted(engine, begin, batch, 8)
    if error > max(1e-6, goal) and choices.rotated and first_wrong(engine.residual(begin, batch)) == batch.length:
        choices, error = min((choices, error), _rebased(engine, begin, batch), key=lambda item: item[1])
    for again in range(8):
        if error <= goal:
            break
        start = begin if again == 0 and first_wrong(engine.residual(begin, batch)) < batch.length else choices
        before = engine.error(start, batch)
        tried = list(changes(engine, start, batch))
        scored = [(engine.error(option, batch), option) for option in tried]
        fits = [_fitted(engine, option, batch, 6) for option in promising(scored, before, choices)]
        best = min(fits, key=lambda item: item[1], default=(choices, error))
        if best[1] > 0.7 * min(error, before):
            break
        choices, error = best
    if error > goal and choices.rotated:
        choices, error = min((choices, error), _scaled(engine, choices, batch), key=lambda item: item[1])
    return choices, error


def promising(scored: Sequence[tuple[float, Choices]], before: float, choices: Choices) -> list[Choices]:
    """The best four candidates of those that have an effect, and every cap of the scores.

    A cap far above the scores acts like another scale of them, so that it does not show before both are fitted.
    """
    effective = [item for item in scored if abs(item[0] - before) > 1e-4 * before]
    effective.sort(key=lambda item: item[0])
    caps = [option for _, option in effective[4:] if option.softcap and not choices.softcap]
    return [*(option for _, option in effective[:4]), *caps]


def _scaled(engine: Engine, choices: Choices, batch: Batch) -> tuple[Choices, float]:
    """The best scaling of the rope's frequencies, with the base and the scale of the scores fitted to it."""
    tried = [
        replace(choices, theta=theta, scaling=scaling, scale=None)
        for scaling in SCALINGS
        for theta in (1e4, 1e5, 5e5, 1e6, 1e7)
    ]
    scored = sorted((engine.error(option, batch), n) for n, option in enumerate(tried))[:8]
    return min((_fitted(engine, tried[n], batch, 8) for _, n in scored), key=lambda item: item[1])


def changes(engine: Engine, choices: Choices, batch: Batch) -> Iterator[Choices]:
    """Windows, layers without rope or with a rope of their own, scalings and a cap of the scores, each changed alone."""
    layers = range(engine.assignment.structure.count)
    width = first_wrong(engine.residual(choices, batch))
    if choices.window is None and 2 <= width < batch.length:
        yield replace(choices, window=width, windowed=None)
        yield from (replace(choices, window=width, windowed=frozenset({n})) for n in layers)
        yield from (replace(choices, window=width, windowed=frozenset(layers) - {n}) for n in layers)
        yield replace(choices, window=width, windowed=frozenset(layers[::2]))
        yield replace(choices, window=width, windowed=frozenset(layers[1::2]))
    if choices.window is not None:
        inside = frozenset(layers) if choices.windowed is None else choices.windowed
        yield from (replace(choices, windowed=inside ^ {n}) for n in layers)
    if choices.rotated:
        yield from (replace(choices, unrotated=choices.unrotated ^ {n}) for n in layers)
        size = choices.dims or choices.head_dim
        for other in rope_sizes(choices.head_dim):  # the same angles, and more or fewer of them, which are the slowest
            yield replace(choices, dims=other, theta=choices.theta ** (other / size))
        bases = (choices.second_theta,) if choices.second else SECOND_BASES
        yield from (replace(choices, second=choices.second ^ {n}, second_theta=base) for n in layers for base in bases)
        if choices.second:
            yield from (replace(choices, second_scaling=scaling) for scaling in (None, *SCALINGS))
        else:
            yield from (replace(choices, scaling=scaling) for scaling in SCALINGS if scaling != choices.scaling)
    if choices.softcap is None:
        yield from (replace(choices, softcap=cap) for cap in (5.0, 20.0, 50.0))


def first_wrong(residual: torch.Tensor) -> int:
    """The first position whose error is far beyond those before it; the number of positions if there is none."""
    errors = residual.square().sum((0, 2))
    for position in range(2, len(errors)):
        if errors[position] > 1e3 * errors[:position].max() + 1e-14:
            return position
    return len(errors)
