"""What the book's checkpoints are refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.families.registry import family_named, load_model


def made(folder: Path, variant: str, config: dict[str, Any] | None, family: str = "rasbt") -> Path:
    """The variant's checkpoint with another config.json, or with none."""
    write = family_named(family).tiny
    assert write
    write(folder, variant, 1)
    (folder / "config.json").unlink(missing_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("variant", "config", "kind", "message"),
    [
        ("llama3", None, CheckpointError, "n_heads is missing, and no shape tells it"),
        ("llama3", {"n_heads": 3}, CheckpointError, "not whole heads of 13 in whole groups"),
        ("llama3", {"n_heads": 4, "window": 5}, UnsupportedError, "window is a key that the book's cfg"),
        (
            "llama3",
            {"n_heads": 4, "rope_freq": {"factor": 8.0}},
            CheckpointError,
            r"rope_freq\.low_freq_factor is missing",
        ),
        ("llama3", {"n_heads": 4, "rope_base": 0}, CheckpointError, "rope_base is 0; expected a number above 0"),
        ("qwen3 moe", None, CheckpointError, "num_experts_per_tok is missing"),
        ("qwen3 moe", {"num_experts_per_tok": 5}, CheckpointError, "num_experts_per_tok is 5, but the router has 4"),
    ],
)
def test_refusals(
    tmp_path: Path, variant: str, config: dict[str, Any] | None, kind: type[InputError], message: str
) -> None:
    with pytest.raises(kind, match=message) as error:
        load_model(made(tmp_path, variant, config))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (None, CheckpointError, "layer_types is missing, and no shape tells"),
        ({"layer_types": ["full_attention"]}, CheckpointError, "layer_types is .*; expected a list of 3, each"),
        ({"rope_base": 0}, CheckpointError, "rope_base is 0; expected a number above 0"),
        ({"query_pre_attn_scalar": 0}, CheckpointError, "query_pre_attn_scalar is 0; expected a number above 0"),
        ({"softcap": 30}, UnsupportedError, "softcap is a key that the book's cfg of Gemma 3 does not have"),
    ],
)
def test_refusals_of_gemma3(
    tmp_path: Path, config: dict[str, Any] | None, kind: type[InputError], message: str
) -> None:
    whole = {"layer_types": ["full_attention"] * 3}
    given = None if config is None else whole | config
    with pytest.raises(kind, match=message) as error:
        load_model(made(tmp_path, "with a config", given, "rasbt-gemma3"))
    assert "\n" not in str(error.value)
