"""docs/fuzzing.md: what the campaign has done, target by target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fuzzing import inputs
from fuzzing.campaign import Run, findings, note, runs
from fuzzing.target import Target

PAGE = Path(__file__).parents[1] / "docs" / "fuzzing.md"
HEAD = """# Fuzzing

Every reader of files and of texts is given inputs that were changed at random and by what they reach in tinyq's code (atheris,
libFuzzer). An input ends with a result or with one of tinyq's own errors, within {seconds:g} seconds of computing and
{memory} MiB of memory; everything else is a finding. A finding is mended, and becomes a test beside the reader's; its input
is kept in `fuzzing/cases` where it is small. `tests/fuzzing` replays what is kept and changes inputs without atheris.

`make fuzz` runs the campaign and writes this page. "Accepted" inputs were read without an error; where a target goes deep they
went on through the product: a config through the plan, the lowering and the header of the file; a GGUF through inspection and
the plans of quantization and surgery; a tokenizer through the vocabulary and the encoding of texts. "CPU" are seconds of
computing, "edges" branches of tinyq's own code that were reached, "fell once" inputs that were findings and are replayed.
A target without executions has been run by the tests alone. A campaign on another machine goes on from the figures of this page.

| target | reads | executions | accepted | CPU | edges | fell once | open |
|---|---|--:|--:|--:|--:|--:|--:|
"""


_ROW = re.compile(
    r"\| (\S+)(?: \(deep\))? \| .* \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| [\d,]+ \| [\d,]+ \|"
)


def carry_over(targets: Sequence[Target], folder: Path, text: str) -> None:
    """Note the figures of a page that was written before as a run of each target that has none in the campaign's folder."""
    found = {match[1]: [int(match[n].replace(",", "")) for n in range(2, 6)] for match in _ROW.finditer(text)}
    for target in targets:
        executions, accepted, seconds, edges = found.get(target.name, (0, 0, 0, 0))
        if executions and not runs(target.name, folder):
            note(folder / target.name, Run(executions=executions, accepted=accepted, seconds=seconds, edges=edges))


def page(targets: Sequence[Target], folder: Path, seconds: float, memory: int) -> str:
    """The page, from the figures in the campaign's folder."""
    lines, total, deep, configs, both, spent, left = [], 0, 0, 0, 0, 0.0, 0
    for target in targets:
        done, unsolved = runs(target.name, folder), len(findings(target.name, folder))
        executions, cpu = sum(run.executions for run in done), sum(run.seconds for run in done)
        edges, fell = max((run.edges for run in done), default=0), len(inputs.cases(target.name))
        facts = (executions, sum(run.accepted for run in done), round(cpu), edges, fell, unsolved)
        name = f"{target.name} (deep)" if target.deep else target.name
        lines.append(f"| {name} | {target.title} | {' | '.join(f'{fact:,}' for fact in facts)} |")
        total, spent, left = total + executions, spent + cpu, left + unsolved
        deep += executions if target.deep else 0
        configs += executions if "config" in target.name else 0
        both += executions if target.deep or "config" in target.name else 0
    said = (
        f"\nIn all {total:,} executions in {spent:,.0f} seconds of computing; findings open: {left}.\n\n"
        f"On configs {configs:,}, in targets that go deep {deep:,}; {both:,} in one or both of these.\n"
    )
    return HEAD.format(seconds=seconds, memory=memory >> 20) + "\n".join(lines) + "\n" + said
