"""What a model computes and saves with its weights is found by its values, whatever it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_tools.description.buffers import is_computed
from gguf_tools.description.describe import find
from gguf_tools.families.registry import load_model
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.tensors.base import InMemory
from tests.made_checkpoints import Made

Numbers = NDArray[np.floating]


def angles(dim: int = 16, base: float = 10000.0, length: int = 40) -> Numbers:
    return np.outer(np.arange(length), base ** (-np.arange(0, dim, 2) / dim))


def sixteen(values: Numbers) -> Numbers:
    return torch.from_numpy(values).bfloat16().float().numpy()


COMPUTED: dict[str, Callable[[], Numbers]] = {
    "causal mask": lambda: np.tril(np.ones((1, 1, 24, 24))),
    "mask of what is hidden": lambda: np.triu(np.full((24, 24), -np.inf), 1),
    "masked score": lambda: np.array(-1e9),
    "cosines": lambda: np.cos(angles()),
    "sines, each twice": lambda: np.sin(np.tile(angles(), 2))[:, None],
    "cosines beside sines": lambda: np.hstack([np.cos(angles()), np.sin(angles())])[None],
    "pairs of both": lambda: np.stack([np.cos(angles()), np.sin(angles())], -1),
    "cosines in 16 bits": lambda: sixteen(np.cos(angles())),
    "frequencies": lambda: 123456.0 ** (-np.arange(0, 16, 2) / 16),
    "positions": lambda: np.arange(40.0)[None],
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_tensors_are_known_by_their_values(kind: str) -> None:
    assert is_computed(InMemory(np.asarray(COMPUTED[kind](), np.float32)))


@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.sampled_from([(8,), (16, 16), (12, 8), (1,), (4, 6, 6), (40, 2)]), st.booleans())
def test_weights_are_not(seed: int, shape: tuple[int, ...], padded: bool) -> None:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if padded:  # the first row of an embedding may be zero
        values[0] = 0
    assert not is_computed(InMemory(values))
    assert not is_computed(InMemory(np.ones(shape, np.float32)))
    assert not is_computed(InMemory(np.zeros(shape, np.float32)))


def test_they_have_no_role_and_no_part_in_the_structure(made: Made, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(made("llama", "plain"))
    count, hidden = len(load_model(made("llama", "plain")).layers), 64
    plain = find(checkpoint, 288)
    extra = {"zu": np.cos(angles(hidden * 2)), "zo": np.arange(9.0)}
    extra |= {f"model.layers.{n}.pe.ra": np.tril(np.ones((hidden, hidden))) for n in range(count)}
    extra |= {f"model.layers.{n}.pe.ri": 100.0 ** (-np.arange(0, 16, 2) / 16) for n in range(count)}
    more = {name: InMemory(array.astype(np.float32), (name,)) for name, array in extra.items()}
    found = find(replace(checkpoint, tensors={**checkpoint.tensors, **more}), 288)
    assert found.assignment.groups[0].forms == plain.assignment.groups[0].forms
    assert found.assignment.groups[0].per_head == ()
    assert set(found.left) == {"zu", "zo", "model.layers.{n}.pe.ra", "model.layers.{n}.pe.ri"}
