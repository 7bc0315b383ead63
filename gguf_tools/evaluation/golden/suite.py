"""Writes golden values for every family and variant that tinyq makes small checkpoints of: a suite for inference engines."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools import __version__
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.write import execute
from gguf_tools.errors import InputError
from gguf_tools.evaluation.conformance import Case, cases
from gguf_tools.evaluation.golden.write import FACTS, FORMAT, Golden, write_golden
from gguf_tools.families.registry import own_families
from gguf_tools.progress import CountProgress
from gguf_tools.text import expected

FILE = "model-f32.gguf"
MOST_LOGITS = 950_000
"""Bytes of a variant's logits, so that its golden values without intermediates have less than 1 MB."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The folders that were written, by name."""

    folder: Path
    entries: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, and for the suite's golden.json."""
        return {"format": FORMAT, "tinyq": __version__, "suite": list(self.entries)}

    def __str__(self) -> str:
        families = {entry["family"] for entry in self.entries}
        size = sum(entry["bytes"] for entry in self.entries)
        return (
            f"{len(self.entries)} models of {len(families)} families in {self.folder}, golden values of {size:,} bytes"
        )


def suite_cases() -> list[Case]:
    """The variants that convert exactly."""
    return [case for case in cases(own_families()) if case.expected.target and not case.expected.approximate]


def name_of(case: Case) -> str:
    """The folder's name of a variant."""
    return re.sub(r"[^\w.-]+", "-", str(case)).strip("-").lower()


def write_suite(
    folder: Path, *, points: bool, families: Collection[str] = (), progress: CountProgress = lambda *_: None
) -> Suite:
    """For each variant a folder in `folder` with golden values, the checkpoint, and its F32 GGUF; only of `families`, if given.

    Raises InputError for a family that has no variant.
    """
    entries = []
    chosen = [case for case in suite_cases() if not families or case.family.name in families]
    missing = set(families) - {case.family.name for case in chosen}
    if missing:
        known = dict.fromkeys(case.family.name for case in suite_cases())
        raise InputError(f"there is no family {min(missing)}; {expected(min(missing), known, 'the families are')}")
    for n, case in enumerate(chosen):
        progress(n, len(chosen))
        place = folder / name_of(case)
        place.mkdir()
        source = case.write(place)
        execute(prepare(case.request(source, type="f32")), place / FILE)
        made: Golden = write_golden(source, place, points=points, most_bytes=MOST_LOGITS)
        entries.append(
            {
                "name": place.name,
                "family": case.family.name,
                "variant": case.variant,
                "architecture": case.expected.target,
                "bytes": made.nbytes,
            }
        )
    suite = Suite(folder=folder, entries=tuple(entries))
    (folder / FACTS).write_text(json.dumps(suite.as_dict(), indent=1) + "\n", "utf-8")
    return suite
