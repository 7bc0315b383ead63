"""Deliberate misreadings of checkpoints, and which checks detect them in the resulting files.

The torch reference and the conversion share a misreading (`docs/planted.py`), as they would share a family's mistake; the
checkpoint on disk is correct, and transformers runs it as it is.
`python -m docs.misreadings` writes `docs/misreadings.md`; a test checks every row of it.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from docs.planted import MISREADINGS, Misreading
from gguf_tools.conversion import plan as conversion_plan
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation import proof, reference_source
from gguf_tools.evaluation.conformance import SEED
from gguf_tools.evaluation.fidelity import evaluate_fidelity
from gguf_tools.evaluation.metrics import Logits
from gguf_tools.evaluation.oracle import Oracles, parse_oracle, transformers_answer
from gguf_tools.evaluation.oracle_check import OracleCheck
from gguf_tools.evaluation.prompts import base_prompts, prompt_ids
from gguf_tools.families import registry
from gguf_tools.families.registry import family_named
from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint, open_checkpoint

PAGE = Path(__file__).parent / "misreadings.md"
LAST_LOGIT_PROMPT = "Hello, my name is"
"""The default prompt of llama.cpp's examples/model-conversion."""
LAST_LOGIT_BOUND = 1e-2
"""Below this `scripts/utils/check-nmse.py` there prints PASS: mean squared error over the variance of the last logits."""
ENGINE = 1e-10
"""Bound of the NMSE caused by llama.cpp's float32 arithmetic."""
PROMPTS = base_prompts()[:2]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The results of the checks: NMSEs of `tinyq eval` without an oracle (llama.cpp against the reference), of its check on 16
    tokens, of `--oracle transformers` (the reference against transformers), and of model-conversion's last logits."""

    misreading: Misreading
    alone: float
    unasked: OracleCheck
    asked: OracleCheck
    last: float

    @property
    def last_verdict(self) -> Literal["PASS", "NEEDS REVIEW"]:
        """What check-nmse.py prints and exits by."""
        return "PASS" if self.last < LAST_LOGIT_BOUND else "NEEDS REVIEW"


@contextmanager
def planted(misreading: Misreading) -> Iterator[None]:
    """tinyq with the misreading: wherever a model is made of a checkpoint."""
    build = registry.build_published

    def build_published(checkpoint: Checkpoint, *args: Any, **options: Any) -> Model:
        model = build(misreading.sees(checkpoint), *args, **options)
        return replace(model, spec=misreading.states(model.spec))

    users = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in ("gguf_tools", "surgery")]
    with ExitStack() as stack:
        for module in users:
            if getattr(module, "build_published", None) is build:
                stack.enter_context(mock.patch.object(module, "build_published", build_published))
        for module in (registry, conversion_plan, proof):
            assert module.build_published is build_published
        yield


def make(misreading: Misreading, folder: Path) -> tuple[Path, Path]:
    """The checkpoint, and the file that tinyq makes of it with the misreading."""
    source, out = folder / "source", folder / "out.gguf"
    tiny = family_named(misreading.family).tiny
    assert tiny is not None
    tiny(source, misreading.variant, SEED)
    stated = json.loads((source / CONFIG).read_text("utf-8"))
    (source / CONFIG).write_text(json.dumps({**stated, **misreading.stated}), "utf-8")
    with planted(misreading):
        execute(conversion_plan.prepare(Request(source=source, type="f32", threads=1)), out)
    return source, out


def find(misreading: Misreading, folder: Path) -> Finding:
    """The result of every check for the misreading."""
    source, out = make(misreading, folder)
    with planted(misreading), Runtime(out, RuntimeOptions(threads=1)) as runtime:
        reference = reference_source.find_reference(out)
        assert reference.model is not None
        fidelity = evaluate_fidelity(runtime, Reference(reference.model), reference.encode, PROMPTS, 4)
        unasked, asked = (
            Oracles(parse_oracle(name)).check(reference, runtime, PROMPTS) for name in ("auto", "transformers")
        )
        tokens = tuple(prompt_ids(runtime, LAST_LOGIT_PROMPT))
        (ours,) = runtime.logits([tokens])
    assert isinstance(unasked, OracleCheck), unasked
    assert isinstance(asked, OracleCheck), asked
    (theirs,) = transformers_answer(open_checkpoint(source), (tokens,)).logits
    return Finding(
        misreading=misreading,
        alone=fidelity.metrics.nmse,
        unasked=unasked,
        asked=asked,
        last=last_logit_nmse(theirs[-1], ours[-1]),
    )


def last_logit_nmse(original: Logits, converted: Logits) -> float:
    """`calculate_nmse` of model-conversion's check-nmse.py: on float32, over the variance and not the square."""
    a, b = original.astype(np.float32), converted.astype(np.float32)
    return float(np.mean((b - a) ** 2) / np.var(a))


HEAD = f"""# Misreadings, and which checks detect them

A converter that misreads a config or a tensor writes a file that runs, and a reference with the same misreading agrees with it
to the last digit. Here such mistakes are simulated on small random checkpoints, one at a time, so that the torch reference and
the conversion share each; the checkpoint itself is correct, and transformers runs it as it is.

- **eval alone**: NMSE of llama.cpp against the torch reference, the only comparison possible without an independent oracle.
- **16 tokens**: NMSE of the reference against transformers on the short prompt that `tinyq eval` and `tinyq convert --prove`
  check by default. Two computations in float64 differ by 1e-18 at most; anything larger is reported as a disagreement.
- **--oracle transformers**: the same over {len(PROMPTS)} whole prompts.
- **last logits**: the check of llama.cpp's `examples/model-conversion`: mean squared error over variance of the logits at the
  last position of "{LAST_LOGIT_PROMPT}", PASS below {LAST_LOGIT_BOUND:g} (`scripts/utils/check-nmse.py`). It also runs the
  original, so with random weights it detects most mistakes, but neither small ones nor those that affect only later positions.

Numbers are rounded up to a power of ten. Mistakes that affect only positions beyond the prompts are not detected by any of these
checks: a window of 4,096 tokens needs a longer text (`--text`). Generated by `make docs`.

| misreading | family | eval alone | 16 tokens | --oracle transformers | last logits |
|---|---|---|---|---|---|
"""


def power(value: float, floor: float) -> str:
    """A measured number rounded up to a power of ten; numbers up to `floor`, which rounding errors reach, show as `floor`."""
    return f"≤ {floor:.0e}" if value <= floor else f"{10.0 ** math.ceil(math.log10(value)):.0e}"


def row(finding: Finding) -> str:
    """One row of the table."""
    checks = [
        f"{power(c.nmse, c.bound)}, {'agrees' if c.agrees else 'caught'}" for c in (finding.unasked, finding.asked)
    ]
    cells = (finding.misreading.name, finding.misreading.family, power(finding.alone, ENGINE), *checks)
    return f"| {' | '.join(cells)} | {power(finding.last, ENGINE)}, {finding.last_verdict} |"


def page() -> str:
    """The table, measured now."""
    rows = []
    for misreading in MISREADINGS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(find(misreading, Path(folder))))
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
