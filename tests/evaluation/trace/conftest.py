"""One process of llama.cpp for all the files that a module traces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_tools.evaluation.trace import run
from gguf_tools.runtime.process import Runtime, RuntimeOptions


class OneProcess:
    """Stands for `Runtime` in `trace`: the process lives on, and loads the next file."""

    live: Runtime | None = None

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        self._path, self._options = path, options

    def __enter__(self) -> Runtime:
        live = OneProcess.live
        if live is None or live.options != self._options:
            OneProcess.end()
            live = OneProcess.live = Runtime(self._path, self._options)
            return live.__enter__()
        live.path = self._path
        live.reload()
        return live

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            OneProcess.end()

    @classmethod
    def end(cls) -> None:
        if cls.live is not None:
            cls.live.close()
            cls.live = None


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """`trace` runs all files in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Runtime", OneProcess)
        yield
    OneProcess.end()
