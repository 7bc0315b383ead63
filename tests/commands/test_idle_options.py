"""Options that would do nothing beside the others given are refused, and said to be, before any work."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools.errors import InputError
from gguf_tools.runtime.process import RuntimeOptions
from tests.conftest import Ran
from tests.tiny_gguf import write_dense

Tinyq = Callable[..., Ran]

IDLE = {
    "check {folder} --dump {file} --model x": "--model needs --server or --command",
    "check {folder} --gguf {file} --model x": "--model needs --server or --command",
    "check {folder} --server http://127.0.0.1:9 --arithmetic f16": "--arithmetic needs --dump or --gguf",
    "check {folder} --command 'engine {{tokens}}' --max-nmse 1": "--max-nmse needs --dump or --gguf",
    "check {folder} --dump {file} --threads 2": "--threads needs --gguf",
    "check {folder} --dump {file} --timeout 9": "--timeout needs --gguf, --server or --command",
    "golden --all {out} --tokens 3": "--tokens and --all exclude each other",
    "golden --all {out} --prompts {file}": "--prompts and --all exclude each other",
    "describe {folder} --check {file} --context-length 7": "--context-length and --check exclude each other",
    "imatrix --merge {file} --chunk 16": "--chunk needs MODEL.gguf and TEXT",
    "imatrix --merge {file} --process-output": "--process-output needs MODEL.gguf and TEXT",
    "imatrix --merge {file} --gpu-layers 1": "--gpu-layers needs MODEL.gguf and TEXT",
    "imatrix --merge {file} --timeout 9": "--timeout needs MODEL.gguf and TEXT",
    "card {folder} {file} --suite none --weight facts=3": "--weight needs --suite card or all",
    "card {folder} {file} --suite fidelity --thinking": "--thinking needs --suite card or all",
    "card {folder} {file} --study-name found": "--study-name needs --study",
    "publish {folder} --out {out} --suite none --answer-tokens 3": "--answer-tokens needs --suite card or all",
    "publish {folder} --out {out} --private": "--private is for the repository of --to",
    "publish {folder} --out {out} --calibration {file}": "--calibration needs --allow-approximate",
    "convert {folder} {out} --calibration {file}": "--calibration needs --target-bpw, --target-size or --allow-approximate",
    "convert {folder} {out} --base {folder} --timeout 9": "--timeout and --base exclude each other",
    "quantize {file} {out} q8_0 --calibration {file}": "--calibration needs --target-bpw or --target-size",
    "search {file} --strategy single --beam 3": "--beam needs --strategy compose",
    "search {file} --seed 3": "--seed needs --strategy sample",
    "search {file} --size 2..3": "--size needs --strategy blocks",
    "search {file} --stride 2": "--stride needs --strategy blocks",
    "search {file} --objective perplexity --think-tokens 9": "--think-tokens needs --objective card",
    "edit {file} --show --wide": "--show prints the header as it is, and takes no OUT and no other options",
    "edit {file} --undo --no-prove": "--undo undoes the last change in place and takes no OUT, edits or other options",
    "edit {file} --in-place --prove": "--prove: there is no edit",
    "surgery {file} --undo --dry-run": "--undo undoes the last in-place change and takes no OUT, ops or other options",
    "surgery {folder} {out} --swap 0:1 --assume-independent-layers": "--assume-independent-layers is for a GGUF",
    "surgery {folder} {out} --lora {folder} --save-recipe {out}.toml": "--save-recipe: there is no op to save",
    "surgery {file} --in-place --text {file}": "--text: no op measures",
}


@pytest.mark.parametrize("line", IDLE)
def test_an_option_without_an_effect_is_refused(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path, line: str) -> None:
    file = write_dense(tmp_path / "a.gguf")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ran = tinyq(*shlex.split(line.format(folder=qwen3_folder, file=file, out=tmp_path / "out.gguf")))
    assert (ran.code, ran.out) == (2, "")
    assert IDLE[line] in ran.err
    assert ran.err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ask {file} Hi --threads 513", "'--threads': 513 is not in the range 1<=x<=512"),
        ("ask {file} Hi --context 2147483648", "'--context': 2147483648 is not in the range 1<=x<=2147483647"),
        ("ask {file} Hi --gpu-layers -2", "'--gpu-layers': -2 is not in the range -1<=x<=2147483647"),
        ("imatrix {file} {file} -o {out} --gpu-layers 4294967296", "'--gpu-layers': 4294967296 is not in the range"),
    ],
)
def test_numbers_that_llama_cpp_would_cut_off_are_refused(tinyq: Tinyq, tmp_path: Path, line: str, said: str) -> None:
    file = write_dense(tmp_path / "a.gguf")
    ran = tinyq(*shlex.split(line.format(file=file, out=tmp_path / "out.gguf")))
    assert ran.code == 2
    assert said in ran.err


@pytest.mark.parametrize(
    "options",
    [{"threads": 513}, {"threads": 0}, {"context_length": 1 << 31}, {"gpu_layers": -2}, {"gpu_layers": 1 << 31}],
)
def test_llama_cpps_settings_have_bounds(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"^{name} is {options[name]}; expected a whole number from "):
        RuntimeOptions(**options)  # type: ignore[arg-type]
