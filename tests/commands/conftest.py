"""A tiny file and a question for the tests of the commands, and llama.cpp forbidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools.runtime.process import Runtime
from tests.tiny_gguf import write_dense


@pytest.fixture
def no_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be run."""

    def enter(runtime: Runtime) -> Runtime:
        raise AssertionError(f"{runtime.path} was run")

    monkeypatch.setattr(Runtime, "__enter__", enter)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder without a chat template."""
    return write_dense(tmp_path_factory.mktemp("plain") / "plain.gguf")


@pytest.fixture
def question(tmp_path: Path) -> Path:
    """A file of one question."""
    path = tmp_path / "question.jsonl"
    path.write_text('{"question": "2?", "accept": ["two"]}\n', "utf-8")
    return path
