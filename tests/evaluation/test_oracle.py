"""The reference held against transformers' own code: when they agree, and when transformers is not asked."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import InputError
from gguf_tools.evaluation import transformers_model
from gguf_tools.evaluation.conformance import SEED
from gguf_tools.evaluation.oracle import OracleChoice, Oracles, hold_reference, parse_oracle, transformers_answer
from gguf_tools.evaluation.oracle_check import OracleCheck
from gguf_tools.evaluation.reference_source import ReferenceSource
from gguf_tools.families.registry import build_model, family_named
from gguf_tools.sources.checkpoint import open_checkpoint
from tests.tiny_models import change_config, change_tensors, dense, in_float64, logits, network, save

TOKENS = ((5, 70, 33, 101, 99, 7, 200, 14, 55, 81, 3, 9), (120, 44))


def made(folder: Path, family: str, variant: str) -> Path:
    """A tiny checkpoint of a family."""
    tiny = family_named(family).tiny
    assert tiny is not None
    tiny(folder, variant, SEED)
    return folder


def check(folder: Path, choice: str = "auto") -> OracleCheck | str | None:
    """What an oracle says of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    # A model_type that no family declares is taken without asking anybody: the oracle's own answer is what is tested.
    model = build_model(checkpoint, check_type=lambda _checkpoint, _model: "")
    source = ReferenceSource(model=model, origin="given", path=folder, tokenizer=None, note="", checkpoint=checkpoint)
    return Oracles(parse_oracle(choice)).check_source(source, TOKENS)


def refused(folder: Path) -> str:
    """The sentence on why transformers was not asked."""
    found = check(folder)
    assert isinstance(found, str)
    assert "\n" not in found
    with pytest.raises(InputError) as error:
        check(folder, "transformers")
    assert found.endswith(str(error.value))
    return found


# transformers


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("llama", "llama3"),
        ("llama", "yarn"),
        ("llama", "mistral-window"),
        ("mixtral", "plain"),
        ("qwen2", "window"),
        ("qwen2-moe", "plain"),
        ("qwen3", "tied"),
        ("qwen3-moe", "mixed"),
        ("qwen3-next", "irregular"),
        ("qwen3.5", "moe"),
        ("qwen3.5", "vision"),
    ],
)
def test_transformers_agrees_in_float64(family: str, variant: str, tmp_path: Path) -> None:
    found = check(made(tmp_path / "source", family, variant))
    assert isinstance(found, OracleCheck)
    assert found.nmse <= 1e-24  # far below the bound: nothing was rounded to float32
    assert (found.bound, found.arithmetic, found.n_tokens) == (1e-18, "float64", 14)
    assert found.name.startswith("transformers 5.")
    assert found.notes == ()


def test_the_mode_computes_what_code_without_roundings_does(tmp_path: Path) -> None:
    with in_float64():
        model = network(dense(), seed=4)
        save(model, tmp_path)
        wanted = logits(model, TOKENS)
    answer = transformers_answer(open_checkpoint(tmp_path), TOKENS)
    for ours, theirs in zip(answer.logits, wanted, strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= 1e-12 * np.abs(ours).max()


def test_a_wrong_weight_is_seen(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "qwen3", "plain")
    checkpoint = open_checkpoint(folder)
    source = ReferenceSource(
        model=build_model(checkpoint), origin="given", path=folder, tokenizer=None, note="", checkpoint=checkpoint
    )
    change_tensors(
        folder, lambda found: found["model.norm.weight"].__setitem__(3, found["model.norm.weight"][3] * 1.001)
    )
    found = hold_reference(source, transformers_answer(open_checkpoint(folder), TOKENS))
    assert not found.agrees
    assert 1e-12 < found.nmse < 1e-6


def test_biases_that_the_file_lacks_are_zero(tmp_path: Path) -> None:
    found = check(made(tmp_path / "source", "qwen3-next", "gated"))
    assert isinstance(found, OracleCheck)
    assert found.agrees
    assert "has 2 biases that the file lacks; they are set to zero" in found.notes[0]


@pytest.mark.parametrize(
    ("family", "variant", "reason"),
    [
        ("qwen3-next", "ungated", "transformers 5."),
        ("qwen3-next", "ungated-shared", "lacks model.layers.0.mlp.shared_expert_gate.weight and 3 more"),
        ("qwen3.5", "mlx", "it was saved by MLX"),
        ("qwen-moe-simplified", "safetensors", "has no model_type"),
        ("moe-model", "pt", "transformers reads only folders with config.json"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_not_compared(
    family: str, variant: str, reason: str, tmp_path: Path
) -> None:
    assert reason in refused(made(tmp_path / "source", family, variant))


def test_other_reasons_not_to_ask_transformers(
    work: Path, copied: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(work / "source")
    config = json.loads((folder / "config.json").read_text())
    for changes, reason in (
        ({"model_type": "zebra"}, "has no decoder for model_type 'zebra'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its weights are quantized"),
        ({"num_hidden_layers": 10**9}, "config.json states 1000000000 layers, but there are only 36 tensors"),
        ({"intermediate_size": 10**9}, "check config.json"),
    ):
        change_config(folder, changes)
        assert reason in refused(folder)
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "the folder has an adapter_config.json" in refused(folder)
    (folder / "adapter_config.json").unlink()
    monkeypatch.setattr(transformers_model, "available_memory", lambda: 1 << 20)
    assert "do not fit into the available memory" in refused(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "transformers is not installed (pip install" in refused(folder)


def test_float32_where_float64_does_not_fit(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = transformers_model.parameters_of(open_checkpoint(work / "source"))
    memory = transformers_model.SLACK + 6 * weights
    monkeypatch.setattr(transformers_model, "available_memory", lambda: memory)
    found = check(work / "source")
    assert isinstance(found, OracleCheck)
    assert (found.arithmetic, found.bound) == ("float32, the reference in float32", 1e-9)
    assert 1e-16 < found.nmse < 1e-11


def test_code_of_the_checkpoint_is_not_run(work: Path, copied: Callable[[Path], Path], tmp_path: Path) -> None:
    folder, trace = copied(work / "source"), tmp_path / "it-ran"
    (folder / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    change_config(
        folder, {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}}
    )
    found = check(folder)
    assert isinstance(found, OracleCheck)
    assert found.agrees
    assert "config.json names the checkpoint's own code (auto_map), which is not run" in found.notes[0]
    change_config(folder, {"model_type": "evil"})
    assert "has no decoder for model_type 'evil'" in refused(folder)
    assert not trace.exists()


# The choice


def test_parse() -> None:
    assert parse_oracle("auto") == OracleChoice("auto")
    assert parse_oracle("none") == OracleChoice("none")
    assert parse_oracle("transformers") == OracleChoice("transformers")
    assert parse_oracle("a/b.npz") == OracleChoice("golden", "a/b.npz")
    assert parse_oracle("c.safetensors") == OracleChoice("golden", "c.safetensors")
    assert parse_oracle("my.module:logits") == OracleChoice("function", "my.module:logits")
    for wrong in ("", "vllm", "module:", ":function", "a b:c", "../x:y", "a:b:c"):
        with pytest.raises(InputError, match="is not known; expected transformers, MODULE:FUNCTION"):
            parse_oracle(wrong)
