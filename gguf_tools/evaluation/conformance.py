"""Every family × variant, from a random small checkpoint through llama.cpp, held against the reference.

The conformance tests run it, and `docs/conformance.md` is made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import UnsupportedError
from gguf_tools.families import Family
from gguf_tools.families.registry import all_families, load_model
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import lift

EXACT = 1e-9
"""The bar for an F32 file: NMSE of the logits over all positions."""
LENGTHS = (44, 17, 1)
SEED = 3

Logits = Sequence[NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one variant in one type.

    `nmse` is against the source's reference over all positions, `typical` the median position's NMSE against the
    reference run on the file's own decoded weights; `fell_back` counts tensors whose rows do not fit the type asked for.
    `approximation` names the approximation that the variant needs, `exact_refused` is what is said without it.
    """

    family: str
    variant: str
    type: str
    target: str
    rewrites: tuple[str, ...]
    extra_parameters: int
    parameters: int
    nmse: float
    typical: float
    fell_back: int
    approximation: str | None = None
    exact_refused: str | None = None


def cases() -> list[tuple[str, str]]:
    """(family, variant) of every family that makes small checkpoints."""
    return [(family.name, variant) for family in all_families() for variant in family.variants]


def family_named(name: str) -> Family:
    """The family called `name`."""
    return next(family for family in all_families() if family.name == name)


def run(family: str, variant: str, folder: Path, type_name: str = "f32") -> Outcome:
    """Make the variant's checkpoint in `folder`, convert it, run it, and compare at every position."""
    made = family_named(family).tiny
    if made is None:
        raise ValueError(f"the family {family} makes no small checkpoints")
    source = folder / "source"
    if not source.exists():
        made(source, variant, SEED)
    text_only = variant == "vision"
    refused = None
    try:
        conversion = prepare(Request(source=source, type=type_name, threads=1, text_only=text_only))
    except UnsupportedError as error:
        refused = str(error)
        conversion = prepare(
            Request(source=source, type=type_name, threads=1, text_only=text_only, allow_approximate=True)
        )
    out = folder / f"{type_name}.gguf"
    execute(conversion, out, force=True)
    model = load_model(source)
    prompts = random_prompts(model.spec.vocab_size)
    with Runtime(out, RuntimeOptions(threads=1)) as runtime:
        logits = runtime.logits(prompts)
    plan = conversion.plan
    return Outcome(
        family=family,
        variant=variant,
        type=type_name,
        target=plan.target.name,
        rewrites=tuple(rewrite.name for rewrite in plan.rewrites),
        extra_parameters=plan.extra_parameters,
        parameters=model.parameters,
        nmse=float(np.mean(_errors(logits, _reference(model, prompts)))),
        typical=float(np.median(_errors(logits, _reference(lift(open_gguf(out)), prompts)))),
        fell_back=conversion.report.fallen_back,
        approximation=plan.approximation.name if plan.approximation else None,
        exact_refused=refused,
    )


def random_prompts(vocab_size: int) -> list[list[int]]:
    """Sequences of random tokens, the same for every model of a vocabulary."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(0, vocab_size, length).tolist() for length in LENGTHS]


def _reference(model: Model, prompts: Sequence[Sequence[int]]) -> Logits:
    return Reference(model, torch.float64).logits(prompts)


def _errors(got: Logits, want: Logits) -> NDArray[np.float64]:
    """Each position's squared difference, in parts of the mean square of all positions' logits."""
    a, b = (np.concatenate([np.asarray(part, np.float64) for part in parts]) for parts in (got, want))
    return np.asarray(np.square(a - b).sum(-1) / np.square(b).sum(-1).mean(), np.float64)
