"""Tiny models that the runtime's tests share; each is written once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_tools.runtime.process import Runtime, RuntimeOptions
from tests.tiny_gguf import write_dense, write_hybrid


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 decoder without a chat template."""
    return write_dense(tmp_path_factory.mktemp("dense") / "dense.gguf")


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-Next decoder: linear and full attention, experts."""
    return write_hybrid(tmp_path_factory.mktemp("hybrid") / "hybrid.gguf")


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense decoder with a chat template."""
    return write_dense(tmp_path_factory.mktemp("chat") / "chat.gguf", chat=True)


@pytest.fixture(scope="session")
def dense_runtime(dense: Path) -> Iterator[Runtime]:
    """A running dense model; tests that end its process start their own."""
    with Runtime(dense, RuntimeOptions(threads=1)) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def hybrid_runtime(hybrid: Path) -> Iterator[Runtime]:
    """A running hybrid model."""
    with Runtime(hybrid, RuntimeOptions(threads=1)) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def chat_runtime(chat: Path) -> Iterator[Runtime]:
    """A running model with a chat template."""
    with Runtime(chat, RuntimeOptions(threads=1)) as runtime:
        yield runtime
