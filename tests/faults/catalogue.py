"""All faults, in the order of the table; and the pairs of a fault and a scenario."""

from __future__ import annotations

from tests.faults import at_moments, at_steps, environment, limits, on_paths, permissions, surroundings
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *environment.faults(),
    *surroundings.faults(),
    *limits.faults(),
    *at_steps.faults(),
    *at_moments.faults(),
    *on_paths.faults(),
    *permissions.faults(),
)


def fault_named(name: str) -> Fault:
    """The fault; KeyError where there is none."""
    return {fault.name: fault for fault in FAULTS}[name]
