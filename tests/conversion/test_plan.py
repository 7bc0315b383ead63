"""The plan of a conversion: a checkpoint is opened and restored once, from the request to the file."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.conversion import plan
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import CheckpointError
from gguf_tools.families import registry
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore


def test_a_checkpoint_is_opened_and_restored_once(
    qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[function.__name__] += 1
            return function(*args, **options)

        return call

    for module in (plan, registry):
        for function in (restore, open_checkpoint):
            monkeypatch.setattr(module, function.__name__, counted(function))
    conversion = plan.prepare(Request(source=qwen3_folder))
    execute(conversion, tmp_path / "out.gguf")
    assert conversion.source == qwen3_folder
    assert calls == {"open_checkpoint": 1, "restore": 1}


def test_weights_that_vanish_before_they_are_hashed_are_an_error_and_leave_nothing(
    qwen3_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(qwen3_folder, source)
    conversion = plan.prepare(Request(source=source, type="f32"))
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: can no longer be read"):
        execute(conversion, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
