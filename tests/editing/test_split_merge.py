"""`tinyq split` and `tinyq merge`: llama.cpp's format, the same bytes again, and sets that are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools import merge, quantize, split
from gguf_tools.editing.copies import copied_file, held_tensors, write_copies
from gguf_tools.editing.split import plan_split
from gguf_tools.errors import CheckpointError, InputError, OutputError
from gguf_tools.formats import copying
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from tests.conftest import Ran
from tests.tiny_gguf import write_dense

Tinyq = Callable[..., Ran]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of four layers, not to be changed."""
    return write_dense(tmp_path_factory.mktemp("split") / "dense.gguf", layers=4, chat=True)


def logits(path: Path) -> np.ndarray:
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        return next(iter(runtime.iter_logits([[1, 2, 3, 4]])))


def test_shards_and_back(dense: Path, tmp_path: Path) -> None:
    result = split(dense, tmp_path / "parts", max_size="30K")
    count = len(result.paths)
    assert [path.name for path in result.paths] == [f"parts-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    assert sum(path.stat().st_size for path in result.paths) == result.bytes
    whole = gguf.GGUFReader(dense)
    seen = 0
    for number, path in enumerate(result.paths):
        reader = gguf.GGUFReader(path)
        values = {key: field.contents() for key, field in reader.fields.items()}
        assert (values["split.no"], values["split.count"]) == (number, count)
        assert values["split.tensors.count"] == len(whole.tensors)
        assert ("general.architecture" in values) == (number == 0)
        for tensor in reader.tensors:
            mine = whole.tensors[seen]
            assert tensor.name == mine.name
            assert np.array_equal(tensor.data, mine.data)
            seen += 1
    assert seen == len(whole.tensors)
    assert np.array_equal(logits(result.paths[0]), logits(dense))
    merged = merge(result.paths[2], tmp_path / "whole.gguf")
    assert merged.paths == (tmp_path / "whole.gguf",)
    assert merged.paths[0].read_bytes() == dense.read_bytes()


def test_the_shards_are_those_that_quantize_writes(dense: Path, tmp_path: Path) -> None:
    theirs = quantize(dense, tmp_path / "theirs.gguf", "f32", split_max_size="30K")
    mine = split(theirs.paths[0], tmp_path / "mine.gguf", max_size="30K")
    assert [path.read_bytes() for path in mine.paths] == [path.read_bytes() for path in theirs.paths]


def test_the_id_is_the_digest_of_all_shards(dense: Path, tmp_path: Path) -> None:
    paths = split(dense, tmp_path / "parts", max_tensors=9).paths
    (identity,) = {part.get(keys.SPLIT_ID) for part in read_parts(paths[0])}
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes().replace(identity.encode(), b"0" * 64))
    assert digest.hexdigest() == identity


@given(limit=st.integers(1, 60), by_size=st.booleans())
def test_shards_follow_gguf_splits_rule(dense: Path, limit: int, by_size: bool) -> None:
    """Against `split_strategy` of gguf-split, which counts the padded size of the tensors so far and the next one."""
    sizes = [-(-entry.nbytes // 32) * 32 for entry in read_header(dense).tensors]
    most = 1000 * limit if by_size else limit
    expected = [0]
    filled = 0
    for number, size in enumerate(sizes):
        full = filled + size > most if by_size else number > 0 and number % most == 0
        if full and expected[-1]:  # gguf-split ends with an error for a shard without tensors
            expected.append(0)
            filled = 0
        expected[-1] += 1
        filled += size
    if len(expected) == 1:
        with pytest.raises(InputError, match="give one shard"):
            plan_split(dense, max_size=most if by_size else None, max_tensors=None if by_size else most)
        return
    plan = plan_split(dense, max_size=most if by_size else None, max_tensors=None if by_size else most)
    assert [len(file.tensors) for file in plan.files] == expected


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(tmp_path: Path, alignment: int) -> None:
    """The first shard keeps the alignment, the others have the default, which they say nothing of; merging restores it."""
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    rng = np.random.default_rng(0)
    tensors = {f"t{n}": rng.standard_normal(n + 1).astype(np.float32) for n in range(9)}
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = split(path, tmp_path / "parts", max_tensors=4).paths
    found = {tensor.name: tensor.data for part in parts for tensor in gguf.GGUFReader(part).tensors}
    assert all(np.array_equal(found[name], data) for name, data in tensors.items())
    assert merge(parts[0], tmp_path / "merged.gguf").paths[0].read_bytes() == path.read_bytes()


def test_copying_without_the_kernel(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system between which the kernel does not copy, and pieces that are smaller than a tensor."""

    def fails(*_: object) -> int:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr(os, "copy_file_range", fails, raising=False)
    monkeypatch.setattr(copying, "READ_PIECE", 1000)
    header = read_header(dense)
    file = copied_file(dict(header.metadata), held_tensors([header]), header.alignment)
    told: list[int] = []
    write_copies([file], [tmp_path / "copy.gguf"], progress=told.append)
    assert (tmp_path / "copy.gguf").read_bytes() == dense.read_bytes()
    assert sum(told) == sum(run.count for run in file.runs())


def test_broken_sets_are_named(tinyq: Tinyq, dense: Path, tmp_path: Path) -> None:
    one = split(dense, tmp_path / "a", max_tensors=20).paths
    other = split(write_dense(tmp_path / "other.gguf", layers=4), tmp_path / "b", max_tensors=20).paths
    out = tmp_path / "out.gguf"
    kept = one[1].read_bytes()
    one[1].unlink()
    ran = tinyq("merge", one[0], out)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"{one[1]}: missing; it is shard 2 of 3" in ran.err
    shutil.copy(other[1], one[1])
    assert f"{one[1]}: belongs to another model than {one[0].name}" in tinyq("merge", one[0], out).err
    shutil.copy(other[2], one[1])
    assert f"{one[1]}: is named as shard 2 of 3, but split.no is 2" in tinyq("merge", one[0], out).err
    one[1].write_bytes(kept[: len(kept) // 2])
    assert f"{one[1]}: " in tinyq("merge", one[0], out).err
    one[1].write_bytes(kept)
    assert not out.exists()
    assert tinyq("merge", one[0], one[2], "--force").err.startswith(f"tinyq: {one[2]}: is also an input")
    assert tinyq("merge", one[1], out).code == 0
    ran = tinyq("merge", dense, out, "--force")
    assert (ran.code, "is not split (split.count is missing)" in ran.err) == (2, True)
    assert out.read_bytes() == dense.read_bytes()


def test_limits(dense: Path, tmp_path: Path) -> None:
    for limits, complaint in (
        ({}, "exactly one of --max-size and --max-tensors"),
        ({"max_size": "1K", "max_tensors": 3}, "exactly one of"),
        ({"max_size": "1G"}, r"46 tensors with --max-size 1,000,000,000 bytes give one shard; .* give a smaller limit"),
        ({"max_tensors": 0}, "--max-tensors is 0"),
        ({"max_size": "much"}, "--max-size is 'much'"),
    ):
        with pytest.raises(InputError, match=complaint):
            split(dense, tmp_path / "parts", **limits)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_and_reports(tinyq: Tinyq, dense: Path, tmp_path: Path) -> None:
    ran = tinyq("split", dense, tmp_path / "parts", "--max-tensors", 20, "--dry-run", "--json", tmp_path / "a.json")
    assert (ran.code, ran.err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    planned = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert (planned["written"], [file["tensors"] for file in planned["files"]]) == (False, [20, 20, 6])
    assert "nothing was written (--dry-run)" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    ran = tinyq("split", dense, tmp_path / "parts", "--max-tensors", 20, "--json", tmp_path / "b.json")
    done = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert done == {**planned, "written": True}
    assert [Path(file["path"]).stat().st_size for file in done["files"]] == [file["bytes"] for file in done["files"]]
    ran = tinyq("split", dense, tmp_path / "parts", "--max-tensors", 20)
    assert (ran.code, "parts-00001-of-00003.gguf: exists already" in ran.err) == (2, True)
    assert tinyq("split", dense, tmp_path / "parts", "--max-tensors", 20, "--force", "-q").out == ""


def test_a_source_that_changes_is_noticed(dense: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    shutil.copy(dense, source)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        split(source, tmp_path / "a", max_tensors=20, progress=lambda *_: os.utime(source, ns=(1, 1)))
    parts = split(dense, tmp_path / "b", max_tensors=20).paths
    with pytest.raises(CheckpointError, match="changed while it was read"):
        merge(parts[0], tmp_path / "c.gguf", progress=lambda *_: os.utime(parts[1], ns=(1, 1)))
    assert {path.name for path in tmp_path.iterdir()} == {source.name, *(path.name for path in parts)}


def test_metadata_of_later_shards_is_said_to_be_left_out(dense: Path, tmp_path: Path) -> None:
    parts = split(dense, tmp_path / "a", max_tensors=30).paths
    second = read_header(parts[1])
    metadata = {**second.metadata, "my.note": read_header(dense).metadata["general.name"]}
    write_copies([copied_file(metadata, held_tensors([second]))], [parts[1]], force=True)
    result = merge(parts[0], tmp_path / "out.gguf")
    assert result.notes == (
        f"{parts[1].name} has metadata of its own (my.note), which llama.cpp does not read; it is left out",
    )
    assert result.paths[0].read_bytes() == dense.read_bytes()


def test_no_room(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="the disk has 1,000 free"):
        split(dense, tmp_path / "parts", max_tensors=20)
    assert list(tmp_path.iterdir()) == []
