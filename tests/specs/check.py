"""What becomes of a spec: refused by name, or converted and run by llama.cpp within its bound."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from gguf_tools.errors import LlamaError, UnsupportedError
from gguf_tools.families.base import Family
from gguf_tools.families.registry import build_model, own_families
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import Model, ModelSpec
from gguf_tools.reference import Reference
from gguf_tools.reference.feed_forward import ACTIVATIONS
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from gguf_tools.targets.planner import plan
from gguf_tools.targets.registry import lift
from tests.oracle import nmse
from tests.spec_files import write_lowered
from tests.specs.draw import VOCAB, draw, model, plain

EXACT = 1e-9
"""The product's own bound on the NMSE of an F32 file's logits."""
TABLE = 1e-7
"""Bound for models with GELUs, against a reference that has llama.cpp's table of them: an input whose float32 rounds to
another F16 number than its float64 is an error of 5e-4 in one unit."""
_RNG = np.random.default_rng(5)
PROMPTS = tuple(tuple(map(int, _RNG.integers(0, VOCAB, n))) for n in (60, 17, 1))


@dataclass(frozen=True, kw_only=True)
class Found:
    """One spec and what became of it; `target` is empty where it is refused, and `wrong` is empty where all is well."""

    seed: int
    start: str
    features: tuple[str, ...]
    target: str = ""
    rewrites: tuple[str, ...] = ()
    nmse: float = 0.0
    refused: str = ""
    wrong: str = ""

    def __str__(self) -> str:
        outcome = self.wrong or self.refused[:160] or f"{self.target} {self.nmse:.1e} {', '.join(self.rewrites)}"
        return f"seed {self.seed} ({self.start}): {outcome} [{', '.join(self.features)}]"


@cache
def starts() -> tuple[tuple[Family, str], ...]:
    """Every variant of a family that is converted exactly."""
    found = [(family, variant) for family in own_families() for variant in family.variants]
    return tuple((family, variant) for family, variant in found if not family.variants[variant].refused)


def started(seed: int) -> tuple[str, ModelSpec]:
    """Where the seed's walk begins: at a plain decoder, or at a variant of a family."""
    rng = random.Random(f"start {seed}")
    if rng.random() < 0.25:
        return "plain", plain(ModelSpec)
    family, variant = rng.choice(starts())
    assert family.tiny
    with TemporaryDirectory() as folder:
        family.tiny(Path(folder) / "source", variant, 1)
        checkpoint = restore(open_checkpoint(Path(folder) / "source"), text_only=True)
        return f"{family.name} {variant}", build_model(checkpoint).spec


def is_planned(spec: ModelSpec, seed: int) -> bool:
    """Whether some target expresses the spec."""
    try:
        return plan(model(spec, seed)) is not None
    except UnsupportedError:
        return False


def table_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU as llama.cpp has it on a CPU: by a table of F16 numbers between -10 and 10 (`ggml_vec_gelu_f32`)."""
    table = functional.gelu(x.half().float(), approximate="tanh").half().to(x.dtype)
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, table))


def wanted_logits(made: Model) -> list[NDArray[np.floating[Any]]]:
    """The reference's logits, with llama.cpp's own GELU."""
    own = dict.fromkeys(("gelu", "gelu_tanh"), table_gelu)
    with mock.patch.dict(ACTIVATIONS, own):
        return list(Reference(made, torch.float64).logits(PROMPTS))


class Checker:
    """Checks specs one after another; a context manager with one llama.cpp process, which loads file after file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "spec.gguf"
        self.runtime: Runtime | None = None

    def __enter__(self) -> Checker:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self.runtime is not None:
            self.runtime.close()
        self.runtime = None

    def seed(self, seed: int) -> Found:
        """What becomes of the seed's spec."""
        start, spec = started(seed)
        return self.spec(draw(seed, spec, partial(is_planned, seed=seed)), seed, start)

    def spec(self, spec: ModelSpec, seed: int = 0, start: str = "given") -> Found:
        """What becomes of a spec, with random weights of the seed."""
        made = model(spec, seed)
        features = tuple(dict.fromkeys(feature.key for feature in spec.features))
        found = partial(Found, seed=seed, start=start, features=features)
        try:
            planned = plan(made)
        except UnsupportedError as error:
            return found(refused=str(error), wrong=_refusal(str(error)))
        target = planned.target.name
        found = partial(found, target=target, rewrites=tuple(rewrite.name for rewrite in planned.rewrites))
        # Not written in place: the process has mapped the file before.
        os.replace(write_lowered(planned.lower(), self.folder / "next.gguf"), self.path)
        wanted = wanted_logits(made)
        bound = TABLE if planned.nmse else EXACT
        lifted = nmse(wanted_logits(lift(open_gguf(self.path))), wanted)
        try:
            got = nmse(self.run(), wanted)
        except LlamaError as error:
            self.close()
            return found(wrong=f"{target}: llama.cpp fails: {error}")
        wrong = f"{target}: NMSE {got:.1e}, {bound:.0e} at most expected" if got > bound else ""
        if lifted > bound:
            wrong = wrong or f"{target}: NMSE {lifted:.1e} of the file as it is lifted, {bound:.0e} at most expected"
        return found(nmse=got, wrong=wrong)

    def run(self) -> list[NDArray[np.float32]]:
        """llama.cpp's logits from the file."""
        if self.runtime is None:
            self.runtime = Runtime(self.path, RuntimeOptions(threads=1)).__enter__()
        else:
            self.runtime.reload()
        return self.runtime.logits(PROMPTS)


def _refusal(error: str) -> str:
    """What is wrong with an error that refuses a spec: it has to be one line, and to name what is missing."""
    return "" if "does not support" in error and "\n" not in error else f"refused without a name: {error[:200]}"
