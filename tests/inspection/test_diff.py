"""`tinyq diff`: what differs between two files, and the surgery that made one from the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import f32, pack_header, read_header, string
from gguf_tools.inspection.difference.run import Difference, difference
from tests.surgery.surgery_files import operated, operation, with_metadata
from tests.tiny_models import checkpoint, dense, moe
from tests.verification.changing import change_tensor, exchange

LAYERS = 6


def convert(source: Path, out: Path, kind: str = "f32") -> Path:
    execute(prepare(Request(source=source, type=kind, threads=1)), out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("diff") / "source", dense(num_hidden_layers=LAYERS))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return convert(folder, folder.parent / "f32.gguf")


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    return convert(folder, folder.parent / "q8_0.gguf", "q8_0")


def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(path, tmp_path / "changed.gguf"))


def test_a_file_equals_itself_and_its_source(folder: Path, plain: Path) -> None:
    for one, other in ((plain, plain), (folder, plain), (plain, folder)):
        found = difference(one, other)
        assert found.equal, found.first
        assert found.surgery == ""
        assert {tensor.status for tensor in found.tensors} == {"equal"}


def test_a_quantized_file_differs_by_its_rounding(folder: Path, plain: Path, small: Path) -> None:
    for one, other in ((folder, small), (plain, small)):
        found = difference(one, other)
        assert not found.equal
        assert found.surgery == ""
        assert found.layers == ()
        errors = [tensor.error.nmse for tensor in found.tensors if tensor.error]
        assert errors == sorted(errors, reverse=True)
        assert 1e-6 < errors[0] < 1e-3
        assert difference(one, other, within=1e-3).equal


def test_the_error_is_numpys(plain: Path, tmp_path: Path) -> None:
    changed = copy(plain, tmp_path)
    values = np.fromfile(plain, np.float32, 8, offset=offset(plain, "blk.2.ffn_up.weight"))

    def half(blocks: Any, _: Any) -> None:
        blocks[:8] = (values / 2).view(np.uint8).reshape(8, -1)

    change_tensor(changed, "blk.2.ffn_up.weight", half)
    found = difference(plain, changed)
    assert [tensor.name for tensor in found.differing] == ["blk.2.ffn_up.weight"]
    error = found.differing[0].error
    assert error
    assert error.differing == 8
    entry = next(entry for entry in read_header(plain).tensors if entry.name == "blk.2.ffn_up.weight")
    whole = np.fromfile(plain, np.float32, entry.nbytes // 4, offset=offset(plain, entry.name)).astype(np.float64)
    assert error.nmse == pytest.approx(
        float(np.square(values.astype(np.float64) / 2).sum() / np.square(whole).sum()), rel=1e-12
    )
    assert error.largest == float(np.abs(values / 2).max())
    assert error.index == np.unravel_index(int(np.abs(values).argmax()), entry.shape)


def offset(path: Path, name: str) -> int:
    header = read_header(path)
    return header.data_offset + next(entry.offset for entry in header.tensors if entry.name == name)


def test_one_flipped_bit_is_seen(plain: Path, tmp_path: Path) -> None:
    changed = copy(plain, tmp_path)

    def flip(blocks: Any, _: Any) -> None:
        blocks.reshape(-1)[4 * 5] ^= 1

    change_tensor(changed, "blk.1.attn_output.weight", flip)
    (tensor,) = difference(plain, changed).differing
    assert tensor.name == "blk.1.attn_output.weight"
    assert tensor.detail.startswith("one weight differs, at [0, 5]")


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ("swap(1:3)", "swap(1:3)"),
        ("swap(0:5, 2:4)", "swap(0:5, 2:4)"),
        ("path(0..3,2..5)", "path(0..3, 2..5)"),
        ("delete(2)", "path(0..1, 3..5)"),
        ("move(0:4)", None),
        ("duplicate(3)", "path(0..3, 3..5)"),
        ("reverse(1..4)", "swap(1:4, 2:3)"),
        ("interpolate(2:4, 0.5, replace=3)", "interpolate(2:4, 0.5, replace=3)"),
        ("interpolate(1:3, 0.25)", "interpolate(1:3, 0.25)"),
        ("swap(0:1) + interpolate(2:5, 0.3)", None),
        ("bridge(1:3)", None),
        ("scale(2@0.5)", "scale(2@0.5)"),
        ("scale(1@3.0, only=ffn)", "scale(1@3.0, only=ffn)"),
        ("scale(1@-1.0, only=attention) + scale(4@1.25)", "scale(1@-1.0, only=attention) + scale(4@1.25)"),
        ("swap(1:3, only=attention)", "swap(1:3, only=attention)"),
        ("swap(0:5, only=ffn)", "swap(0:5, only=ffn)"),
    ],
)
def test_surgery_is_recognised_and_repeats(plain: Path, tmp_path: Path, recipe: str, named: str | None) -> None:
    """The recipe that is named, applied to A, gives B's tensors again."""
    changed = operated(plain, tmp_path / "b.gguf", recipe)
    found = difference(plain, changed)
    assert found.surgery
    assert named in (None, found.surgery)
    again = operated(plain, tmp_path / "again.gguf", found.surgery)
    repeated = difference(changed, again, within=1e-12)
    assert not repeated.differing, repeated.first


def test_surgery_is_recognised_under_quantization_and_against_the_source(
    folder: Path, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.gguf"
    recipe = "swap(1:2) + interpolate(3:5, 0.5, replace=4)"
    execute(prepare(Request(source=folder, type="q4_0", threads=1, operation=operation(recipe))), out)
    for one in (folder, plain):
        found = difference(one, out)
        assert "blk.1 and blk.2 are exchanged" in found.layers
        assert any(line.startswith("blk.4 is 0.") and "blk.5" in line for line in found.layers), found.layers
        assert found.surgery


def test_layers_of_another_model_are_none_of_these(plain: Path, tmp_path: Path) -> None:
    other = convert(checkpoint(tmp_path / "other", dense(num_hidden_layers=LAYERS), seed=5), tmp_path / "other.gguf")
    found = difference(plain, other)
    assert found.surgery is None
    assert len(found.layers) == LAYERS


def test_exchanged_experts_are_named(tmp_path: Path) -> None:
    plain = convert(checkpoint(tmp_path / "source", moe()), tmp_path / "a.gguf")
    changed = copy(plain, tmp_path)

    def turn(blocks: Any, _: Any) -> None:
        experts = blocks.reshape(4, -1)
        experts[[0, 2]] = experts[[2, 0]]

    change_tensor(changed, "blk.1.ffn_down_exps.weight", turn)
    (tensor,) = difference(plain, changed).differing
    assert tensor.detail.startswith("expert 0 is A's 2, expert 2 is A's 0")


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_surgery_on_experts_is_named(tmp_path: Path, kind: str) -> None:
    plain = convert(checkpoint(tmp_path / "source", moe()), tmp_path / "a.gguf", kind)
    recipe = "swap-experts(0:1:3) + swap-experts(1:0:2)"
    changed = operated(plain, tmp_path / "b.gguf", recipe)
    found = difference(plain, changed)
    assert found.surgery == recipe
    assert "experts 1 and 3 of blk.0 are exchanged" in found.layers
    scaled = difference(plain, operated(plain, tmp_path / "c.gguf", "scale(1@0.5)"))
    assert scaled.surgery == "scale(1@0.5)"
    assert scaled.layers == ("what blk.1 adds is multiplied by 0.5",)


def test_a_file_without_layers(plain: Path, tmp_path: Path) -> None:
    """Such as one of a vocabulary alone, or an adapter."""
    bare = tmp_path / "vocabulary.gguf"
    bare.write_bytes(pack_header(dict(read_header(plain).metadata), (), 32))
    found = difference(plain, bare)
    assert found.surgery is None
    assert found.layers == ("B has no layers",)
    assert {tensor.status for tensor in found.tensors} == {"only in A"}
    assert difference(bare, bare).equal


def test_metadata(plain: Path, tmp_path: Path) -> None:
    changes = {"qwen3.rope.freq_base": f32(5.0), "tinyq.version": string("0"), "made.up": string("x")}
    changed = with_metadata(plain, tmp_path / "b.gguf", changes)
    found = difference(plain, changed)
    assert {entry.key for entry in found.metadata} == set(changes)
    assert {entry.key for entry in found.keys} == {"qwen3.rope.freq_base", "made.up"}
    only = with_metadata(plain, tmp_path / "c.gguf", {"tinyq.version": string("0")})
    assert difference(plain, only).equal


def test_a_wrong_key_is_seen_against_the_source(folder: Path, plain: Path, tmp_path: Path) -> None:
    changed = with_metadata(plain, tmp_path / "b.gguf", {"qwen3.rope.freq_base": f32(5.0)})
    for found, value in ((difference(folder, changed), "b"), (difference(changed, folder), "a")):
        (entry,) = found.as_dict()["metadata"]
        assert entry["key"] == "qwen3.rope.freq_base"
        assert entry[value] == "5"
        assert not found.equal


def test_two_checkpoints_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="at least one GGUF"):
        difference(folder, folder)


def test_the_command(tinyq: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    assert tinyq("diff", plain, plain).code == 0
    changed = copy(plain, tmp_path)
    exchange(changed, "blk.0.attn_q.weight", "blk.3.attn_q.weight")
    ran = tinyq("diff", plain, changed, "--json", tmp_path / "report.json")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "attn_q.weight" in ran.err
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["equal"] is False
    assert report["surgery"] is None
    assert {tensor["name"] for tensor in report["tensors"][:2]} == {"blk.0.attn_q.weight", "blk.3.attn_q.weight"}
    whole = operated(plain, tmp_path / "whole.gguf", "swap(0:3)")
    ran = tinyq("diff", plain, whole)
    assert 'tinyq surgery A OUT --recipe "swap(0:3)"' in ran.out
    assert isinstance(difference(plain, whole), Difference)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_the_report_is_wider_than_the_terminal(
    tinyq: Callable[..., Any],
    plain: Path,
    small: Path,
    tmp_path: Path,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = copy(small, tmp_path).rename(tmp_path / "b.gguf")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gguf").symlink_to(plain)
    ran = tinyq("diff", "a.gguf", changed.name)
    assert ran.code == 1
    assert max(map(len, ran.out.splitlines())) <= width
    assert max(map(len, tinyq("diff", "a.gguf", changed.name, "--wide").out.splitlines())) > 80
    assert tinyq("diff", "a.gguf", changed.name, "--format", "csv").out.startswith("tensor,type,difference,NMSE,")
