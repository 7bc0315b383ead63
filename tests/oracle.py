"""From a checkpoint to llama.cpp's logits and back, as the conformance tests ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation import conformance
from gguf_tools.evaluation.conformance import GENERATED, halved
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import lift
from tests.tiny_models import VOCAB

Logits = list[NDArray[np.floating[Any]]]
nmse = conformance.nmse

_RNG = np.random.default_rng(20)
PROMPTS: tuple[tuple[int, ...], ...] = tuple(tuple(map(int, _RNG.integers(0, VOCAB, n))) for n in (44, 17, 1))


def reference(model: Model, prompts: Sequence[Sequence[int]] = PROMPTS) -> Logits:
    """The torch reference's logits, in float64."""
    return list(Reference(model, torch.float64).logits(prompts))


def source_reference(folder: Path, prompts: Sequence[Sequence[int]] = PROMPTS) -> Logits:
    """The reference's logits of a checkpoint."""
    return reference(load_model(folder), prompts)


def lifted_reference(path: Path, prompts: Sequence[Sequence[int]] = PROMPTS) -> Logits:
    """The reference's logits of a GGUF's own weights."""
    return reference(lift(open_gguf(path)), prompts)


def convert(source: Path, out: Path, type_name: str = "f32", **options: Any) -> Path:
    """`tinyq convert` without the proof of the vocabulary, which tests of the command line see to."""
    execute(prepare(Request(source=source, type=type_name, threads=1, **options)), out)
    return out


def llama(path: Path, prompts: Sequence[Sequence[int]] = PROMPTS) -> tuple[Logits, list[tuple[int, ...]]]:
    """llama.cpp's logits of every position, and its greedy continuations of the prompts' first halves."""
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        logits: Logits = list(runtime.logits(prompts))
        greedy = runtime.greedy([halved(prompt) for prompt in prompts], GENERATED)
        return logits, [result.tokens for result in greedy]


def greedy_agrees(model: Model, continuations: Sequence[Sequence[int]]) -> bool:
    """Whether the reference would have continued the halved prompts as llama.cpp did."""
    return conformance.greedy_agrees(model, PROMPTS, continuations)
