"""What the table of architectures says of each kind of op, in words: for the page of docs, and for people."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.architectures.base import Architecture, Aspect, Property, Rule
from surgery.architectures.tensors import MTP

ASPECTS: dict[Aspect, str] = {
    "order": "swap, move, reverse, cycle",
    "count": "delete, duplicate, bridge, repeat, path",
    "halves": "--only",
    "blend": "interpolate, merge",
    "scale": "scale",
    "experts": "drop-experts, swap-experts",
}
"""What ops ask of an architecture → the ops that ask it."""


LAYERS = Rule.counts
VERBS = ("banks", "gives", "has", "is", "lacks", "routes", "shares", "takes")
"""What the phrase of a property begins with if it completes "whether a layer …"."""


@dataclass(frozen=True)
class Verdict:
    """Whether ops are "done", done where `reasons` hold ("if kept", "in part"), "refused" for them, or have no subject ("–")."""

    word: str
    reasons: tuple[str, ...] = ()


def judge(architecture: Architecture, aspect: Aspect) -> Verdict:
    """What is done of the ops that need `aspect`."""
    if architecture.closed:
        return Verdict("refused", (architecture.closed,))
    always = [r.reason for r in architecture.refusals if r.aspect == aspect and not r.key]
    if always:
        return Verdict("refused", tuple(always))
    if aspect in ("order", "count"):
        fixed = [p for p in architecture.properties if p.carry is None and p.rule.counts == LAYERS]
        fixed = [p for p in fixed if aspect == "count" or p.rule.by == "place"]
        return Verdict("if kept", tuple(condition(p) for p in fixed)) if fixed else Verdict("done")
    judged = {"halves": _halves, "blend": _blend, "scale": _scale, "experts": _experts}[aspect](architecture)
    some = [f"{r.reason} (files with {r.key})" for r in architecture.refusals if r.aspect == aspect and r.key]
    return Verdict("in part", (*judged.reasons, *some)) if some and judged.word != "refused" else judged


def condition(p: Property) -> str:
    """What a property asks of surgery."""
    by = "its place" if p.rule.by == "place" else p.rule.counts
    if p.what.split()[0] in VERBS:
        return f"whether a layer {p.what} is decided by {by}, and must stay so"
    return f"{p.what} is decided by {by if p.rule.by == 'count' else 'place'}, and must stay the same"


def followed(architecture: Architecture) -> list[str]:
    """The properties that follow their layers, because metadata can state them."""
    return [p.what for p in architecture.properties if p.carry is not None]


def _other(architecture: Architecture) -> dict[str, list[str]]:
    """The tensors of branches that are neither half, by branch."""
    found: dict[str, list[str]] = {}
    for name, role in architecture.tensors.items():
        if role.half is None and role.branch != MTP:
            found.setdefault(role.branch, []).append(name)
    return found


def _halves(architecture: Architecture) -> Verdict:
    normed = {role.half for role in architecture.tensors.values() if "norm" in role.part and role.half}
    if normed == {"attention"}:
        return Verdict("refused", ("the halves of a layer do not have a norm each",))
    other = _other(architecture)
    if not other:
        return Verdict("done")
    return Verdict("in part", tuple(f"not in layers with {branch}, which is in neither half" for branch in other))


def _blend(architecture: Architecture) -> Verdict:
    if architecture.slices:
        names = " and ".join(part.tensor.removesuffix(".weight") for part in architecture.slices)
        return Verdict("in part", (f"not in files with {names}, of which a blend would need a blend",))
    return Verdict("done")


def _scale(architecture: Architecture) -> Verdict:
    acting = {
        role.branch if role.half is None else f"a norm of the residual stream itself ({name})": None
        for name, role in architecture.tensors.items()
        if "stream" in role.part and role.branch != "layer scale"
    }
    if not acting:
        return Verdict("done")
    return Verdict("refused", tuple(f"{what} does more than add to the residual stream" for what in acting))


def _experts(architecture: Architecture) -> Verdict:
    if not any(role.experts == "axis" for role in architecture.tensors.values()):
        return Verdict("–")
    ids = [name for name, role in architecture.tensors.items() if role.experts == "ids"]
    reasons = [f"not in layers with {name}, which holds the experts' numbers" for name in ids]
    reasons += [condition(p) for p in architecture.properties if p.rule.counts != LAYERS]
    return Verdict("in part", tuple(reasons)) if reasons else Verdict("done")
