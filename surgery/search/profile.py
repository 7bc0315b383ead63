"""`tinyq search profile`: what each layer does to the residual stream, from one pass over a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.evaluation.card.questions import choose
from gguf_tools.evaluation.card.suite import CardOptions
from gguf_tools.runtime.process import RuntimeOptions
from gguf_tools.tables import Block, Column, Lines, Shown, Table
from surgery.search.bench import Bench
from surgery.search.engine import LayerProfile
from surgery.search.items import Items

BAR = 24
"""Columns of the longest bar."""


@dataclass(frozen=True, repr=False)
class Profile(Shown):
    """The profile of a file's layers; `angle` is NaN where llama.cpp measured, which shows no single tokens."""

    path: Path
    layers: tuple[LayerProfile, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq search profile --json` writes."""
        return {
            "path": str(self.path),
            "layers": [
                {
                    "layer": n,
                    "update_norm": layer.update_norm,
                    "influence": layer.influence,
                    "angle": None if math.isnan(layer.angle) else layer.angle,
                }
                for n, layer in enumerate(self.layers)
            ],
        }

    def blocks(self) -> Sequence[Block]:
        """A table with a bar for each layer, and the layers that change the stream least."""
        norms = sorted(layer.update_norm for layer in self.layers)
        # The first layer writes into a stream of embeddings, which are small; it would flatten all other bars.
        most = norms[-2] if len(norms) > 2 else norms[-1]
        columns = [
            Column("layer", key=True),
            Column("update norm", "{:.4f}".format),
            Column("block influence", "{:.4f}".format),
            Column("angle / π", "{:.4f}".format, rank=1),
            Column("update norm, drawn", left=True, rank=2),
        ]
        rows = [
            (
                n,
                layer.update_norm,
                layer.influence,
                None if math.isnan(layer.angle) else layer.angle,
                bar(layer.update_norm / most if most else 0.0),
            )
            for n, layer in enumerate(self.layers)
        ]
        order = sorted(range(len(self.layers)), key=lambda n: self.layers[n].update_norm)
        least = ", ".join(map(str, order[:5]))
        return [
            Lines(f"{self.path.name}: what each layer does to the residual stream"),
            Lines(),
            Table(columns, rows),
            Lines(),
            Lines(f"layers that change it least, which cost least to delete or exchange: {least}"),
        ]


def bar(share: float) -> str:
    """A bar of block characters for a share of the longest; › at its end where it is longer."""
    whole, eighths = divmod(round(min(share, 1.0) * BAR * 8), 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[eighths] if eighths else "") + ("›" if share > 1.0 else "")


def profile_of(source: Path, questions: str, text: Path | None, options: RuntimeOptions) -> Profile:
    """The profile of a GGUF on the text of a question set, or on the user's; errors as those of `Bench`."""
    choice = choose(questions, 1, None, text)
    items = Items(choice.scored, choice.scored)
    with Bench(source, items, CardOptions(choice=choice), options=options) as bench:
        return Profile(source, bench.profile)
