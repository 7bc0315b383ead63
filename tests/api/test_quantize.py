"""`gguf_tools.quantize`: the command as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools import convert, quantize
from gguf_tools.errors import CheckpointError, InputError, OutputError
from tests.api.conftest import Told
from tests.conftest import Ran

Tinyq = Callable[..., Ran]


def test_it_does_what_the_command_does(tinyq: Tinyq, exact_file: Path, tmp_path: Path, told: Told) -> None:
    out, report = tmp_path / "a.gguf", tmp_path / "a.json"
    ran = tinyq("quantize", exact_file, out, "q4_k_m", "--output-type", "q8_0", "--json", report)
    assert ran.code == 0, ran.err
    bytes_by_command = out.read_bytes()
    result = quantize(str(exact_file), str(out), "Q4_K_M", output_type="q8_0", force=True, progress=told)
    assert out.read_bytes() == bytes_by_command
    assert result.as_dict() == json.loads(report.read_text("utf-8"))
    assert f"{result!r}\n" == ran.out
    assert (result.path, result.paths, result.bytes, result.type) == (out, (out,), out.stat().st_size, "q4_k_m")
    assert told.stages == ["quantizing"]
    assert told.ended("quantizing")


def test_parts(tinyq: Tinyq, exact_file: Path, tmp_path: Path) -> None:
    result = quantize(exact_file, tmp_path / "a.gguf", "q8_0", split_max_size=30_000)
    assert list(result.paths) == sorted(tmp_path.iterdir())
    assert len(result.paths) > 1
    assert result.bytes == sum(path.stat().st_size for path in result.paths)


def test_a_dry_run_writes_nothing(tinyq: Tinyq, exact_file: Path, tmp_path: Path) -> None:
    result = quantize(exact_file, tmp_path / "a.gguf", "q8_0", dry_run=True, pure=True)
    ran = tinyq("quantize", exact_file, tmp_path / "a.gguf", "q8_0", "--pure", "--dry-run", "--json", "-")
    assert result.as_dict() == json.loads(ran.out)
    assert (result.path, list(tmp_path.iterdir())) == (None, [])
    assert "<td" in result._repr_html_()
    assert "nothing was written" in result._repr_html_()


def test_types_for_a_size_are_chosen(wide_folder: Path, tmp_path: Path, told: Told) -> None:
    convert(wide_folder, tmp_path / "wide.gguf", type="f32")
    result = quantize(tmp_path / "wide.gguf", tmp_path / "a.gguf", target_bpw=9, threads=1, progress=told)
    assert result.chosen
    assert result.as_dict()["allocation"] == result.chosen.as_dict()
    assert told.stages[-1] == "quantizing"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of TYPE"),
        ({"type": "q8_0", "target_bpw": 5}, "exactly one of TYPE"),
        ({"type": "q9"}, "q9"),
        ({"type": "q8_0", "threads": -1}, "--threads is -1"),
        ({"type": "q8_0", "split_max_size": "much"}, "--split-max-size is 'much'; expected a size"),
        ({"type": "q8_0", "keep_split": True, "split_max_size": 5000}, "cannot be combined"),
        ({"type": "q8_0", "embedding_type": "q9"}, "q9"),
        ({"target_size": "10K", "pure": True}, "cannot be combined with --pure"),
    ],
)
def test_what_does_not_fit_is_an_input_error(
    exact_file: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as raised:
        quantize(exact_file, tmp_path / "a.gguf", **options)  # type: ignore[arg-type]
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_guards_of_the_output(exact_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    out.write_bytes(b"older")
    with pytest.raises(OutputError, match="exists already"):
        quantize(exact_file, out, "q8_0")
    assert out.read_bytes() == b"older"
    with pytest.raises(OutputError, match="is also an input of this command"):
        quantize(exact_file, exact_file, "q8_0", force=True)
    with pytest.raises(CheckpointError):
        quantize(out, tmp_path / "b.gguf", "q8_0")
    quantize(exact_file, out, "q8_0", force=True)
    with pytest.raises(InputError, match="is already quantized"):
        quantize(out, tmp_path / "b.gguf", "q4_0")
    assert not (tmp_path / "b.gguf").exists()
