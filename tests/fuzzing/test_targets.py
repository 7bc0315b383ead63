"""Every target: its seeds, its corpus and what fell once, and inputs changed at random, the same ones in each run."""

from __future__ import annotations

from random import Random

import pytest

from fuzzing import inputs
from fuzzing.mutate import mutate_bytes
from fuzzing.registry import all_targets
from fuzzing.target import Finding, Target, attempt, limits, prepared
from gguf_tools.families.registry import own_families

MOST_PARENTS = 64


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_nothing_but_declared_errors(target: Target) -> None:
    rng = Random(target.name)
    with prepared(target) as ready, limits():
        parents = [*ready.seeds, *inputs.kept(target.name)]
        for data in parents:
            assert_fine(target, attempt(ready.read, data), data)
        for _ in range(target.short):
            parent = rng.choice(parents)
            by_structure = target.mutate if rng.random() < 0.9 else None
            data = by_structure(parent, rng) if by_structure else mutate_bytes(parent, rng, target.words)
            assert_fine(target, attempt(ready.read, data), data)
            if len(parents) < MOST_PARENTS and len(data) <= target.longest:
                parents.append(data)


def assert_fine(target: Target, outcome: Finding | bool, data: bytes) -> None:
    assert not isinstance(outcome, Finding), f"{target.name} fell for {data!r}:\n{outcome.text}"


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_some_seed_is_accepted(target: Target) -> None:
    with prepared(target) as ready, limits():
        assert any(attempt(ready.read, data) is True for data in ready.seeds)


def test_every_family_with_tiny_checkpoints_has_a_target() -> None:
    names = {target.name for target in all_targets()}
    assert {f"config-{family.name}" for family in own_families() if family.tiny} <= names


def test_names_are_distinct() -> None:
    names = [target.name for target in all_targets()]
    assert len(names) == len(set(names))
