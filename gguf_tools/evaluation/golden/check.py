"""Holds an engine's numbers to golden values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden.read import GoldenFiles
from gguf_tools.evaluation.golden.values import Array, Doubles, kind_of
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.tensors.error import nmse

DEFAULT = 1e-2
"""The tolerance of points that the golden folder has none for in an arithmetic."""
ROWS = 20


@dataclass(frozen=True, kw_only=True)
class FirstBad:
    """The first thing that differs: the prompt, the position of the token, the point, and both values in words."""

    prompt: int
    position: int
    point: str
    expected: str
    found: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prompt": self.prompt,
            "position": self.position,
            "point": self.point,
            "expected": self.expected,
            "found": self.found,
        }


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One array of the engine: its NMSE against the golden one, and how large that may be."""

    name: str
    nmse: float
    tolerance: float


_COLUMNS = (
    Column("worst first", left=True, key=True, least=24),
    Column("NMSE", "{:.2e}".format),
    Column("tolerance", "{:.0e}".format),
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Check(Shown):
    """The result: what was compared, the first thing that differs, and notes on what could not be compared."""

    engine: str
    compared: tuple[Compared, ...]
    first: FirstBad | None = None
    notes: tuple[str, ...] = ()
    greedy: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return self.first is None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "engine": self.engine,
            "passed": self.passed,
            "first_bad": self.first.as_dict() if self.first else None,
            "greedy_tokens": self.greedy,
            "compared": [
                {"name": one.name, "nmse": one.nmse if isfinite(one.nmse) else None, "tolerance": one.tolerance}
                for one in self.compared
            ],
            "notes": list(self.notes),
        }

    def blocks(self) -> Sequence[Block]:
        """The arrays worst first, the first thing that differs, and the verdict."""
        worst = sorted(self.compared, key=lambda one: -one.nmse / max(one.tolerance, 1e-300))
        table = Table(_COLUMNS, [(one.name, one.nmse, one.tolerance) for one in worst], most=ROWS)
        facts = [("engine", self.engine), ("compared", f"{len(worst)} arrays, {self.greedy} greedy tokens")]
        facts += [("note", note) for note in self.notes]
        if self.first:
            first = self.first
            facts += [
                ("first", f"prompt {first.prompt}, position {first.position}, {first.point}"),
                ("expected", str(first.expected)),
                ("found", str(first.found)),
            ]
        facts.append(("verdict", "passed" if self.passed else "differs"))
        return [*([table, Lines()] if worst else []), Facts(facts)]


def check_arrays(
    golden: GoldenFiles, dump: Mapping[str, Array], engine: str, kind: str = "f32", most: float | None = None
) -> Check:
    """Compare the arrays of a dump that have names of the golden folder, prompt by prompt in order of computation.

    `kind` is the engine's arithmetic (f32, bf16, f16), `most` a bound on every NMSE instead. Raises InputError if no name is
    common, or the folder has no tolerances for the arithmetic.
    """
    names = [name for name in golden.arrays if name in dump and not name.startswith(("tokens_", "margins_"))]
    if not names:
        there = ", ".join(list(dump)[:4]) or "nothing"
        raise InputError(f"{engine}: has {there}, but no array of the golden folder, such as logits_0; use its names")
    limits = _limits(golden, kind, most)
    notes = []
    unknown = [name for name in dump if name not in golden.arrays]
    if unknown:
        notes.append(
            f"not in the golden folder, and not compared: {', '.join(unknown[:6])}{' …' if len(unknown) > 6 else ''}"
        )
    compared: list[Compared] = []
    first: FirstBad | None = None
    greedy = 0
    for n in range(len(golden.prompts)):
        tokens = dump.get(f"tokens_{n}")
        if first is None and tokens is not None and tokens.tolist() != list(golden.prompts[n].tokens):
            first = _unequal(n, "tokens", golden.prompts[n].tokens, tokens.reshape(-1).tolist(), 0)
        mine = [name for name in names if name.partition(".")[0].endswith(f"_{n}")]
        noise = 0.0
        for name in mine:
            if name == f"greedy_{n}":
                found = check_greedy(golden, n, dump[name].reshape(-1).tolist(), noise)
                greedy += len(dump[name].reshape(-1))
            else:
                one, found = _compare(golden, n, name, dump, limits)
                compared += [one] if one else []
                noise = _noise(golden, dump, name) if name == f"logits_{n}" else noise
            first = first or found
    return Check(engine=engine, compared=tuple(compared), first=first, notes=tuple(notes), greedy=greedy)


def _limits(golden: GoldenFiles, kind: str, most: float | None) -> Mapping[str, float]:
    if most is not None:
        return dict.fromkeys([*map(_kind, golden.arrays), "logits"], most)
    if kind not in golden.tolerances:
        raise InputError(f"{golden.folder}: has no tolerances for {kind}; give --max-nmse")
    return golden.tolerances[kind]


def _kind(name: str) -> str:
    head, dot, point = name.partition(".")
    return kind_of(point) if dot else head.partition("_")[0]


def _compare(
    golden: GoldenFiles, n: int, name: str, dump: Mapping[str, Array], limits: Mapping[str, float]
) -> tuple[Compared | None, FirstBad | None]:
    """One array, over the tokens whose experts were selected alike before it; and where it first differs."""
    expected, found = golden.arrays[name], dump[name]
    if found.size != expected.size:
        words = ["×".join(map(str, array.shape)) for array in (expected, found)]
        return None, FirstBad(
            prompt=n, position=0, point=_point(name), expected=f"shape {words[0]}", found=f"shape {words[1]}"
        )
    a = np.asarray(expected, np.float64).reshape(len(expected), -1)
    b = np.asarray(found, np.float64).reshape(a.shape)
    if _kind(name) == "moe.chosen":
        return None, _chosen(golden, n, name, a, b)
    alike = _alike(golden, dump, name, len(a))
    tolerance = limits.get(_kind(name), DEFAULT)
    one = Compared(name=name, nmse=nmse(a[alike], b[alike]), tolerance=tolerance)
    if one.nmse <= tolerance:
        return one, None
    size = float(np.square(a).sum(axis=1).mean()) or 1.0
    with np.errstate(all="ignore"):
        rows = np.nan_to_num(np.square(a - b).sum(axis=1) / size, nan=np.inf, posinf=np.inf) * alike
    bad = np.flatnonzero(rows > tolerance)
    row = int(bad[0]) if len(bad) else int(rows.argmax())
    with np.errstate(all="ignore"):
        channel = int(np.nan_to_num(np.abs(a[row] - b[row]), nan=np.inf).argmax())
    return one, FirstBad(
        prompt=n,
        position=row,
        point=_point(name),
        expected=f"{a[row, channel]:.7g} in channel {channel} (NMSE at most {tolerance:.1e})",
        found=f"{b[row, channel]:.7g} (NMSE {one.nmse:.2e})",
    )


def _alike(golden: GoldenFiles, dump: Mapping[str, Array], name: str, rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The tokens for which the layer of an expert's array has the same experts on both sides."""
    everything = np.ones(rows, np.bool_)
    head, _, point = name.partition(".")
    if not point.startswith("layers.") or not kind_of(point).startswith(("expert.", "moe.weights")):
        return everything
    chosen = f"{head}.layers.{point.split('.')[1]}.moe.chosen"
    if chosen not in dump or chosen not in golden.arrays or dump[chosen].size != golden.arrays[chosen].size:
        return everything
    same: np.ndarray[Any, np.dtype[np.bool_]] = (
        dump[chosen].reshape(rows, -1) == golden.arrays[chosen].reshape(rows, -1)
    ).all(axis=1)
    return same


def _chosen(golden: GoldenFiles, n: int, name: str, a: Doubles, b: Doubles) -> FirstBad | None:
    """The first token that went to other experts, unless their router logits are equal to a thousandth of their spread."""
    logits = golden.arrays.get(name.replace("moe.chosen", "moe.logits"))
    for row in np.flatnonzero((np.sort(a, axis=1) != np.sort(b, axis=1)).any(axis=1)):
        mine, theirs = (set(map(int, values[row])) for values in (a, b))
        known = logits is not None and logits.ndim == 2 and len(logits) == len(a)
        if logits is not None and known and min(theirs | mine) >= 0 and max(theirs | mine) < logits.shape[1]:
            measure = logits[row].astype(np.float64)
            gap = abs(sum(measure[list(mine - theirs)]) - sum(measure[list(theirs - mine)]))
            if gap <= 1e-3 * float(measure.std()):
                continue
        words = [f"experts {sorted(map(int, values[row]))}" for values in (a, b)]
        return FirstBad(prompt=n, position=int(row), point=_point(name), expected=words[0], found=words[1])
    return None


def _noise(golden: GoldenFiles, dump: Mapping[str, Array], name: str) -> float:
    """The RMS error of the logits."""
    expected = np.asarray(golden.arrays[name], np.float64)
    found = np.asarray(dump[name], np.float64)
    return (
        float(np.sqrt(np.square(expected - found.reshape(expected.shape)).mean()))
        if found.size == expected.size
        else 0.0
    )


def check_greedy(golden: GoldenFiles, n: int, found: Sequence[int], noise: float = 0.0) -> FirstBad | None:
    """The first token of a continuation that is not the golden one, unless the margin there is within six times the `noise`."""
    expected = golden.prompts[n].greedy
    margins = golden.arrays.get(f"margins_{n}")
    for at, (mine, theirs) in enumerate(zip(expected, found, strict=False)):
        if mine != theirs:
            if margins is not None and at < len(margins) and float(margins[at]) <= 6.0 * noise + 1e-5:
                return None  # a tie, after which the continuations cannot be compared
            return _unequal(n, "greedy", expected, found, at)
    if len(found) < len(expected):
        return _unequal(n, "greedy", expected, found, len(found))
    return None


def _unequal(n: int, point: str, expected: Sequence[int], found: Sequence[int], at: int) -> FirstBad:
    pairs = zip(expected, found, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found))) if at == 0 else at
    words = [f"token {ids[at]}" if at < len(ids) else "no more tokens" for ids in (expected, found)]
    return FirstBad(prompt=n, position=at, point=point, expected=words[0], found=words[1])


def _point(name: str) -> str:
    head, dot, point = name.partition(".")
    return point if dot else head.partition("_")[0]
