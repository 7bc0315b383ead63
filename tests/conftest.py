"""Checkpoints and a command line that tests of several packages share.

The checkpoints are made once a session and must not be changed: `copied` gives one of a test's own.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# A path that does not exist may be a name on the hub. Only the tests' own hub is asked (`tests.hub.client.use`).
os.environ["HF_HUB_OFFLINE"] = "1"

# Each worker computes on one core: at these sizes more threads wait longer than they work, also in the commands that are run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.made_checkpoints", "tests.running_models", "tests.hub.fixtures"]

# Examples take longer on a machine that has other work.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# A shell without job control starts its background jobs with SIGINT ignored, and programs that they start inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    "tests/conformance/test_conformance.py",
    "tests/faults/",
    "tests/description/",
    "tests/families/test_config_reading.py",
    "tests/test_distribution.py",
    "tests/commands/test_determinism.py",
    "tests/surgery/search/",
    "tests/commands/test_eval.py",
    "tests/quant/test_bytes.py",
    "tests/conversion/test_streaming.py",
)
"""What takes longest begins first, so that no worker is left alone with it at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first, else in the order in which they were collected."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are printed as into a pipe, whatever the width of the terminal that the tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 in bf16, one file."""
    import torch

    from tests.tiny_models import checkpoint, dense

    return checkpoint(tmp_path_factory.mktemp("qwen3") / "tiny-qwen3", dense(), dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-MoE in float32, in several shards."""
    from tests.tiny_models import checkpoint, moe

    return checkpoint(tmp_path_factory.mktemp("moe") / "tiny-moe", moe(), max_shard_size="40KB")


@pytest.fixture(scope="session")
def hybrid_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-Next in bf16, one file."""
    import torch

    from tests.tiny_models import checkpoint, hybrid

    return checkpoint(tmp_path_factory.mktemp("hybrid") / "tiny-hybrid", hybrid(), dtype=torch.bfloat16)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a checkpoint for a test that changes it."""

    def copy(folder: Path) -> Path:
        return shutil.copytree(folder, tmp_path / folder.name)

    return copy


@dataclass(frozen=True)
class Ran:
    """What a run of the command line left: the exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def tinyq(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `tinyq` in this process."""
    from gguf_tools.cli import run

    def call(*args: object) -> Ran:
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
