"""Odd values of any option and argument, and pairs of options: a sample of `python -m tests.options`, and what that rests on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest

from gguf_tools import cli
from gguf_tools.commands.values import FilePath
from tests.conftest import Ran
from tests.faults.declared import commands
from tests.faults.place import Snapshot
from tests.faults.scenarios import SCENARIOS
from tests.options.attack import Attack, Line, lines, pairs, values
from tests.options.run import RESIDENT, Ended, complaints
from tests.tiny_gguf import write_dense

ROOT = Path(__file__).parents[2]
GOOD = {"code": 0, "out": "", "err": "", "seconds": 0.1, "memory": 1 << 20}


SAMPLE = 20


def test_a_sample_ends_well() -> None:
    """In a process of its own, which forks for each command line."""
    command = [sys.executable, "-m", "tests.options", "--cost", "quick", "--seed", "1", "--count", str(SAMPLE)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{SAMPLE} command lines in" in ran.stdout


def test_every_option_and_argument_is_tried_and_every_pair() -> None:
    tried = {(one.scenario.command, one.label.split()[0]) for one in values()}
    paired = {(one.scenario.command, *one.arguments) for one in pairs()}
    for name, command in commands(cli.tinyq):
        for param in command.params:
            if isinstance(param, click.Option) and not param.is_flag:
                assert (name, param.opts[0]) in tried
            if isinstance(param, click.Option):
                assert any(
                    name == one[0] and any(word.split("=")[0] == param.opts[0] for word in one) for one in paired
                )
    for line, _ in lines():
        assert {(line.scenario.command, line.given[place]) for place in line.arguments} <= tried


def test_a_line_is_taken_apart() -> None:
    (quantize,) = (one for one in SCENARIOS if one.name == "quantize")
    line = Line.of(quantize, dict(commands(cli.tinyq))["quantize"])
    assert [line.given[place] for place in line.arguments] == ["{in}/f32.gguf", "{out}/model.gguf", "q4_k_m"]
    assert line.replaced(line.options["imatrix"], "x")[4:6] == ("--imatrix", "x")


FALLS: Mapping[str, tuple[dict[str, object], dict[str, tuple[str, ...]], str]] = {
    "a traceback": ({"code": 70, "err": "Traceback (most recent call last):\n"}, {}, "a traceback"),
    "a crash": ({"code": -11}, {}, "exit code -11"),
    "a hang": ({"code": None}, {}, "did not end"),
    "no line": ({"code": 2}, {}, "stderr has 0 lines"),
    "two lines": ({"code": 2, "err": "tinyq: a; b\ntinyq: c\n"}, {}, "stderr has 2 lines"),
    "no advice": ({"code": 2, "err": "tinyq: a\n"}, {}, "does not say what to do"),
    "a warning": ({"err": "tinyq: warning: a\n"}, {}, "ends well and says"),
    "an escape": ({"out": "\x1b[31m"}, {}, "prints a control character"),
    "memory": ({"memory": RESIDENT + 1}, {}, "GB of memory"),
    "a lost input": ({}, {"in/a": ()}, "in/a was changed"),
    "an output after an error": ({"code": 2, "err": "tinyq: a; b\n"}, {"out/b": ("file",)}, "out/b was left behind"),
    "a temporary file": ({}, {"tmp/b": ("file",)}, "tmp/b was left"),
}


@pytest.mark.parametrize("name", FALLS)
def test_what_counts_as_bad(name: str) -> None:
    ended, entries, said = FALLS[name]
    attack = Attack(scenario=SCENARIOS[0], label="", arguments=())
    before = Snapshot({"in/a": ("file", "1", "x")})
    assert list(complaints(attack, before, before, Ended(**GOOD))) == []  # type: ignore[arg-type]
    after = Snapshot({**before.entries, **entries})
    found = list(complaints(attack, before, after, Ended(**{**GOOD, **ended})))  # type: ignore[arg-type]
    assert any(text.startswith(said) or said in text for text in found)


def test_an_empty_path_is_refused() -> None:
    """It would be the current folder, as from `--imatrix "$UNSET"`."""
    paths = 0
    for name, command in commands(cli.tinyq):
        for param in command.params:
            if isinstance(param.type, click.Path):
                paths += 1
                assert isinstance(param.type, FilePath), f"{name} {param.name}"
                with pytest.raises(click.BadParameter, match="it is empty; expected a path"):
                    param.type.convert("", param, None)
    assert paths > len(cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quantize", "{in}", "{out}", "q8_0", "--output-type", ""), "quantize: output_type is empty; give a value"),
        (("quantize", "{in}", "{out}", "q8_0", "--split-max-size", ""), "split_max_size is empty"),
        (("quantize", "{in}", "{out}", ""), "quantize: type is empty"),
        (("publish", "{in}", "--out", "{out}", "--name", ""), "publish: name is empty"),
        (("inspect", ""), "it is empty; expected a path"),
        (("search", "{in}", "--storage", ""), "'--storage': it is empty; give a value, or leave the option out"),
        (("search", "report", ""), "it is empty"),
    ],
)
def test_an_empty_text_does_not_count_as_not_given(
    tinyq: Callable[..., Ran], tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    source = write_dense(tmp_path / "a.gguf")
    ran = tinyq(*(word.format(**{"in": source, "out": tmp_path / "out.gguf"}) for word in words))
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert list(tmp_path.iterdir()) == [source]
