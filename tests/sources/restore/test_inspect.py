"""`tinyq inspect`: what it says of checkpoints and files, sound and broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from gguf_tools.cli import run, tinyq
from gguf_tools.families.tiny.hybrid import write_next, write_qwen35
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.inspection.report import inspect
from tests.oracle import convert
from tests.sources.restore.unpack import packers


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-Next that needs rewrites."""
    folder = tmp_path_factory.mktemp("inspect") / "tiny"
    write_next(folder, "ungated-output-bias", 1)
    return folder


@pytest.fixture(scope="module")
def converted(source: Path) -> Path:
    """The same as a quantized GGUF."""
    return convert(source, source.parent / "tiny.gguf", "q8_0")


def shown(*args: object) -> str:
    result = CliRunner().invoke(tinyq, ["inspect", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.output


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown(path, "--json", "-"))
    return found


def test_a_checkpoint(source: Path) -> None:
    found = report(source)
    assert (found["kind"], found["family"], found["pattern"]) == ("checkpoint", "qwen3-next", "DADA")
    assert found["parameters"] > found["active_parameters"] > 0
    assert found["types"] == [
        {"type": "F32", "tensors": 84, "weights": found["parameters"], "bytes": 4 * found["parameters"]}
    ]
    assert found["bits_per_weight"] == 32
    assert (found["vocabulary"]["model"], found["vocabulary"]["size"]) == ("gpt2", 288)
    assert found["target"]["name"] == "qwen3next"
    assert found["target"]["rewrites"][0] == "bias on the attention output"
    assert found["target"]["extra_cache"] == 64
    text = shown(source)
    for part in (
        "DADA (A attention, D Gated DeltaNet)",
        "2 per layer, of width 64 each; 1 used per token",
        "yarn (factor 4",
        "no chat template",
        "target",
    ):
        assert part in text


def test_a_gguf(converted: Path) -> None:
    assert is_gguf(converted)
    found = report(converted)
    assert (found["kind"], found["architecture"], found["family"]) == ("gguf", "qwen3next", "qwen3-next")
    assert found["pattern"] == "DADA"
    assert found["active_parameters"] < found["parameters"]
    assert {share["type"] for share in found["types"]} >= {"Q8_0", "F32"}
    assert 8 < found["bits_per_weight"] < 32
    assert found["provenance"]["tinyq.target"] == "qwen3next"
    assert found["vocabulary"]["eos"] == 265
    assert "tinyq.source.digest" in shown(converted)


def test_no_torch_is_loaded(source: Path, converted: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gguf_tools.inspection.report import inspect\n"
        f"inspect(Path({str(source)!r})); inspect(Path({str(converted)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_family_still_has_its_types(tmp_path: Path) -> None:
    save_file({"a.weight": np.zeros((4, 8), "f2")}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    found = inspect(tmp_path)
    assert (found.family, found.parameters, found.bits_per_weight) == (None, 32, 16)
    assert "no family has tensors like a.weight" in found.problems[0]
    assert "problem" in shown(tmp_path)


def test_packed_weights_and_no_tokenizer(tmp_path: Path) -> None:
    save_file({"a.W_q": np.zeros((4, 8), "u1"), "a.scale": np.zeros(4, "f4")}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    problems = inspect(tmp_path).problems
    assert "packed by HQQ" in problems[0]
    assert len(problems) == 2


def test_packed_weights_that_are_read(tmp_path: Path) -> None:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[packers.Arrays, packers.Array]:
        made = packers.layer(rng, outputs, inputs)
        return packers.gptq(made), made.expected

    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    made = packers.checkpoint(tmp_path, pack, {"quantization_config": config})
    found = report(tmp_path)
    weights = sum(values.size for values in made.expected.values())
    scheme = "4 bits, groups of 32, symmetric"
    assert found["packings"] == [{"format": "GPTQ", "scheme": scheme, "tensors": 21, "weights": weights}]
    assert found["bits_per_weight"] == 8 * found["bytes"] / found["parameters"]
    assert not found["notes"]
    text = shown(tmp_path)
    assert "packed     GPTQ, 4 bits, groups of 32, symmetric: 21 tensors, 92.2 K weights" in text
    assert "unpacked" not in text


def test_a_tower_is_only_a_note(tmp_path: Path) -> None:
    write_qwen35(tmp_path, "vision", 1)
    found = inspect(tmp_path)
    assert not found.problems
    assert any("vision tower" in note for note in found.notes)


def broken(converted: Path, out: Path, key: bytes, name: bytes) -> Path:
    out.write_bytes(converted.read_bytes().replace(key, name))
    return out


def test_a_gguf_with_a_key_missing(converted: Path, tmp_path: Path) -> None:
    found = inspect(broken(converted, tmp_path / "x.gguf", b"attention.head_count\x04", b"attention.head_c0unt\x04"))
    assert found.architecture == "qwen3next"
    assert found.layers == 4
    assert "attention.head_count is missing" in found.problems[0]
    assert found.types


def test_a_gguf_of_an_architecture_without_a_target(converted: Path, tmp_path: Path) -> None:
    found = inspect(broken(converted, tmp_path / "x.gguf", b"qwen3next", b"qwen9next"))
    assert "no torch reference for the architecture qwen9next" in found.notes[0]
    assert found.problems == ()
    assert found.pattern is None
    assert "architecture qwen9next" in shown(found.path)


@pytest.mark.parametrize("content", [None, b"", b"GGUF\x03\0\0\0", b"not a model"])
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    assert run(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1
