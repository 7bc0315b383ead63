"""The result of comparing the reference and llama.cpp with an oracle. Does not import torch."""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class OracleCheck:
    """Errors of the torch reference and of llama.cpp against an oracle, over all positions of some sequences.

    `nmse` is the reference's NMSE; up to `bound` it is explained by rounding. `nmse_model` is llama.cpp's, None if the file
    is not the source's model (layer surgery). `arithmetic` describes the dtypes in which oracle and reference computed.
    """

    name: str
    nmse: float
    nmse_model: float | None
    bound: float
    arithmetic: str
    n_sequences: int
    n_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference."""
        return self.nmse <= self.bound

    @property
    def sentence(self) -> str:
        """The result in one line."""
        verdict = "agrees" if self.agrees else "disagrees"
        where = f"{self.n_tokens} tokens, {self.arithmetic}"
        if not self.agrees:
            where += f"; expected at most {self.bound:.0e}"
        model = "" if self.nmse_model is None else f"; llama.cpp {magnitude(self.nmse_model)}"
        return f"{self.name} {verdict}: NMSE {magnitude(self.nmse)} ({where}){model}"

    def as_dict(self) -> dict[str, Any]:
        """The value of `fidelity.oracle` in `--json`."""
        found = {**vars(self), "agrees": self.agrees, "notes": list(self.notes)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def magnitude(value: float) -> str:
    """An NMSE with one or two significant digits."""
    return f"{value:.0e}" if 0 < value < 0.01 else f"{value:.2g}"


def transformers_name() -> str:
    """The library and its version, such as "transformers 5.23"."""
    version = importlib.import_module("importlib.metadata").version("transformers")
    return f"transformers {'.'.join(version.split('.')[:2])}"
