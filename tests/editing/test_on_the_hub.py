"""Editing, splitting and merging a GGUF on a hub, by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools import edit, merge, split
from gguf_tools.errors import InputError
from tests.conftest import Ran
from tests.hub.server import Hub
from tests.tiny_gguf import write_dense

Tinyq = Callable[..., Ran]
NAME = "org/ggufs/dense.gguf"


@pytest.fixture
def dense(hub: Hub, tmp_path: Path) -> Path:
    path = write_dense(tmp_path / "dense.gguf")
    shards = split(path, tmp_path / "shard", max_tensors=20).paths
    hub.add("org/ggufs", {one.name: one for one in (path, *shards)})
    return path


def test_a_name_gives_what_the_file_gives(hub: Hub, dense: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    edit(NAME, tmp_path / "a.gguf", {"general.name": "Mine"})
    edit(dense, tmp_path / "b.gguf", {"general.name": "Mine"})
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    shown = tinyq("edit", NAME, "--show")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[1:] == tinyq("edit", dense, "--show").out.splitlines()[1:]
    merge("org/ggufs/shard-00001-of-00002.gguf", tmp_path / "c.gguf")
    assert (tmp_path / "c.gguf").read_bytes() == dense.read_bytes()


def test_the_cache_is_not_changed(hub: Hub, dense: Path) -> None:
    with pytest.raises(
        InputError, match="lies in the hub's cache, whose files other programs read too; give OUT instead"
    ):
        edit(NAME, values={"general.name": "Mine"}, in_place=True)
