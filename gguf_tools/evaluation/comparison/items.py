"""The results of one run, item by item, whatever wrote them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["mean", "bits_per_byte", "log_perplexity"]
"""How values are combined: the mean, or −Σ log-likelihood / Σ weight, in bits if the weights are bytes (otherwise in nats)."""


MOST = 1e100
"""Values of this size or more are no results of a benchmark."""


def number(found: object) -> float | None:
    """A value read from a file as a float; None for what is no number, or one whose sums could overflow."""
    if not isinstance(found, int | float) or not abs(found) < MOST:  # NaN is not below either
        return None
    return float(found)


@dataclass(frozen=True)
class Item:
    """One question or text: what it is called in reports, and its value, with its weight if values are summed."""

    label: str
    value: float
    weight: float = 1.0
    prompt: str = ""
    """A digest of what the model was asked, "" if unknown; two runs may ask the same question in different words."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one task: its items by what identifies them in another run."""

    task: str
    name: str
    kind: Kind = "mean"
    higher_is_better: bool = True
    items: Mapping[Hashable, Item]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was measured of one model: metrics by (task, name); `notes` say what was left aside."""

    path: str
    model: str
    metrics: Mapping[tuple[str, str], Metric]
    notes: tuple[str, ...] = field(default=())
