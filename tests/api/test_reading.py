"""`gguf_tools.inspect`, `load_model` and `open_gguf`: what reads and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gguf_tools import GGUFFile, inspect, load_model, open_gguf, quantize
from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.safetensors import read_safetensors
from tests.conftest import Ran
from tests.tiny_models import WEIGHTS, tensors

Tinyq = Callable[..., Ran]
Read = Callable[[str | Path], Any]


@pytest.mark.parametrize("kind", ["gguf", "checkpoint"])
def test_inspect_does_what_the_command_does(tinyq: Tinyq, exact_file: Path, qwen3_folder: Path, kind: str) -> None:
    source = exact_file if kind == "gguf" else qwen3_folder
    found = inspect(str(source))
    assert found.as_dict() == json.loads(tinyq("inspect", source, "--json", "-").out)
    assert inspect(source) == found
    assert f"{found!r}\n" == tinyq("inspect", source).out
    assert f">{source}</td>" in found._repr_html_()
    assert (found.kind, found.layers) == (kind, 3)


@pytest.mark.parametrize("read", [inspect, load_model, open_gguf])
def test_what_cannot_be_read_is_a_checkpoint_error(read: Read, tmp_path: Path, exact_file: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exact_file.read_bytes()[:3000])
    for path in (tmp_path / "gone", str(cut)):
        with pytest.raises(CheckpointError) as raised:
            read(path)
        assert str(path) in str(raised.value)


def test_a_gguf_opens_as_the_gguf_package_reads_it(exact_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    quantize(exact_file, path, "q8_0")
    opened, reader = open_gguf(str(path)), gguf.GGUFReader(path)
    assert opened.path == path
    assert opened.architecture == opened.metadata["general.architecture"] == "qwen3"
    by_reader = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert opened.as_dict()["metadata"] == by_reader
    assert set(opened.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(opened.tensors[tensor.name].array(), expected)


def test_a_gguf_shows_itself(exact_file: Path) -> None:
    opened = open_gguf(exact_file)
    lines = repr(opened).splitlines()
    assert any(line.split() == ["general.architecture", "qwen3"] for line in lines)
    assert any(line.startswith("tokenizer.ggml.tokens") and "288 values: " in line for line in lines)
    assert any(
        line.split() == ["blk.0.attn_q.weight", "64×48", "F32"] or "blk.0.attn_q.weight" in line for line in lines
    )
    assert all(len(line) < 200 for line in lines)
    assert json.loads(json.dumps(opened.as_dict(), allow_nan=False)) == opened.as_dict()


def test_hostile_metadata_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("<script>\x1b]0;x\x07\n&")
    writer.add_tensor("<b>\x1bt", np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened: GGUFFile = open_gguf(path)
    for shown in (repr(opened), opened._repr_html_(), repr(inspect(path)), inspect(path)._repr_html_()):
        assert not set("\x1b\x07") & set(shown)
        assert "\\x1b]0;x\\x07\\n" in shown
    for shown in (opened._repr_html_(), inspect(path)._repr_html_()):
        assert "&lt;script&gt;" in shown
        assert "<script" not in shown
        assert "<b>" not in shown


def test_a_model_has_the_checkpoints_weights_and_logits(qwen3_folder: Path) -> None:
    loaded = load_model(str(qwen3_folder))
    stored = tensors(qwen3_folder)
    assert (loaded.family, loaded.spec.pattern) == ("qwen3", "aaa")
    assert loaded.parameters == sum(tensor.numel() for tensor in stored.values())
    assert set(loaded.tensors["layers.1.attn.q"].sources) == {"model.layers.1.self_attn.q_proj.weight"}
    by_torch = stored["model.layers.1.self_attn.q_proj.weight"].float().numpy()
    assert np.array_equal(loaded.tensors["layers.1.attn.q"].array(), by_torch)
    network = AutoModelForCausalLM.from_pretrained(qwen3_folder, dtype=torch.float32)
    tokens = [5, 17, 250, 3, 3, 90]
    with torch.inference_mode():
        expected = network(torch.tensor([tokens])).logits[0].numpy()
    assert loaded.logits(tokens).shape == expected.shape
    assert np.allclose(loaded.logits(tokens), expected, atol=1e-4, rtol=1e-4)
    for wrong in ([], [-1], [loaded.spec.vocab_size], "text", [1.5], 3):
        with pytest.raises(InputError, match="expected one or more token ids from 0 to "):
            loaded.logits(wrong)  # type: ignore[arg-type]


def test_a_model_from_a_gguf_is_the_checkpoints(qwen3_folder: Path, exact_file: Path) -> None:
    tokens = [1, 2, 3, 200]
    found, expected = load_model(exact_file).logits(tokens), load_model(qwen3_folder).logits(tokens)
    assert np.allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_surgery_on_a_model(qwen3_folder: Path) -> None:
    loaded, changed = load_model(qwen3_folder), load_model(qwen3_folder, surgery="swap(0:2) + delete(1)")
    assert len(changed.spec.layers) == 2
    for role in ("attn.q", "ffn.down"):
        assert np.array_equal(changed.tensors[f"layers.0.{role}"].array(), loaded.tensors[f"layers.2.{role}"].array())
    with pytest.raises(InputError, match="there is no layer 7"):
        load_model(qwen3_folder, surgery="delete(7)")


def test_a_context_length(qwen3_folder: Path, exact_file: Path) -> None:
    assert load_model(qwen3_folder, context_length=77).spec.context_length == 77
    with pytest.raises(InputError, match="--context-length is 0"):
        load_model(qwen3_folder, context_length=0)
    with pytest.raises(InputError, match="apply to checkpoints only"):
        load_model(exact_file, context_length=77)


def test_a_model_shows_itself(hybrid_folder: Path) -> None:
    loaded = load_model(hybrid_folder)
    report = loaded.as_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    stored, _ = read_safetensors(hybrid_folder / WEIGHTS)
    assert report["pattern"] == "DAD"
    assert len(report["spec"]["layers"]) == 3
    assert {source for tensor in report["tensors"] for source in tensor["sources"]} <= set(stored)
    assert "layers    3: DAD" in repr(loaded).splitlines()
    assert f">{loaded.path}</td>" in loaded._repr_html_()
