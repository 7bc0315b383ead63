"""`tinyq eval` as a library call: one file, one reference, one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gguf_tools.evaluate.fidelity import FidelityReport, Progress, evaluate_fidelity
from gguf_tools.evaluate.prompts import Prompt
from gguf_tools.evaluate.runtime import ModelInfo, Runtime, RuntimeOptions, Speed
from gguf_tools.evaluate.source import ReferenceSource
from gguf_tools.gguf_file import read_header
from gguf_tools.machine import useful_threads
from gguf_tools.reference import Reference

DTYPES = {"f32": torch.float32, "f64": torch.float64}


@dataclass(frozen=True)
class ModelFacts:
    """The file under test: what `tinyq eval --json` has under `model`."""

    path: str
    arch: str
    type: str
    bpw: float
    bytes: int
    layers: int


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of one file."""

    model: ModelFacts
    source: ReferenceSource
    fidelity: FidelityReport
    speed: Speed | None

    def as_dict(self) -> dict[str, Any]:
        """The contract's JSON."""
        speed = self.speed and {
            "prompt_tok_s": self.speed.prompt_tok_s,
            "generate_tok_s": self.speed.generate_tok_s,
        }
        return {
            "model": vars(self.model),
            "reference": {"origin": self.source.origin, "path": str(self.source.path), "note": self.source.note},
            "fidelity": self.fidelity.as_dict(),
            "speed": speed,
        }


def evaluate_file(
    path: Path,
    source: ReferenceSource,
    options: RuntimeOptions,
    *,
    reference: Reference | None = None,
    dtype: str = "f32",
    prompts: Sequence[Prompt] | None = None,
    text: str | None = None,
    n_generate: int = 100,
    speed: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `path` by llama.cpp and compare it with `source`.

    `reference` saves loading the same source again for the next file. Errors as `evaluate_fidelity` and `Runtime`.
    """
    threads = options.threads or useful_threads(path.stat().st_size)
    torch.set_num_threads(threads)
    reference = reference or Reference(source.model, DTYPES[dtype])
    with Runtime(path, replace(options, threads=threads)) as runtime:
        fidelity = evaluate_fidelity(
            runtime, reference, source.encode, prompts, n_generate, text=text, progress=progress
        )
        measured = runtime.speed() if speed else None
        facts = model_facts(path, runtime.info)
    return Evaluation(facts, source, fidelity, measured)


def model_facts(path: Path, info: ModelInfo) -> ModelFacts:
    """The file's facts: its real bits per weight are those of the tensors' bytes."""
    header = read_header(path)
    kind = header.get("tinyq.type") or info.file_type
    return ModelFacts(str(path), info.arch, kind, info.bits_per_weight, path.stat().st_size, info.n_layer)
