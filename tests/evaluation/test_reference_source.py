"""Which reference a GGUF is compared with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Operation, Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import CheckpointError
from gguf_tools.evaluation.reference_source import Checkpoints, find_reference
from gguf_tools.families.registry import family_named, load_model
from gguf_tools.formats.gguf.header import string
from gguf_tools.sources.checkpoint import Checkpoint
from surgery.donors import operate_recorded
from surgery.model import operate_text


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A tiny checkpoint in `source` and the file made from it, out.gguf, beside that folder."""
    tiny = family_named("qwen3").tiny
    assert tiny is not None
    tiny(tmp_path / "source", "plain", 1)
    execute(prepare(Request(source=tmp_path / "source", type="f32", threads=1)), tmp_path / "out.gguf")
    return tmp_path


def test_recorded(work: Path) -> None:
    found = find_reference(work / "out.gguf")
    assert found.origin == "recorded"
    assert found.encode is not None
    assert found.model is not None
    assert found.model.family == "qwen3"


def test_moved_together(work: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.move(work / "source", tmp_path / "elsewhere" / "source")
    shutil.move(work / "out.gguf", tmp_path / "elsewhere" / "out.gguf")
    assert find_reference(tmp_path / "elsewhere" / "out.gguf").origin == "recorded"


def test_beside(work: Path) -> None:
    shutil.copytree(work / "source", work / "other" / "hf")
    shutil.move(work / "out.gguf", work / "other" / "out.gguf")
    (work / "source").rename(work / "gone")
    assert find_reference(work / "other" / "out.gguf").origin == "beside"


def test_changed_source_is_not_used(work: Path) -> None:
    config = work / "source" / "config.json"
    config.write_text(config.read_text("utf-8") + " ", "utf-8")
    found = find_reference(work / "out.gguf")
    assert found.origin == "rebuilt"
    assert "no longer" in found.note
    assert "only llama.cpp's computation" in found.note
    assert found.tokenizer is None
    given = find_reference(work / "out.gguf", work / "source")
    assert given.origin == "given"
    assert "no longer" in given.note


def test_rebuilt_has_the_files_numbers(work: Path) -> None:
    shutil.rmtree(work / "source")
    found = find_reference(work / "out.gguf")
    assert found.origin == "rebuilt"
    again = find_reference(work / "out.gguf", work / "out.gguf")
    assert again.origin == "given"
    assert found.model is not None
    assert again.model is not None
    assert np.array_equal(found.model.tensors["embedding"].array(), again.model.tensors["embedding"].array())


def test_a_source_that_is_not_there(work: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        find_reference(work / "out.gguf", work / "nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        find_reference(work / "nothing.gguf")


def test_state_dict_with_its_tokenizer_elsewhere(tmp_path: Path) -> None:
    tiny = family_named("moe-model").tiny
    assert tiny is not None
    tiny(tmp_path / "source", "pt", 1)
    execute(prepare(Request(source=tmp_path / "source", type="f32", threads=1)), tmp_path / "out.gguf")
    found = find_reference(tmp_path / "out.gguf")
    assert found.origin == "recorded"
    assert found.encode is not None


@pytest.mark.parametrize("given", [False, True])
def test_recorded_surgery_is_done_to_the_source(work: Path, given: bool) -> None:
    recipe = "swap(0:1)"
    operation = Operation(recipe, lambda model: operate_text(model, recipe))
    request = Request(source=work / "source", type="f32", threads=1, operation=operation)
    conversion = prepare(request)
    assert conversion.metadata["tinyq.surgery"] == string(recipe)
    execute(conversion, work / "swapped.gguf")
    found = find_reference(work / "swapped.gguf", work / "source" if given else None, operate_recorded)
    assert found.note.endswith(f"after {recipe}")
    plain = load_model(work / "source")
    assert found.model is not None
    swapped = found.model.layers[0].tensors["attn.q"]
    assert np.array_equal(swapped.array(), plain.layers[1].tensors["attn.q"].array())


@pytest.mark.parametrize("given", [True, False], ids=["given", "recorded"])
def test_files_that_share_a_source_read_it_once(work: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    shutil.copy(work / "out.gguf", work / "twin.gguf")
    read: list[Path] = []
    digest = Checkpoint.digest

    def counted(checkpoint: Checkpoint) -> str:
        read.append(checkpoint.path)
        return digest(checkpoint)

    monkeypatch.setattr(Checkpoint, "digest", counted)
    shared = Checkpoints()
    source = work / "source" if given else None
    first, second = (find_reference(work / name, source, None, shared) for name in ("out.gguf", "twin.gguf"))
    assert len(read) == 1
    assert first.note == second.note
    assert first.is_source is second.is_source is True
