"""A source and its file, which the tests of oracles share."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation.conformance import SEED
from gguf_tools.families.registry import family_named


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 in `source`, its F32 file out.gguf, and prompts.txt."""
    folder = tmp_path_factory.mktemp("work")
    tiny = family_named("qwen3").tiny
    assert tiny is not None
    tiny(folder / "source", "plain", SEED)
    execute(prepare(Request(source=folder / "source", type="f32", threads=1)), folder / "out.gguf")
    (folder / "prompts.txt").write_text("Once upon a time\nThe end\n")
    return folder
