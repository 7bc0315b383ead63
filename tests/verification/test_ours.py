"""tinyq's own files, of every family, and files made from GGUF files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.commands.verify import report
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Operation, Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.evaluation.golden import write as golden
from gguf_tools.evaluation.reference_source import find_reference
from gguf_tools.families.registry import all_families
from gguf_tools.inspection.difference.run import difference
from gguf_tools.quantization import plan as quantization
from gguf_tools.quantization.write import execute as write_quantized
from gguf_tools.verification.run import verify
from surgery.donors import operate_recorded
from surgery.model import operate_text
from tests.verification.changing import change_tensor
from tests.verification.theirs import write_source, write_theirs

Sources = Callable[[str], Path]
RECIPE = "swap(0:1) + scale(1@0.5)"


def convert(source: Path, out: Path, type_name: str = "f32", **options: object) -> Path:
    execute(prepare(Request(source=source, type=type_name, threads=1, **options)), out)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("family", [family.name for family in all_families() if family.tiny])
def test_every_family(family: str, tmp_path: Path) -> None:
    """Each family's first variant that is expressed exactly, after a rewrite or not, in two types."""
    known = next(known for known in all_families() if known.name == family)
    assert known.tiny
    for variant in known.variants:
        source = tmp_path / variant.replace(" ", "-")
        known.tiny(source, variant, 1)
        try:
            files = [convert(source, tmp_path / f"{kind}.gguf", kind) for kind in ("f16", "q5_1")]
        except UnsupportedError:
            continue
        for file in files:
            found = verify(file, source, threads=1)
            assert [t.name for t in found.tensors if t.verdict != "identical"] == []
            assert {entry.verdict for entry in found.metadata} == {"identical"}
        return
    pytest.fail("no variant was expressed")


def test_surgery_that_the_file_records(sources: Sources, tmp_path: Path) -> None:
    """It is done to the source first; without it the layers are another's."""
    operation = Operation(RECIPE, lambda model: operate_text(model, RECIPE))
    file = convert(sources("llama"), tmp_path / "file.gguf", "q8_0", operation=operation)
    found = verify(file, sources("llama"), operate=operate_recorded, threads=1)
    assert found.differing == ()
    assert found.recipe == RECIPE
    unchanged = verify(file, sources("llama"), threads=1)
    details = {tensor.name: tensor.detail for tensor in unchanged.tensors}
    assert "holds the source's blk.1.attn_q.weight" in details["blk.0.attn_q.weight"]


def test_a_gguf_as_the_source(sources: Sources, tmp_path: Path) -> None:
    plain = write_theirs(sources("qwen2moe"), "qwen2moe", tmp_path / "plain.gguf")
    made = quantization.prepare(quantization.QuantizeRequest(source=plain, type="q4_k_m"))
    file = tmp_path / "file.gguf"
    write_quantized(made, file, threads=1)
    found = verify(file, plain, threads=1)
    assert {tensor.verdict for tensor in found.tensors} == {"identical"}
    assert found.differing == ()
    change_tensor(file, "blk.0.attn_k.weight", lambda blocks, _: blocks.__setitem__((3, 80), blocks[3, 80] ^ 1))
    assert verify(file, plain, threads=1).differing == ("blk.0.attn_k.weight",)


def test_surgery_on_a_gguf_as_the_source(sources: Sources, tmp_path: Path) -> None:
    from surgery.gguf.layers import open_layered
    from surgery.gguf.rewrite import plan_gguf, write_plan
    from surgery.recipe import parse_text

    plain = write_theirs(sources("llama"), "llama", tmp_path / "plain.gguf")
    file = tmp_path / "file.gguf"
    write_plan(plan_gguf(open_layered(plain), parse_text("swap(0:1)")), file, force=False, threads=1)
    found = verify(file, plain, operate=operate_recorded, threads=1)
    assert found.differing == ()
    assert found.count("identical") == len(found.tensors)


def test_another_model(sources: Sources, tmp_path: Path) -> None:
    """The same shapes with other weights: every matrix differs."""
    file = write_theirs(sources("llama"), "llama", tmp_path / "file.gguf", "q8_0")
    found = verify(file, write_source(tmp_path / "other", "llama", seed=2), threads=1)
    assert found.count("different") == len(found.tensors)
    assert all(tensor.error and tensor.error > 0.3 for tensor in found.tensors)


def test_what_an_architecture_cannot_express(sources: Sources, tmp_path: Path) -> None:
    """llama.cpp's converter leaves a sliding window out of a `llama` file; the weights are the source's all the same."""
    from tests.tiny_models import change_config

    source = shutil.copytree(sources("llama"), tmp_path / "source")
    change_config(source, {"model_type": "mistral", "sliding_window": 16})
    file = write_theirs(source, "llama", tmp_path / "file.gguf")
    found = verify(file, source, threads=1)
    assert found.count("identical") == len(found.tensors)
    assert found.differing == ("general.architecture",)
    assert "a sliding window of 16 tokens" in found.metadata[0].expected


def test_a_tokenizer_elsewhere_or_nowhere(sources: Sources, tmp_path: Path) -> None:
    source = shutil.copytree(sources("llama"), tmp_path / "source")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).rename(folder / name)
    file = write_theirs(sources("llama"), "llama", tmp_path / "file.gguf")
    without = verify(file, source, threads=1)
    assert without.differing == ()
    assert "the vocabulary is not verified" in without.notes[-1]
    assert next(e for e in without.metadata if e.key == "tokenizer.ggml.tokens").verdict == "unknown"
    verdicts = [
        str(report(one)).splitlines()[-1] for one in (without, verify(file, source, tokenizer=folder, threads=1))
    ]
    assert "weights match their source, byte for byte; the vocabulary could not be compared" in verdicts[0]
    assert "matches its source, byte for byte" in verdicts[1]
    found = verify(file, source, tokenizer=folder, threads=1)
    assert next(e for e in found.metadata if e.key == "tokenizer.ggml.tokens").verdict == "identical"


def test_refusals(sources: Sources, tmp_path: Path) -> None:
    file = write_theirs(sources("llama"), "llama", tmp_path / "file.gguf")
    with pytest.raises(CheckpointError, match="no such file"):
        verify(file, tmp_path / "nowhere")
    data = bytearray(file.read_bytes())
    at = data.index(b"llama", data.index(b"general.architecture"))
    data[at : at + 5] = b"lamas"
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(UnsupportedError, match="lamas"):
        verify(tmp_path / "other.gguf", sources("llama"))
    (tmp_path / "cut.gguf").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        verify(tmp_path / "cut.gguf", sources("llama"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_on_a_broken_disk_is_not_as_good_as_none(
    name: str, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that can do without a tokenizer must not say that all is well because one cannot be read."""
    source = sources("llama")
    file = write_theirs(source, "llama", tmp_path / "file.gguf")
    opened = os.open

    def broken(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(os.fsdecode(path)).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", broken)
    for command in (
        lambda: verify(file, source, threads=1),
        lambda: difference(source, file),
        lambda: golden.opened(source),
        lambda: find_reference(file, source),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(Input/output error\); check the path"):
            command()
