"""`tinyq convert --prove`: compares the reference with the source's own code before the file is written, and the written file
with the reference before it gets its final name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gguf_tools.conversion.plan import Conversion, opened_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import UnsupportedError
from gguf_tools.evaluation.oracle import SHORT, SHORT_TEXT, Oracles, parse_oracle
from gguf_tools.evaluation.oracle_check import OracleCheck, magnitude
from gguf_tools.evaluation.reference_source import ReferenceSource, encoded
from gguf_tools.evaluation.transformers_model import FLOAT32, fits
from gguf_tools.families.registry import build_published
from gguf_tools.machine import useful_threads
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.restore import restore
from gguf_tools.tensors.error import nmse
from gguf_tools.tokenizers.vocabulary import Tokenizer


@dataclass(frozen=True)
class Proved:
    """llama.cpp's result on the file: NMSE against the torch reference over the `n_tokens` positions of one short prompt."""

    nmse: float
    n_tokens: int


class Proof:
    """The proof of one conversion; called by `execute` with the finished temporary file.

    The constructor compares the reference with the oracle (named as for `parse_oracle`); UnsupportedError if they disagree.
    A call raises UnsupportedError if an F32 file without approximations differs from the reference by more than float32 rounding
    (NMSE 1e-9), or more than the target's own bound.
    """

    def __init__(self, request: Request, conversion: Conversion, oracle: str = "auto") -> None:
        """Build the reference and compare it with the oracle on a short prompt; UnsupportedError if they disagree."""
        self.bound = max(FLOAT32, conversion.plan.nmse)
        self.exact = conversion.decision.name == "f32" and conversion.plan.approximation is None
        checkpoint = opened_source(request)
        unchanged = build_published(restore(checkpoint, text_only=request.text_only))
        self.model = request.operation.apply(unchanged) if request.operation else unchanged
        ids = encoded(conversion.tokenizer, SHORT_TEXT, add_special=True)[:SHORT]
        self.tokens = tuple(ids[: unchanged.spec.context_length]) or (0,)
        self.proved: Proved | None = None
        source = ReferenceSource(
            model=unchanged,
            origin="given",
            path=request.source,
            tokenizer=conversion.tokenizer,
            note="",
            checkpoint=checkpoint,
        )
        self.oracle = Oracles(parse_oracle(oracle)).check_source(source, (self.tokens,))
        if isinstance(self.oracle, OracleCheck) and not self.oracle.agrees:
            raise UnsupportedError(
                f"{request.source}: {self.oracle.sentence}; tinyq reads this checkpoint differently from the model's own code, "
                "so nothing is written; please report this"
            )

    def __call__(self, path: Path, _: Tokenizer) -> None:
        """Prove the logits of the file at `path`."""
        dtype = torch.float64 if fits(self.model.parameters, 8) else torch.float32
        wanted = Reference(self.model, dtype).logits([self.tokens])[0].astype(np.float64)
        with Runtime(path, RuntimeOptions(threads=useful_threads(path.stat().st_size))) as runtime:
            (found,) = runtime.logits([self.tokens])
        error = nmse(wanted, found)
        if self.exact and not error <= self.bound:
            raise UnsupportedError(
                f"{self.model.family} checkpoint: llama.cpp's logits for the converted file differ from the torch reference's "
                f"(NMSE {magnitude(error)}; expected at most {self.bound:.0e}), so nothing is written; please report this"
            )
        self.proved = Proved(error, len(self.tokens))

    @property
    def lines(self) -> list[str]:
        """The results as lines for a terminal, the oracle's first."""
        check, proved = self.oracle, self.proved
        lines = [check.sentence] if isinstance(check, OracleCheck) else []
        if proved:
            found = f"NMSE {magnitude(proved.nmse)} against the reference"
            lines.append(f"proved    llama.cpp's logits of {proved.n_tokens} tokens: {found}")
        notes = check.notes if isinstance(check, OracleCheck) else (check,) if check else ()
        return lines + [f"note      {note}" for note in notes]

    def as_dict(self) -> dict[str, Any]:
        """The value of `proof` in `--json`."""
        check = self.oracle
        return {
            "oracle": check.as_dict() if isinstance(check, OracleCheck) else None,
            "note": check if isinstance(check, str) else None,
            "nmse": self.proved.nmse if self.proved else None,
            "n_tokens": self.proved.n_tokens if self.proved else None,
        }
