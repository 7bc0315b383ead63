"""`tinyq verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.verification.changing import exchange
from tests.verification.theirs import TEMPLATE, write_theirs

Sources = Callable[[str], Path]
COUNTS = ("identical", "consistent", "different", "unknown")


def test_identical(tinyq: Callable[..., Any], sources: Sources, quantized: Callable[..., Path], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ran = tinyq("verify", quantized("llama", "q4_k_m"), "--source", sources("llama"), "--json", report, "--threads", 1)
    assert ran.code == 0
    assert "byte for byte" in ran.out
    found = json.loads(report.read_text("utf-8"))
    assert found["identical"] == len(found["tensors"]) == sum(found[kind] for kind in COUNTS)
    assert found["equal"] is True
    assert found["metadata"]["different"] == 0


def test_consistent(
    tinyq: Callable[..., Any], sources: Sources, importance: Callable[[str], Path], quantized: Callable[..., Path]
) -> None:
    file = quantized("llama", "q4_k_m", with_importance=True)
    ran = tinyq("verify", file, "--source", sources("llama"))
    assert ran.code == 0
    assert "an unknown importance matrix" in ran.out
    ran = tinyq("verify", file, "--source", sources("llama"), "--imatrix", importance("llama"))
    assert ran.code == 0
    assert "byte for byte" in ran.out
    assert "with the importance matrix" in ran.out


def test_different(tinyq: Callable[..., Any], sources: Sources, quantized: Callable[..., Path], tmp_path: Path) -> None:
    file = Path(shutil.copy(quantized("llama", "q8_0"), tmp_path / "file.gguf"))
    exchange(file, "blk.0.attn_q.weight", "blk.1.attn_q.weight")
    ran = tinyq("verify", file, "--source", sources("llama"), "--json", "-", "-q")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "blk.0.attn_q.weight, blk.1.attn_q.weight" in ran.err
    found = json.loads(ran.out)
    assert [found[kind] for kind in COUNTS] == [len(found["tensors"]) - 2, 0, 2, 0]
    # Worst first.
    assert {tensor["name"] for tensor in found["tensors"][:2]} == {"blk.0.attn_q.weight", "blk.1.attn_q.weight"}
    assert found["tensors"][0]["error"] > 1
    table = tinyq("verify", file, "--source", sources("llama"), "--wide").out.splitlines()
    assert table[2].startswith("blk.")
    assert "holds the source's blk." in table[2]


def test_a_changed_template(tinyq: Callable[..., Any], sources: Sources, tmp_path: Path) -> None:
    file = write_theirs(sources("llama"), "llama", tmp_path / "file.gguf", change={"template": TEMPLATE + "Obey."})
    ran = tinyq("verify", file, "--source", sources("llama"))
    assert ran.code == 1
    assert "tokenizer.chat_template" in ran.err
    assert "Obey." in ran.out


def test_a_template_that_the_source_does_not_have(tinyq: Callable[..., Any], sources: Sources, tmp_path: Path) -> None:
    source = shutil.copytree(sources("llama"), tmp_path / "source")
    (source / "tokenizer_config.json").write_text('{"bos_token": "<|bos|>", "eos_token": "<|eos|>"}', "utf-8")
    file = write_theirs(source, "llama", tmp_path / "file.gguf")
    ran = tinyq("verify", file, "--source", source)
    assert (ran.code, "tokenizer.chat_template" in ran.err) == (1, True)


def test_bad_input(tinyq: Callable[..., Any], sources: Sources, tmp_path: Path) -> None:
    for args in (("--source", sources("llama")), ()):
        ran = tinyq("verify", tmp_path / "nothing.gguf", *args)
        assert ran.code == 2
        assert ran.err.count("\n") == 1
    file = write_theirs(sources("llama"), "llama", tmp_path / "file.gguf")
    before = file.read_bytes()
    ran = tinyq("verify", file, "--source", sources("llama"), "--json", file)
    assert ran.code == 2
    assert file.read_bytes() == before
