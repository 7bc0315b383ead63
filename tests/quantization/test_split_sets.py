"""The parts of one split output belong together, say so, and are told from those of another."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools import inspect, operate, quantize
from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.keys import SPLIT_ID
from gguf_tools.formats.gguf.split import read_parts
from tests.conftest import Ran
from tests.quant.quant_models import FAMILIES, write

Tinyq = Callable[..., Ran]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write(FAMILIES["llama-96"](), tmp_path / "in" / "source.gguf", bf16=False)
    return tmp_path / "in" / "source.gguf"


def changed(source: Path) -> Path:
    """The same header with other weights."""
    other = source.with_name("other.gguf")
    data = bytearray(source.read_bytes())
    data[-4:] = b"\0\0\0\0"
    other.write_bytes(data)
    return other


def split(source: Path, out: Path, **options: object) -> tuple[Path, ...]:
    result = quantize(source, out, "f32", split_max_size=20_000, **options)  # type: ignore[arg-type]
    return result.paths


def test_parts_carry_one_id_which_the_bytes_give(source: Path, tmp_path: Path) -> None:
    paths = split(source, tmp_path / "a.gguf", threads=1)
    again = split(source, tmp_path / "b.gguf", threads=2)
    assert len(paths) > 2
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    ids = {read_header(path).get(SPLIT_ID) for path in paths}
    (found,) = ids
    assert isinstance(found, str)
    assert len(found) == 64 != found.count("0")
    theirs = split(changed(source), tmp_path / "c.gguf")
    assert read_header(theirs[0]).get(SPLIT_ID) != found


def test_a_part_that_leads_out_of_the_folder_is_named(source: Path, tmp_path: Path) -> None:
    """Reading a file must not read another one elsewhere; the file that the user names may be a link."""
    paths = split(source, tmp_path / "in" / "a.gguf")
    (tmp_path / "elsewhere").mkdir()
    moved = paths[1].rename(tmp_path / "elsewhere" / "b.gguf")
    paths[1].symlink_to(moved)
    expected = rf"{paths[1].name}: is a symbolic link to {moved}, outside the folder"
    for run in (
        lambda given: quantize(given, tmp_path / "out.gguf", "f16"),
        lambda given: operate(given, tmp_path / "out.gguf", "swap(0:1)"),
        lambda given: inspect(given),
    ):
        with pytest.raises(CheckpointError, match=expected):
            run(paths[0])
        assert not (tmp_path / "out.gguf").exists()
    paths[1].unlink()
    moved.rename(paths[1])
    inside = paths[1].rename(paths[1].with_name("other.gguf"))
    paths[1].symlink_to(inside.name)
    read_parts(paths[0])
    link = tmp_path / "elsewhere" / "only-a-name.gguf"
    link.symlink_to(source)
    read_parts(link)


def test_parts_in_the_hubs_cache_are_read(source: Path, tmp_path: Path) -> None:
    paths = split(source, tmp_path / "in" / "a.gguf")
    snapshot, blobs = (tmp_path / "hub" / "models--a--b" / name for name in ("snapshots/0123abcd/Q8_0", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for n, path in enumerate(paths):
        path.rename(blobs / f"{n:040x}")
        (snapshot / path.name).symlink_to(blobs / f"{n:040x}")
    assert len(read_parts(snapshot / paths[0].name)) == len(paths)


def test_a_whole_file_carries_no_id(source: Path, tmp_path: Path) -> None:
    paths = split(source, tmp_path / "a.gguf")
    quantize(paths[0], tmp_path / "whole.gguf", "f32")
    operate(paths[0], tmp_path / "operated.gguf", "swap(0:1)")
    quantize(source, tmp_path / "never-split.gguf", "f32")
    for name in ("whole", "operated", "never-split"):
        assert SPLIT_ID not in read_header(tmp_path / f"{name}.gguf").metadata
    whole, never = (read_header(tmp_path / f"{name}.gguf") for name in ("whole", "never-split"))
    of_the_source = {keys.MADE_FROM_DIGEST: None}
    assert {**whole.metadata, **of_the_source} == {**never.metadata, **of_the_source}
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    for name in ("whole", "operated"):
        assert read_header(tmp_path / f"{name}.gguf").get(keys.MADE_FROM_DIGEST) == digest
    (signed,) = {read_header(path).get(SPLIT_ID) for path in paths}
    parts = [path.read_bytes().replace(signed.encode(), b"0" * 64) for path in paths]
    assert signed == hashlib.sha256(b"".join(parts)).hexdigest(), "over the digest of the source"


def test_a_mixed_set_is_named(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    ours, theirs = split(source, tmp_path / "a.gguf"), split(changed(source), tmp_path / "b.gguf")
    shutil.copy(theirs[1], ours[1])
    with pytest.raises(CheckpointError, match=rf"{ours[1].name}: belongs to another model than {ours[0].name}"):
        read_parts(ours[0])
    ran = tinyq("inspect", ours[0])
    assert ran.code == 2
    assert "belongs to another model" in ran.err
    for path in theirs:
        assert inspect(path).kind == "gguf"


def test_a_kill_at_the_end_leaves_a_set_that_the_next_run_completes(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    out = tmp_path / "a.gguf"
    old = split(source, out)
    before = [path.read_bytes() for path in old]
    child = os.fork()
    if not child:
        replace, left = os.replace, [2]

        def step(*arguments: Path) -> None:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            replace(*arguments)

        setattr(os, "replace", step)  # noqa: B010
        split(changed(source), out, force=True)
        os._exit(0)
    os.waitpid(child, 0)
    assert "belongs to another model" in tinyq("inspect", old[0]).err
    ran = tinyq("quantize", source, out, "f32", "--split-max-size", 20_000)
    assert "exists already" in ran.err
    expected = [path.read_bytes() for path in split(changed(source), tmp_path / "b.gguf")]
    assert [path.read_bytes() for path in old] == expected != before
    assert sorted(tmp_path.glob(".*")) == []
