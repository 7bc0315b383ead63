"""Tables of rope and masks saved with the weights: left out where they agree with the model, named where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gguf_tools.errors import CheckpointError
from gguf_tools.families.registry import load_model
from tests.made_checkpoints import Made
from tests.oracle import nmse, reference
from tests.tiny_models import change_config, change_tensors, checkpoint, dense

SCALED: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default", "rope_theta": 1e5},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1e4},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        **{"original_max_position_embeddings": 24, "rope_theta": 1e4},
    },
}


def with_tensors(folder: Path, extra: dict[str, torch.Tensor]) -> Path:
    return change_tensors(folder, lambda found: found | extra)


@pytest.mark.parametrize("name", ["model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"])
@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_of_transformers_itself(tmp_path: Path, name: str, kind: str, dtype: torch.dtype) -> None:
    folder = checkpoint(tmp_path / "model", dense(rope_parameters=SCALED[kind]))
    saved = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    plain = load_model(folder)
    with_tensors(folder, {name: saved.to(dtype)})
    found = load_model(folder)
    assert found.spec == plain.spec
    assert found.notes[len(plain.notes) :] == (
        f"{name} saved with the weights: left out, since buffers are computed, not learned",
    )


def test_frequencies_that_contradict_are_noted_and_the_config_is_followed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", dense(rope_parameters=SCALED["plain"]))
    plain = reference(load_model(folder))
    saved = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    with_tensors(folder, {"model.rotary_emb.inv_freq": saved.clone()})
    change_config(folder, {"rope_parameters": SCALED["plain"] | {"rope_theta": 1e4}})
    found = load_model(folder)
    assert any("base about 100000) than rope with base 10000" in note for note in found.notes), found.notes
    # What transformers makes of it: other logits than those of the frequencies that were saved.
    theirs = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    assert not torch.allclose(theirs, saved)
    assert nmse(reference(found), plain) > 1e-3
    with_tensors(folder, {"model.rotary_emb.inv_freq": saved[:3].clone()})
    assert any("has shape (3,), but rope rotates 16 dimensions in 8 pairs" in note for note in load_model(folder).notes)


def causal(n: int) -> torch.Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


MASKS = {
    "what is shown, bool": causal(40),
    "what is hidden, bool": ~causal(40),
    "GPT-2's, uint8 with batch and head": causal(40).to(torch.uint8)[None, None],
    "what is shown, float": causal(40).float(),
    "added to scores": torch.zeros(40, 40).masked_fill(~causal(40), float("-inf")),
    "added to scores, in half": torch.zeros(40, 40).masked_fill(~causal(40), -65504).half(),
    "larger than what is read at once": causal(1100),
}
WRONG_MASKS = {
    "a window": causal(40) & ~causal(40).tril(-8),
    "without the position itself": causal(40).tril(-1),
    "both ways": torch.ones(40, 40),
    "not square": causal(40)[:20],
    "a small penalty": torch.zeros(40, 40).masked_fill(~causal(40), -1.0),
}


@pytest.fixture
def scratch(made: Made, tmp_path: Path) -> Path:
    """A from-scratch model in one state dict; rope on 10 dimensions with the base 10000."""
    source = made("qwen3-from-scratch", "plain") / "best_model_params.pt"
    (tmp_path / "m.pt").write_bytes(source.read_bytes())
    return tmp_path / "m.pt"


def add(path: Path, extra: dict[str, Any]) -> Path:
    torch.save(torch.load(path) | extra, path)
    return path


@pytest.mark.parametrize("name", ["mask", "blocks.0.attention.causal_mask", "blocks.1.attention.bias"])
@pytest.mark.parametrize("kind", MASKS)
def test_causal_masks(scratch: Path, name: str, kind: str) -> None:
    plain = load_model(scratch)
    found = load_model(add(scratch, {name: MASKS[kind]}))
    assert found.spec == plain.spec
    assert any(note.startswith(f"{name} saved with the weights") for note in found.notes)


@pytest.mark.parametrize("kind", WRONG_MASKS)
def test_other_masks_are_refused(scratch: Path, kind: str) -> None:
    add(scratch, {"blocks.0.attention.mask": WRONG_MASKS[kind]})
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attention\.mask of shape .* is not a causal mask"):
        load_model(scratch)


def tables(theta: float = 10000.0, rows: int = 64) -> dict[str, torch.Tensor]:
    speeds = theta ** -(torch.arange(0, 10, 2) / 10)
    angles = torch.arange(rows)[:, None] * torch.cat([speeds, speeds])[None]
    return {"cos": angles.cos(), "sin": angles.sin()}


def test_tables_of_rope(scratch: Path) -> None:
    made = tables()
    half = {f"blocks.0.attention.{name}_cached": table[None, None, :, :5] for name, table in made.items()}
    both = {"rope_cache": torch.stack([made["cos"][:, :5], made["sin"][:, :5]], -1)}
    turned = {"freqs_cis": torch.complex(made["cos"][:, :5].contiguous(), made["sin"][:, :5].contiguous())}
    plain = load_model(scratch)
    embedding = plain.tensors["embedding"].array()
    found = load_model(
        add(scratch, made | half | both | turned | {"inv_freq": 10000.0 ** -(torch.arange(0, 10, 2) / 10)})
    )
    assert found.spec == plain.spec
    assert any("7 buffers (such as" in note for note in found.notes)
    np.testing.assert_array_equal(found.tensors["embedding"].array(), embedding)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"cos": tables(5e5)["cos"]}, "differs from the table of rope with base 10000 and half pairs"),
        ({"cos": tables()["sin"]}, "differs from the table of rope"),
        ({"sin": tables()["sin"][:, :4]}, "does not fit the 10 dimensions that rope rotates"),
        ({"inv_freq": 5e5 ** -(torch.arange(0, 10, 2) / 10)}, "base about 500000"),
        ({"blocks.0.attention.masked_bias": torch.tensor(0.0)}, "is not a large negative number"),
        ({"position_ids": torch.arange(8).flip(0)}, "does not hold the positions 0, 1, 2, …"),
    ],
)
def test_buffers_that_a_program_would_load_must_agree(scratch: Path, extra: dict[str, torch.Tensor], what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        load_model(add(scratch, extra))


def test_other_buffers_that_say_nothing(scratch: Path) -> None:
    extra = {
        "blocks.0.attention.masked_bias": torch.tensor(-1e4),
        "position_ids": torch.arange(32)[None],
        "blocks.0.feed_forward._extra_state": torch.zeros(8, dtype=torch.uint8),
        "blocks.1.feed_forward._extra_state": None,
    }
    assert any("3 buffers" in note for note in load_model(add(scratch, extra)).notes)
