"""What was measured (figures.json), and the page that shows it (docs/mutants.md)."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutation.equivalent import EQUIVALENT, Equivalent
from tests.mutation.modules import Subject
from tests.mutation.mutants import changes
from tests.mutation.runner import Outcome

FIGURES = Path(__file__).with_name("figures.json")
PAGE = Path(__file__).parents[2] / "docs" / "mutants.md"
HEAD = """# Mutants

`make mutants` plants one small fault at a time in a module (another operator or comparison, a number one larger or smaller, a
condition negated, a step of two in a range, a call left out) and runs the tests that execute the changed lines, or those that use
the module where the fault is in what it computes when it is imported. A fault that no test notices has survived.
`python -m tests.mutation quant/rules.py` runs one module, and `--sample N --seed S` a random sample, which this page then says;
the modules and their tests are listed in `tests/mutation/modules.py`. Texts are not changed, so that messages may be reworded.

Mutants that compute the same as the module are declared in `tests/mutation/equivalent.py`, each with its reason, and not run. The
aim is that 95 % of the others are killed in the type recipes, rewrites, targets, surgery's positions, tokenizers, metrics and
statistics. A row without figures has not been measured.
"""
WHY = """About half are of four kinds, which change no file: the first of layers that are all the same in what is asked of them
(`[0]`), where another would do but in a model of one layer; rows and columns of zeros, of which the first alone is
taken (`Filled`); the norm of queries and keys in architectures that have none (`Norm(0.0)`); and a default of 0 that
becomes 1 in the next step (`or 1.0`). The rest are bounds, defaults and conditions that no test tells from the changed ones."""
"""What the page says of the survivors."""


@dataclass(frozen=True)
class Draw:
    """A random sample of mutants: how many, and the seed."""

    count: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of one module or group: mutants in all, run or declared equivalent, and killed.

    The survivors are given as (module, line of the source, change). With `drawn`, the other numbers are those of a sample out of
    `available` mutants.
    """

    total: int
    killed: int
    equivalent: int
    survivors: tuple[tuple[str, str, str], ...]
    drawn: Draw | None = None
    available: int = 0

    @property
    def share(self) -> float:
        """Killed, of those that are not equivalent."""
        real = self.total - self.equivalent
        return self.killed / real if real else 1.0


Place = tuple[str, int]
"""A module's path, and the number of a mutant in it."""


def places(modules: Sequence[str], draw: Draw | None) -> dict[Place, tuple[str, str]]:
    """The mutants of these modules, or a sample of them: the text of the line, and the change."""
    every: dict[Place, tuple[str, str]] = {}
    for module in modules:
        source = Path(module).read_text("utf-8")
        lines = source.splitlines()
        for number, (line, change) in enumerate(changes(source)):
            every[module, number] = lines[line - 1].strip(), change
    if draw is None:
        return every
    chosen = random.Random(draw.seed).sample(sorted(every), min(draw.count, len(every)))
    return {place: every[place] for place in sorted(chosen)}


def figures(subject: Subject, draw: Draw | None, outcome: Outcome) -> Figures:
    """The figures of a module or group, of whose mutants those survived that did so in the outcome."""
    found = places(subject.modules, draw)
    equivalent = sum(
        any(one.covers(change, line) for one in EQUIVALENT.get(module, ()))
        for (module, _), (line, change) in found.items()
    )
    sources = {module: Path(module).read_text("utf-8").splitlines() for module in subject.modules}
    survivors = tuple(
        (module, sources[module][mutant.line - 1].strip(), mutant.change) for module, mutant in outcome.survivors
    )
    return Figures(
        total=len(found),
        killed=len(found) - equivalent - len(survivors),
        equivalent=equivalent,
        survivors=survivors,
        drawn=draw,
        available=len(places(subject.modules, None)) if draw else 0,
    )


def read() -> dict[str, Figures]:
    """The figures measured so far, by the name of the module or group."""
    stated = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    return {name: _figures(entry) for name, entry in stated.items()}


def _figures(entry: dict[str, object]) -> Figures:
    survivors, drawn = entry["survivors"], entry.get("drawn")
    assert isinstance(survivors, list)
    return Figures(
        **{
            **entry,
            "survivors": tuple((module, line, change) for module, line, change in survivors),
            "drawn": Draw(**drawn) if isinstance(drawn, dict) else None,
        }  # type: ignore[arg-type]
    )


def note(name: str, found: Figures) -> None:
    """Replace the figures of a module or group."""
    known = read() | {name: found}
    entries = {one: asdict(known[one]) for one in sorted(known)}
    FIGURES.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")


def page(subjects: Mapping[str, Subject], known: dict[str, Figures]) -> str:
    """The page: a table of the modules and groups, then the survivors and the equivalent mutants of each."""
    rows, survivors, samples = [], [], []
    measured = {name: known[name] for name in subjects if name in known}
    for name, subject in subjects.items():
        if found := known.get(name):
            real = found.total - found.equivalent
            rows.append(
                f"| {_name(name, subject)} | {found.killed} | {real} | {found.share:.1%} | {found.equivalent} |"
            )
            survivors += [
                f"| `{module}` | {_code(line)} | {_code(change)} |" for module, line, change in found.survivors
            ]
            if found.drawn and found.total < found.available:
                samples.append(
                    f"Of {_name(name, subject)} a random sample was run: {found.total} of {found.available:,} mutants "
                    f"(`--sample {found.drawn.count} --seed {found.drawn.seed}`)."
                )
        else:
            rows.append(f"| {_name(name, subject)} | – | – | – | – |")
    killed = sum(found.killed for found in measured.values())
    real = sum(found.total - found.equivalent for found in measured.values())
    said = f"In all {killed:,} of {real:,} killed ({killed / real:.1%})." if real else "Nothing has been measured."
    parts = [
        HEAD,
        "| module | killed | of | share | equivalent |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
        said,
        *samples,
        "",
    ]
    if survivors:
        parts += ["## Survivors", "", WHY, "", "| module | line | change |", "|---|---|---|", *survivors, ""]
    parts += ["## Equivalent mutants", "", "| module | line | reason |", "|---|---|---|"]
    parts += [
        f"| `{module}` | {_code(known.line)} | {known.reason} |"
        for module, listed in EQUIVALENT.items()
        for known in listed
    ]
    return "\n".join(parts) + "\n"


def stale(module: str) -> list[Equivalent]:
    """The declarations of a module that cover none of its mutants."""
    known = list(EQUIVALENT.get(module, ()))
    for line, change in places([module], None).values():
        known = [one for one in known if not one.covers(change, line)]
    return known


def _name(name: str, subject: Subject) -> str:
    return f"`{name}`" if subject.modules == (name,) else f"{name} ({len(subject.modules)} modules)"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"
