"""Sources that change while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.output import atomic_output
from gguf_tools.formats.watch import Watch


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"longer than before"), "changed while it was read"),
        (lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns + 1)), "changed while it was read"),
        (lambda path: (path.with_name("b").write_bytes(b"same"), path.with_name("b").replace(path)), "changed"),
        (lambda path: path.unlink(), "was removed while it was read"),
    ],
)
def test_a_file_that_changes_is_named(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"same")
    watch = Watch.over([path, tmp_path / "absent", tmp_path])
    watch.check()
    change(path)
    with pytest.raises(CheckpointError, match=f"a: {said}"):
        watch.check()
    with pytest.raises(CheckpointError), atomic_output(tmp_path / "out", check=watch.check) as stream:
        stream.write(b"abc")
    assert not (tmp_path / "out").exists()


def test_a_file_that_appears_is_named(tmp_path: Path) -> None:
    watch = Watch.over([tmp_path / "a"])
    (tmp_path / "a").touch()
    with pytest.raises(CheckpointError, match="a: appeared while it was read"):
        watch.check()
