"""Files that the tests of the API share, and a record of progress."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools import convert


class Told:
    """A progress callback that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))

    @property
    def stages(self) -> list[str]:
        """The stages in the order in which they began."""
        return list(dict.fromkeys(stage for stage, _, _ in self.calls))

    def ended(self, stage: str) -> bool:
        """Whether a stage counted up, without a step back, to its total."""
        counts = [(done, total) for name, done, total in self.calls if name == stage]
        return counts == sorted(counts) and counts[-1][0] == counts[-1][1] > 0


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 whose rows fit blocks of 32, so that types can be chosen."""
    from tests.tiny_models import checkpoint, dense

    config = dense(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    return checkpoint(tmp_path_factory.mktemp("wide") / "hf", config)


@pytest.fixture(scope="session")
def exact_file(qwen3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen3 as F32; not to be changed."""
    out = tmp_path_factory.mktemp("api") / "exact.gguf"
    convert(qwen3_folder, out, type="f32", threads=1)
    return out
