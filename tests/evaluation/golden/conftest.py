"""A model with its golden values and its GGUF, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from gguf_tools.api.convert import convert
from gguf_tools.evaluation.golden.write import write_golden
from tests.made_checkpoints import Made


@dataclass(frozen=True)
class Place:
    source: Path
    file: Path
    golden: Path


@pytest.fixture(scope="session")
def place(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("golden")
    source, folder = made("qwen3-moe", "plain"), root / "golden"
    convert(source, root / "file.gguf", type="f32")
    folder.mkdir()
    write_golden(source, folder, points=True)
    return Place(source, root / "file.gguf", folder)
