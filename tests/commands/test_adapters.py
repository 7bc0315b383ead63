"""`--lora` on the command line: convert, eval and verify know the adapter, and refuse what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf.adapters import recorded_adapters
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.formats.gguf.values import ValueType, array
from gguf_tools.runtime.process import Runtime
from gguf_tools.tensors.error import nmse
from tests.conftest import Ran
from tests.made_checkpoints import Made
from tests.peft_adapters import TOKENS, MadeAdapter, make_adapter


@pytest.fixture(scope="module")
def base(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(made("llama", "plain"), tmp_path_factory.mktemp("lora") / "base"))


@pytest.fixture(scope="module")
def adapter(base: Path) -> MadeAdapter:
    return make_adapter(base, base.parent / "adapter", target_modules=["q_proj", "k_proj", "down_proj"])


@pytest.fixture(scope="module")
def merged(base: Path, adapter: MadeAdapter) -> Path:
    from gguf_tools import convert

    out = base.parent / "merged.gguf"
    convert(base, out, lora=[adapter.path], type="f32", prove=True)
    return out


def test_the_file_computes_what_peft_computes(merged: Path, adapter: MadeAdapter) -> None:
    with Runtime(merged) as runtime:
        (found,) = runtime.logits([TOKENS])
    assert nmse(adapter.logits, found) < 1e-11


def test_the_file_records_the_adapter(merged: Path, base: Path, adapter: MadeAdapter) -> None:
    header = open_gguf(merged).header
    assert header.get("tinyq.adapters") == ("adapter",)
    assert header.get("tinyq.adapters.scales") == (1.0,)
    assert "is merged into 9 tensors" in str(header.get("tinyq.notes"))


def test_a_recorded_scale_that_is_no_number_is_refused(merged: Path) -> None:
    header = open_gguf(merged).header
    metadata = {**header.metadata, "tinyq.adapters.scales": array(ValueType.STRING, ["x"])}
    with pytest.raises(CheckpointError, match=r"metadata tinyq.adapters.scales has 'x'; expected numbers"):
        recorded_adapters(replace(header, metadata=metadata))


def test_eval_finds_the_recorded_adapter_and_takes_a_given_one(
    tinyq: Callable[..., Ran], merged: Path, base: Path, adapter: MadeAdapter, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("once upon a time\n")
    quick = ("eval", merged, "--no-speed", "--tokens", 2, "--max-nmse", 1e-9, "--quiet", "--prompts", prompts)
    assert tinyq(*quick).code == 0
    assert tinyq(*quick, "--reference", base).code == 0
    assert tinyq(*quick, "--reference", base, "--lora", adapter.path).code == 0
    other = tinyq(*quick, "--reference", base, "--lora", f"{adapter.path}@0.5", "--oracle", "none")
    assert other.code == 1
    assert "NMSE is" in other.err
    assert "--lora needs --reference" in tinyq(*quick, "--lora", adapter.path).err
    assert "into which --lora cannot be merged" in tinyq(*quick, "--reference", merged, "--lora", adapter.path).err


def test_verify_is_identical_with_the_adapter_alone(
    tinyq: Callable[..., Ran], merged: Path, base: Path, adapter: MadeAdapter
) -> None:
    ran = tinyq("verify", merged, "--source", base, "--json", "-")
    found = json.loads(ran.out)
    assert (ran.code, found["identical"], found["different"]) == (0, 30, 0)
    assert any("with the adapter" in note for note in found["notes"])
    assert tinyq("verify", merged, "--source", base, "--lora", adapter.path).code == 0
    half = tinyq("verify", merged, "--source", base, "--lora", f"{adapter.path}@0.5")
    assert half.code == 1
    assert "differs from its source" in half.err


def test_a_changed_adapter_is_not_the_recorded_one(
    tinyq: Callable[..., Ran], merged: Path, base: Path, tmp_path: Path
) -> None:
    for folder in ("base", "adapter"):
        shutil.copytree(base.parent / folder, tmp_path / folder)
    moved = Path(shutil.copy(merged, tmp_path))
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(config.read_text() + "\n")
    assert "is not, or no longer, the adapter that" in tinyq("verify", moved, "--source", tmp_path / "base").err
    shutil.rmtree(tmp_path / "adapter")
    assert (
        "which is no longer there; give its place with --lora"
        in tinyq("verify", moved, "--source", tmp_path / "base").err
    )
    ran = tinyq("eval", moved, "--no-speed", "--tokens", 2)
    assert ran.code == 0
    assert "its adapter cannot be merged" in " ".join(ran.out.split())


def test_a_dry_run_shows_the_adapter_and_writes_nothing(
    tinyq: Callable[..., Ran], base: Path, adapter: MadeAdapter, tmp_path: Path
) -> None:
    ran = tinyq("convert", base, tmp_path / "out.gguf", "--lora", f"{adapter.path}@2", "--dry-run")
    assert ran.code == 0
    assert "@2 is merged into 9 tensors" in " ".join(ran.out.split())
    assert not list(tmp_path.iterdir())


def test_the_adapter_is_an_input_that_is_not_overwritten(
    tinyq: Callable[..., Ran], base: Path, adapter: MadeAdapter
) -> None:
    weights = adapter.path / "adapter_model.safetensors"
    ran = tinyq("convert", base, weights, "--lora", adapter.path, "--force")
    assert ran.code == 2
    assert str(weights) in ran.err
    assert weights.stat().st_size > 1000


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("nothing", "no such folder"),
        ("nothing@0.5", "no such folder"),
        (".", "has no adapter_config.json"),
        ("nothing@1e12", "the scale is 1e12"),
    ],
)
def test_a_wrong_adapter_is_one_line(
    lora: str, says: str, tinyq: Callable[..., Ran], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = tinyq("convert", base, "out.gguf", "--lora", lora)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert says in ran.err
    assert not (tmp_path / "out.gguf").exists()


def test_quantization_sees_the_sum_before_it_is_rounded(
    tinyq: Callable[..., Ran], qwen3_folder: Path, tmp_path: Path
) -> None:
    """The merged weights of a bf16 base are float32: bf16 would lose part of the adapter."""
    made = make_adapter(qwen3_folder, tmp_path / "adapter", target_modules=["q_proj"])
    out = tmp_path / "out.gguf"
    assert tinyq("convert", qwen3_folder, out, "--lora", made.path).code == 0
    tensors = open_gguf(out).tensors
    assert tensors["blk.0.attn_q.weight"].dtype == "f32"
    assert np.isfinite(tensors["blk.0.attn_q.weight"].array()).all()
    with Runtime(out) as runtime:
        (found,) = runtime.logits([TOKENS])
    assert nmse(made.logits, found) < 1e-11


def test_the_model_card_names_the_adapter(tinyq: Callable[..., Ran], merged: Path, base: Path, tmp_path: Path) -> None:
    ran = tinyq("card", base, merged, "--out", tmp_path / "README.md", "--suite", "none", "--quiet")
    assert ran.code == 0, ran.err
    page = (tmp_path / "README.md").read_text()
    assert "| Adapters merged | adapter |" in page
    assert "| Their scales | 1.0 |" in page
