"""Values of model_type that no family declares: transformers' forward decides, or the user, or they are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gguf_tools import convert, inspect
from gguf_tools.api.load_model import load_model
from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import UnsupportedError
from gguf_tools.evaluation.reference_source import find_reference
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.families.registry import build_model
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.attention import LLAMA, QWEN3
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.sources.checkpoint import open_checkpoint

MINISTRAL3 = {
    "model_type": "ministral3",
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.0}
    | {"original_max_position_embeddings": 64},
}
"""A class that tinyq does not declare and that computes what Llama does, given these numbers."""


def written(folder: Path, **config: Any) -> Path:
    """A tiny checkpoint with other keys in its config."""
    tiny_attention.write(folder, LLAMA["plain"], 1)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return folder


def refusal(folder: Path, **options: Any) -> str:
    """Why the folder is not read."""
    with pytest.raises(UnsupportedError) as error:
        build_model(open_checkpoint(folder), **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_type_of_the_same_mathematics_is_taken_with_a_note(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", **MINISTRAL3)
    result = convert(folder, tmp_path / "out.gguf", type="f32")
    (note,) = [note for note in result.as_dict()["notes"] if "gives the same logits" in note]
    assert note.startswith("model_type 'ministral3' is converted as llama: transformers ")
    assert note in read_header(tmp_path / "out.gguf").get(keys.NOTES)
    assert (model := find_reference(tmp_path / "out.gguf", folder).model)
    assert model.family == "llama"
    assert load_model(folder).family == "llama"
    assert not inspect(folder).problems


@pytest.mark.parametrize("kind", ["helium"])
def test_a_type_of_other_mathematics_is_refused(tmp_path: Path, kind: str) -> None:
    text = refusal(written(tmp_path, model_type=kind, head_dim=16), check_type=check_model_type)
    assert f"model_type '{kind}' is not supported" in text
    assert "gives other logits (NMSE" in text


def test_a_window_that_a_short_sequence_does_not_show(tmp_path: Path) -> None:
    """The class ignores use_sliding_window, and 100 tokens are more than are compared."""
    folder = written(tmp_path, **MINISTRAL3, use_sliding_window=False, sliding_window=100)
    assert "limits attention to 100 tokens (sliding_window)" in refusal(folder, check_type=check_model_type)


def test_without_other_code_a_type_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path, model_type="yi")
    assert "model_type 'yi' is not supported" in refusal(folder)
    assert "no decoder for model_type 'yi'" in refusal(folder, check_type=check_model_type)
    assert "name that family with --as" in refusal(folder)


def test_a_family_that_the_user_names(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", model_type="yi")
    convert(folder, tmp_path / "out.gguf", type="f32", as_family="llama")
    header = read_header(tmp_path / "out.gguf")
    assert header.get(keys.AS_FAMILY) == "llama"
    assert any("'yi'" in note and "--as llama" in note for note in header.get(keys.NOTES))
    assert (model := find_reference(tmp_path / "out.gguf", folder).model)
    assert model.family == "llama"


def test_a_model_type_that_the_user_names_brings_its_defaults(tmp_path: Path) -> None:
    folder = written(tmp_path, model_type="yi", max_position_embeddings=8192)
    assert build_model(open_checkpoint(folder), as_family="llama").spec.layers[0].mixer.window is None  # type: ignore[union-attr]
    mistral = build_model(open_checkpoint(folder), as_family="mistral")
    assert mistral.family == "mistral"
    assert mistral.spec.layers[0].mixer.window == 4096  # type: ignore[union-attr]
    with pytest.raises(UnsupportedError, match="family elephant is not known"):
        build_model(open_checkpoint(folder), as_family="elephant")


def test_no_type_at_all_is_read_by_its_tensors(tmp_path: Path) -> None:
    folder = written(tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    model = build_model(open_checkpoint(folder))
    assert (model.family, model.notes) == ("llama", ())


@pytest.mark.parametrize(
    ("config", "sign"),
    [
        ({"model_type": "Dream"}, "model_type is 'Dream'"),
        ({"model_type": "llada"}, "model_type is 'llada'"),
        ({"model_type": "llama_bidirec"}, "model_type is 'llama_bidirec'"),
        ({"architectures": ["DiffuCoderForDiffusion"]}, "architectures is 'DiffuCoderForDiffusion'"),
        ({"is_causal": False}, "is_causal is False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ],
)
def test_attention_that_is_not_causal_is_refused(tmp_path: Path, config: dict[str, Any], sign: str) -> None:
    folder = written(tmp_path, **config)
    for options in ({}, {"as_family": "llama"}, {"check_type": check_model_type}):
        assert f"{sign}: attention is not causal" in refusal(folder, **options)


SMALL = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("kind", ["exaone4", "persimmon", "olmo_hybrid"])
def test_a_family_that_is_not_supported_is_called_that(tmp_path: Path, kind: str) -> None:
    """Not an incomplete checkpoint, and no key that is missing."""
    made: Any = transformers.AutoConfig.for_model(kind, **SMALL)
    with torch.random.fork_rng():
        auto: Any = transformers.AutoModelForCausalLM
        auto.from_config(made).save_pretrained(tmp_path)
    for options in ({}, {"check_type": check_model_type}):
        assert f"model_type '{kind}' is not supported (" in refusal(tmp_path, **options)


def test_a_known_type_is_not_asked_about(tmp_path: Path) -> None:
    def never(*_: object) -> str:
        raise AssertionError

    tiny_attention.write(tmp_path, QWEN3["plain"], 1)
    assert open_source(Request(source=tmp_path, check_type=never)).model.notes == ()
