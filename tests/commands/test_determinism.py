"""The same input and options give the same bytes, whatever the number of threads, for every command that writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gguf_tools import convert, split
from gguf_tools.cli import COMMANDS
from tests.conftest import Ran
from tests.tiny_models import checkpoint, dense

Tinyq = Callable[..., Ran]

ENCODING = (1, 2, 5)
RUNNING = (1, 2)
"""Numbers of threads for encoding, and for llama.cpp, whose threads wait for each other if there are more than cores."""
BLEND = "--interpolate 0:1@0.5 --bridge 0:1"
RUNS: dict[str, dict[str, tuple[int, ...]]] = {
    "convert": {
        "SOURCE OUT.gguf --type q4_k_m": ENCODING,
        f"SOURCE OUT.gguf --type auto {BLEND}": ENCODING,
    },
    "quantize": {
        "F32 OUT.gguf q5_k_s": ENCODING,
        "F32 OUT.gguf q4_0 --split-max-size 500K": ENCODING,
        "F32 OUT.gguf --target-bpw 6 --calibration TEXT": RUNNING,
    },
    "surgery": {
        f"F32 OUT.gguf {BLEND} --save-recipe OUT.toml": ENCODING,
        f"Q8_0 OUT.gguf {BLEND} --json OUT.json": ENCODING,
        f"SOURCE OUT {BLEND}": ENCODING,
    },
    "imatrix": {"F32 TEXT -o OUT.gguf --chunk 64": RUNNING},
    "publish": {"SOURCE --types q8_0,q4_k_m --suite none -o OUT": ENCODING},
    # What they report names the number of threads.
    "card": {"SOURCE F32 Q8_0 --suite none --out OUT.md --modelfile": (2, 2)},
    "eval": {
        "F32 Q8_0 --reference SOURCE --no-speed --tokens 4 --csv OUT.csv --markdown OUT.md --json OUT.json": (2, 2)
    },
}
"""By command: a line of arguments, in which the words in capitals are inputs and outputs, and the numbers of threads to try."""
WITHOUT_THREADS = {
    "describe": "SOURCE -o OUT.toml",
    "golden": "SOURCE OUT --tokens 4 --points",
    "edit": "F32 OUT.gguf --name Other --set my.note=1 --no-prove --json OUT.json",
    "split": "F32 OUT --max-size 2M --json OUT.json",
    "merge": "SHARD OUT.gguf --json OUT.json",
}
"""Commands that write files and have no option for threads: the same line twice."""
WRITES_NOTHING_OF_ITS_OWN = {
    *("verify", "inspect", "demo", "diff", "check", "trace", "compare", "ask", "chat", "lm-eval", "search")
}
"""They write a report at most; the files of the demo are those of convert, and tests/surgery/search compares studies."""


def test_every_command_is_here() -> None:
    assert RUNS.keys() | WITHOUT_THREADS.keys() | WRITES_NOTHING_OF_ITS_OWN == COMMANDS.keys()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with tensors of several blocks each, which threads encode side by side, and a text."""
    folder = tmp_path_factory.mktemp("determinism")
    config = dense(hidden_size=256, intermediate_size=2048, num_hidden_layers=2, head_dim=64)
    source = checkpoint(folder / "source", config, dtype=torch.bfloat16)
    made = {"SOURCE": source, **{name: folder / f"{name.lower()}.gguf" for name in ("F32", "Q8_0")}}
    for name in ("F32", "Q8_0"):
        convert(source, made[name], type=name.lower())
    made["SHARD"] = split(made["F32"], folder / "shards", max_tensors=9).paths[0]
    text = folder / "text.txt"
    text.write_text("The clocks were striking thirteen. " * 8)
    return {**made, "TEXT": text}


def written(
    inputs: dict[str, Path], folder: Path, tinyq: Tinyq, command: str, line: str, *more: object
) -> dict[str, bytes]:
    """The files that a line of arguments writes, and their bytes; OUT stands for the folder and names in it."""
    folder.mkdir()
    words = [folder / f"made{word[3:]}" if word.startswith("OUT") else inputs.get(word, word) for word in line.split()]
    ran = tinyq(command, *words, *more, "--quiet")
    assert ran.code == 0, ran.err
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(found: list[dict[str, bytes]]) -> None:
    assert found[0]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert not [name for name, data in other.items() if data != found[0][name]]


@pytest.mark.parametrize(("command", "line"), [(command, line) for command, lines in RUNS.items() for line in lines])
def test_bytes_do_not_depend_on_the_threads(
    inputs: dict[str, Path], tmp_path: Path, tinyq: Tinyq, command: str, line: str
) -> None:
    # The same name each time: a file states the way to its source.
    folder = tmp_path / "out"
    found: list[dict[str, bytes]] = []
    for number, threads in enumerate(RUNS[command][line]):
        found.append(written(inputs, folder, tinyq, command, line, "--threads", threads))
        folder.rename(tmp_path / str(number))
    same(found)


@pytest.mark.parametrize("command", WITHOUT_THREADS)
def test_a_second_run_writes_the_same(inputs: dict[str, Path], tmp_path: Path, tinyq: Tinyq, command: str) -> None:
    folder = tmp_path / "out"
    found: list[dict[str, bytes]] = []
    for number in range(2):
        found.append(written(inputs, folder, tinyq, command, WITHOUT_THREADS[command]))
        folder.rename(tmp_path / str(number))
    same(found)
