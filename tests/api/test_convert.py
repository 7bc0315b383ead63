"""`gguf_tools.convert`: the command as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools import ConvertResult, convert
from gguf_tools.errors import ArgumentError, CheckpointError, InputError, OutputError, TokenizerError
from gguf_tools.formats.gguf.header import read_header
from surgery.recipe import parse_text
from tests.api.conftest import Told
from tests.conftest import Ran

Tinyq = Callable[..., Ran]


def test_it_does_what_the_command_does(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path, told: Told) -> None:
    out, report = tmp_path / "a.gguf", tmp_path / "a.json"
    options = ["--type", "q8_0", "--tensor-type", "ffn_down=f16", "--swap", "0:1", "--json", report]
    ran = tinyq("convert", qwen3_folder, out, *options)
    assert ran.code == 0, ran.err
    bytes_by_command = out.read_bytes()
    result = convert(
        str(qwen3_folder),
        str(out),
        type="Q8_0",
        tensor_types={"ffn_down": "f16"},
        surgery="swap(0:1)",
        force=True,
        progress=told,
    )
    assert out.read_bytes() == bytes_by_command
    assert result.as_dict() == json.loads(report.read_text("utf-8"))
    assert f"{result}\n" == ran.out
    assert (result.path, result.bytes, result.type, result.target) == (out, out.stat().st_size, "q8_0", "qwen3")
    assert told.stages == ["writing"]
    assert told.ended("writing")


def test_the_weights_are_read_once_for_type_auto(qwen3_folder: Path, tmp_path: Path, told: Told) -> None:
    result = convert(qwen3_folder, tmp_path / "a.gguf", progress=told)
    assert result.type == "f16"
    assert told.stages == ["reading", "writing"]
    assert told.ended("reading")


def test_a_dry_run_writes_nothing(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"older")
    result = convert(qwen3_folder, tmp_path / "a.gguf", type="q4_0", dry_run=True)
    assert result.path is None
    ran = tinyq("convert", qwen3_folder, tmp_path / "a.gguf", "--type", "q4_0", "--dry-run", "--json", "-")
    assert result.as_dict() == json.loads(ran.out)
    assert str(result).endswith("nothing was written (--dry-run)")
    assert (tmp_path / "a.gguf").read_bytes() == b"older"


def test_types_for_a_size_are_chosen(wide_folder: Path, tmp_path: Path, told: Told) -> None:
    result = convert(wide_folder, tmp_path / "a.gguf", target_bpw=9, threads=1, progress=told)
    assert result.chosen
    assert result.as_dict()["allocation"] == result.chosen.as_dict()
    assert str(result).startswith(result.chosen.sentence)
    assert told.stages[-1] == "writing"
    assert len(told.stages) > 1


@pytest.mark.parametrize("form", ["text", "file", "path", "recipe"])
def test_surgery_in_every_form(qwen3_folder: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text('steps = ["swap(0:2)"]', "utf-8")
    given: Any = {"text": "swap(0:2)", "file": str(file), "path": file, "recipe": parse_text("swap(0:2)")}[form]
    result = convert(qwen3_folder, tmp_path / "a.gguf", type="f32", surgery=given)
    assert result.as_dict()["surgery"] == "swap(0:2)"
    assert read_header(tmp_path / "a.gguf").get("tinyq.surgery") == "swap(0:2)"


def refused(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"type": "nope"}, InputError, "nope"),
        ({"type": "f16", "target_bpw": 4}, InputError, "--type and a size"),
        ({"target_bpw": 4, "target_size": "1M"}, InputError, "exclude each other"),
        ({"target_bpw": 0}, InputError, "--target-bpw is 0; expected a number above 0"),
        ({"target_bpw": float("inf")}, InputError, "--target-bpw is inf; expected a number above 0"),
        ({"target_bpw": float("nan")}, InputError, "--target-bpw is nan; expected a number above 0"),
        ({"target_size": "5Q"}, InputError, "--target-size is '5Q'"),
        ({"target_size": "9" * 5000 + "G"}, InputError, "expected less than 2^63 bytes"),
        ({"target_size": -5}, InputError, "--target-size is -5; expected a size"),
        ({"context_length": 0}, InputError, "--context-length is 0; expected an integer from 1 to 2147483647"),
        ({"threads": 0}, InputError, "--threads is 0; expected an integer from 1 to 512"),
        ({"threads": True}, ArgumentError, "convert: threads is True (bool); expected int or None"),
        ({"tensor_types": "ffn"}, InputError, "expected REGEX=TYPE"),
        ({"tensor_types": {"(": "f16"}}, InputError, "is not a regular expression"),
        ({"tensor_types": {"(" * 5000: "f16"}}, InputError, "is not a regular expression"),
        ({"tensor_types": {"a{99999999999999999999}": "f16"}}, InputError, "is not a regular expression"),
        ({"surgery": "swap(0:9)"}, InputError, "there is no layer 9"),
        ({"surgery": ""}, InputError, "recipe"),
        ({"target": "gpt2"}, InputError, "gpt2"),
        ({"tokenizer": "gone"}, InputError, "gone"),
    ],
)
def test_what_does_not_fit_is_an_input_error(
    qwen3_folder: Path, tmp_path: Path, options: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as raised:
        convert(qwen3_folder, tmp_path / "a.gguf", **options)  # type: ignore[arg-type]
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert refused(tmp_path) == []


def test_an_output_that_exists_is_kept(qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    out.write_bytes(b"older")
    with pytest.raises(OutputError, match="exists already"):
        convert(qwen3_folder, out)
    assert out.read_bytes() == b"older"
    with pytest.raises(OutputError, match="does not exist; create it first"):
        convert(qwen3_folder, tmp_path / "gone" / "a.gguf")
    with pytest.raises(CheckpointError, match="gone"):
        convert(tmp_path / "gone", tmp_path / "b.gguf")
    assert refused(tmp_path) == ["a.gguf"]


def test_a_vocabulary_that_llama_cpp_reads_otherwise_leaves_no_file(
    qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp answers with other tokens for the probe text."""
    from gguf_tools.runtime.process import Runtime

    tokenize = Runtime.tokenize

    def other(self: Runtime, *args: object, **options: object) -> list[int]:
        return [*tokenize(self, *args, **options), 0]  # type: ignore[arg-type]

    monkeypatch.setattr(Runtime, "tokenize", other)
    with pytest.raises(TokenizerError):
        convert(qwen3_folder, tmp_path / "a.gguf", type="f32")
    assert refused(tmp_path) == []


def test_an_exception_of_the_callback_leaves_no_file(qwen3_folder: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "writing" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(qwen3_folder, tmp_path / "a.gguf", type="f32", progress=stop)
    assert refused(tmp_path) == []


def test_a_hostile_name_is_escaped(qwen3_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<&\x1b[31m\n\u202eb"
    folder.symlink_to(qwen3_folder)
    result: ConvertResult = convert(folder, tmp_path / "a.gguf", type="f32", dry_run=True)
    assert "<script>alert(1)<&\\x1b[31m\\n\\u202eb (qwen3" in repr(result)
    html = result._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;&amp;\\x1b[31m\\n\\u202eb (qwen3" in html
    assert "<script" not in html
    assert not {"\x1b", "\u202e"} & set(html + repr(result))
