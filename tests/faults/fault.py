"""What a fault is: a name, and the tries of it on a scenario."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from tests.faults.bench import Bench, Try
from tests.faults.scenario import Scenario

T = TypeVar("T")


class Fault(ABC):
    """Something that goes wrong from outside. The matrix has a row for each."""

    name: str
    """As the table and the command line call it."""
    about: str
    """What is done, and how, in a sentence for the page."""
    cheap = True
    """Whether the command ends at once under it, so that a slow one can be in the sample."""

    def why_not(self) -> str:
        """Why it cannot be tried on this machine; empty where it can."""
        return ""

    def fits(self, scenario: Scenario) -> bool:
        """Whether it can happen to a scenario."""
        return True

    @abstractmethod
    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        """The tries on a scenario that it fits, `most` at most for each kind of them."""


def some(items: Sequence[T], most: int, *seed: str) -> list[T]:
    """`most` of the items in their order, the same ones for the same seed."""
    chosen = random.Random(":".join(seed)).sample(range(len(items)), min(most, len(items)))
    return [items[n] for n in sorted(chosen)]
