"""What was measured of each module (figures.json), and the page that shows it (docs/mutants.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutation.equivalent import EQUIVALENT, Equivalent
from tests.mutation.mutants import changes
from tests.mutation.runner import Outcome

FIGURES = Path(__file__).with_name("figures.json")
PAGE = Path(__file__).parents[2] / "docs" / "mutants.md"
HEAD = """# Mutants

`make mutants` plants one small fault at a time in a module (another operator or comparison, a number one larger or smaller, a
condition negated, a step of two in a range, a call left out) and runs the tests that execute the changed lines. A fault that no
test notices has survived. `python -m tests.mutation quant/rules.py` runs one module; the modules and their tests are listed in
`tests/mutation/modules.py`. Texts are not changed, so that messages may be reworded.

Mutants that compute the same as the module are declared in `tests/mutation/equivalent.py`, each with its reason, and not run. The
aim is that 95 % of the others are killed in the type recipes, rewrites, targets, surgery's positions, tokenizers, metrics and
statistics. A module without figures has not been measured.
"""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One module: mutants in all, killed, and declared equivalent; the survivors as (line of the source, change)."""

    total: int
    killed: int
    equivalent: int
    survivors: tuple[tuple[str, str], ...]

    @property
    def share(self) -> float:
        """Killed, of those that are not equivalent."""
        real = self.total - self.equivalent
        return self.killed / real if real else 1.0


def figures(module: Path, outcome: Outcome) -> Figures:
    """The figures of a module, of whose mutants those survived that did so in the outcome."""
    source = module.read_text("utf-8")
    lines = source.splitlines()
    found = list(changes(source))
    declared = EQUIVALENT.get(module.as_posix(), ())
    equivalent = sum(any(one.covers(change, lines[line - 1]) for one in declared) for line, change in found)
    survivors = tuple((lines[mutant.line - 1].strip(), mutant.change) for mutant in outcome.survivors)
    return Figures(
        total=len(found),
        killed=len(found) - equivalent - len(survivors),
        equivalent=equivalent,
        survivors=survivors,
    )


def read() -> dict[str, Figures]:
    """The figures measured so far, by module."""
    stated = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    return {
        module: Figures(**{**entry, "survivors": tuple((line, change) for line, change in entry["survivors"])})
        for module, entry in stated.items()
    }


def note(module: str, found: Figures) -> None:
    """Replace the figures of a module."""
    known = read() | {module: found}
    entries = {name: asdict(known[name]) for name in sorted(known)}
    FIGURES.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")


def page(modules: Iterable[str], known: dict[str, Figures]) -> str:
    """The page: a table of the modules, then the survivors and the equivalent mutants of each."""
    rows, survivors = [], []
    for module in modules:
        if found := known.get(module):
            real = found.total - found.equivalent
            rows.append(f"| `{module}` | {found.killed} | {real} | {found.share:.1%} | {found.equivalent} |")
            survivors += [f"| `{module}` | {_code(line)} | {_code(change)} |" for line, change in found.survivors]
        else:
            rows.append(f"| `{module}` | – | – | – | – |")
    killed = sum(found.killed for found in known.values())
    real = sum(found.total - found.equivalent for found in known.values())
    said = f"In all {killed:,} of {real:,} killed ({killed / real:.1%})." if real else "Nothing has been measured."
    parts = [HEAD, "| module | killed | of | share | equivalent |", "|---|--:|--:|--:|--:|", *rows, "", said, ""]
    if survivors:
        parts += ["## Survivors", "", "| module | line | change |", "|---|---|---|", *survivors, ""]
    parts += ["## Equivalent mutants", "", "| module | line | reason |", "|---|---|---|"]
    parts += [
        f"| `{module}` | {_code(known.line)} | {known.reason} |"
        for module, listed in EQUIVALENT.items()
        for known in listed
    ]
    return "\n".join(parts) + "\n"


def stale(module: str) -> list[Equivalent]:
    """The declarations of a module that cover none of its mutants."""
    source = Path(module).read_text("utf-8")
    lines = source.splitlines()
    known = list(EQUIVALENT.get(module, ()))
    for line, change in changes(source):
        known = [one for one in known if not one.covers(change, lines[line - 1])]
    return known


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"
