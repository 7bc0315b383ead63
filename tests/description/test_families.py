"""Every family's own small checkpoint, its names turned into nonsense and its config taken away, is solved from its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguf_tools import describe
from gguf_tools.errors import TinyqError
from gguf_tools.families.registry import family_named, load_model, own_families
from gguf_tools.reference import Reference
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from tests.description.scrambled import nonsense, write_weights
from tests.made_checkpoints import Made

FAMILIES = [family.name for family in own_families() if any(e.target for e in family.variants.values())]


def scrambled(made: Made, folder: Path, name: str) -> tuple[Path, Path]:
    """The weights of a family's first variant under invented names, and the logits of its reference."""
    family = family_named(name)
    variant = next(variant for variant, expected in family.variants.items() if expected.target)
    source = made(name, variant)
    model = load_model(source)
    tensors = restore(open_checkpoint(source)).tensors
    names = nonsense(tensors)
    write_weights(folder / "weights.safetensors", {names[name]: t.array() for name, t in tensors.items()})
    rng, arrays = np.random.default_rng(0), dict[str, Any]()
    reference = Reference(model, torch.float32)
    for n, length in enumerate([1] * 8 + [16, 48, 24]):
        tokens = rng.integers(0, model.spec.vocab_size, length)
        arrays |= {f"tokens_{n}": tokens, f"logits_{n}": reference.logits([tokens.tolist()])[0]}
    np.savez(folder / "golden.npz", **arrays)
    return folder / "weights.safetensors", folder / "golden.npz"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_checkpoint_is_solved(made: Made, tmp_path: Path, name: str) -> None:
    source, golden = scrambled(made, tmp_path, name)
    found = describe(source, golden=golden)
    assert found.solved, found.as_dict()["reason"]
    assert found.as_dict()["nmse"] <= 1e-11
    assert found.as_dict()["nmse_held_out"] <= 1e-11


@pytest.mark.parametrize(
    ("name", "lost", "kind"),
    [
        ("bamba", "out_proj", "a state space like Mamba-2"),
        ("qwen3.5", "in_proj_z", "linear attention like Gated DeltaNet"),
    ],
)
def test_a_mixer_that_lacks_a_matrix_is_named(made: Made, tmp_path: Path, name: str, lost: str, kind: str) -> None:
    tensors = restore(open_checkpoint(made(name, "plain" if name == "bamba" else "dense"))).tensors
    kept = {name: tensor.array() for name, tensor in tensors.items() if lost not in name}
    source = write_weights(tmp_path / "weights.safetensors", kept)
    with pytest.raises(TinyqError, match=f"but show {kind}: a convolution of 4 tokens over"):
        describe(source)
