"""What cannot be brought back is refused by name; towers are asked about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from gguf_tools.cli import run, tinyq
from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny.hybrid import write_qwen35

W = "model.layers.0.self_attn.q_proj"
PACKED = {
    "bitsandbytes": ({f"{W}.weight": "u1", f"{W}.weight.absmax": "f4", f"{W}.weight.quant_map": "f4"}, "dequantize()"),
    "HQQ": ({f"{W}.W_q": "u1", f"{W}.scale": "f2"}, "hqq"),
    "some-method": ({f"{W}.weight": "i1"}, "16 bit"),
    "some-method ": ({f"{W}.qweight": "i4", f"{W}.qzeros": "i4", f"{W}.scales": "f2", f"{W}.g_idx": "i4"}, "16 bit"),
    "some-method  ": ({f"{W}.weight": "u4", f"{W}.scales": "f2", f"{W}.biases": "f2"}, "16 bit"),
    "some-method   ": ({f"{W}.weight_packed": "i4", f"{W}.weight_scale": "f2"}, "16 bit"),
}


def folder_with(folder: Path, names: dict[str, str]) -> Path:
    """A folder whose tensors have these names and numpy types."""
    save_file({name: np.zeros((4, 4), kind) for name, kind in names.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "some-method"}}), "utf-8")
    return folder


@pytest.mark.parametrize("method", PACKED)
def test_packed_weights_are_named_with_what_to_do(tmp_path: Path, method: str) -> None:
    names, advice = PACKED[method]
    with pytest.raises(UnsupportedError, match=rf"tensor {W}\S* .*packed by {method.strip()}") as error:
        load_model(folder_with(tmp_path, names))
    assert advice in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_in_the_weights(tmp_path: Path) -> None:
    names = {f"base_model.model.{W}.lora_A.weight": "f4", f"base_model.model.{W}.lora_B.weight": "f4"}
    with pytest.raises(
        UnsupportedError, match=r"lora_A\.weight belongs to a LoRA adapter; give the adapter's folder with --lora"
    ):
        load_model(folder_with(tmp_path, names))


def test_an_adapter_s_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}', "utf-8")
    save_file({"x.lora_A.weight": np.zeros((2, 2), "f4")}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        UnsupportedError,
        match=r"is an adapter .* trained on org/base, not a model; merge it into its base with .* --lora",
    ):
        load_model(tmp_path)


def test_a_tower_is_left_out_only_when_asked(tmp_path: Path) -> None:
    write_qwen35(tmp_path, "vision", 1)
    wanted = r"a vision tower \(1 tensors, such as model\.visual\.blocks.* leave it out with --text-only"
    with pytest.raises(UnsupportedError, match=wanted):
        open_source(Request(source=tmp_path))
    opened = open_source(Request(source=tmp_path, text_only=True))
    assert any("vision tower" in note for note in opened.model.notes)
    assert any("mtp" in note for note in opened.model.notes)


@pytest.mark.parametrize(
    ("name", "what"), [("audio_tower.conv.weight", "audio tower"), ("vision_tower.x.weight", "vision tower")]
)
def test_towers_by_other_names(tmp_path: Path, name: str, what: str) -> None:
    write_qwen35(tmp_path, "dense", 1)
    text = {f"language_model.{key}": values for key, values in load_file(tmp_path / "model.safetensors").items()}
    save_file(text | {name: np.zeros((2, 2), "f4")}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=what):
        open_source(Request(source=tmp_path))
    assert load_model(tmp_path).spec.pattern == "dada"


def test_the_option_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_qwen35(tmp_path / "hf", "vision", 1)
    source, out = str(tmp_path / "hf"), str(tmp_path / "out.gguf")
    assert run(["convert", source, out, "--dry-run"]) == 2
    assert "--text-only" in capsys.readouterr().err
    result = CliRunner().invoke(tinyq, ["convert", source, out, "--dry-run", "--text-only"])
    assert result.exit_code == 0
    assert "target    qwen35" in result.output
