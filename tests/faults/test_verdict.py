"""The verdict finds what it is there to find: each kind of loss, planted one at a time; and a careless program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.at_steps import DiskFull, InterruptAtStep, KillAtStep, Truncated
from tests.faults.bench import Bench
from tests.faults.child import Ended
from tests.faults.environment import Nothing
from tests.faults.fault import Fault
from tests.faults.matrix import run_cell
from tests.faults.on_paths import OutIsInput, OutIsLink
from tests.faults.place import Entry, Snapshot
from tests.faults.scenario import Scenario
from tests.faults.verdict import Complete, Expected, Found, complaints, unsettled

OLD, NEW, OTHER = ("file", "old"), ("file", "new"), ("file", "other")
INPUTS: Mapping[str, Entry] = {"in/a.gguf": OLD}
PARTS = {f"out/a-0000{n}-of-00002.gguf": NEW for n in (1, 2)}
GOOD = Ended(code=0, out="done\n", err="", seconds=1.0)
FAILED = replace(GOOD, code=2, out="", err="tinyq: out/a.gguf: could not be written\n")
COMPLETE = Complete(entries={"out/a.gguf": NEW}, out="done\n")
EXPECTED = Expected(codes=(0, 2), says=("a.gguf",))


def found(ended: Ended, after: Mapping[str, Entry], before: Mapping[str, Entry] | None = None) -> Found:
    return Found(before=Snapshot(before or INPUTS), after=Snapshot({**INPUTS, **after}), ended=ended)


def test_what_survives() -> None:
    assert complaints(found(GOOD, {"out/a.gguf": NEW}), [COMPLETE], EXPECTED) == []
    assert complaints(found(FAILED, {}), [COMPLETE], EXPECTED) == []
    telling = replace(FAILED, err="reading\n" + FAILED.err)
    assert complaints(found(telling, {}), [COMPLETE], replace(EXPECTED, progress=("reading",))) == []
    old = {"out/a.gguf": OLD}
    assert complaints(found(FAILED, old, {**INPUTS, **old}), [COMPLETE], EXPECTED) == []
    assert complaints(found(FAILED, {"out/a.gguf": NEW}), [COMPLETE], EXPECTED) == []


def test_a_signal_that_ends_python_itself() -> None:
    """With a line on stderr the command was interrupted; without one it was done, and its outputs are complete."""
    expected = Expected(codes=(130, 0, -signal.SIGINT))
    interrupted = replace(FAILED, code=-signal.SIGINT, err="\ntinyq: interrupted; no output was left behind\n")
    assert complaints(found(interrupted, {}), [COMPLETE], expected) == []
    done = replace(GOOD, code=-signal.SIGINT)
    assert complaints(found(done, {"out/a.gguf": NEW}), [COMPLETE], expected) == []
    assert complaints(found(done, {}), [COMPLETE], expected) == [
        "out/a.gguf is not there as a run without a fault leaves it"
    ]


@pytest.mark.parametrize(
    ("ended", "after", "complaint"),
    [
        (replace(FAILED, code=70), {}, "exit code 70"),
        (replace(FAILED, hung=True), {}, "did not end"),
        (replace(FAILED, survivors=1), {}, "1 processes outlived it"),
        (replace(FAILED, err=""), {}, "stderr holds 0 lines"),
        (replace(FAILED, err=FAILED.err * 2), {}, "stderr holds 2 lines"),
        (replace(FAILED, err="a.gguf: no\n"), {}, "one that begins with 'tinyq: '"),
        (replace(FAILED, err="tinyq: no\n"), {}, "does not say 'a.gguf'"),
        (replace(FAILED, err="Traceback (most recent call last):\n"), {}, "a traceback"),
        (replace(GOOD, err="a warning\n"), {"out/a.gguf": NEW}, "stderr holds 'a warning'"),
        (replace(GOOD, out="half"), {"out/a.gguf": NEW}, "stdout is not what"),
        (GOOD, {}, "out/a.gguf is not there"),
        (GOOD, {"out/a.gguf": OTHER}, "the output out/a.gguf is neither the old one nor complete"),
        (FAILED, {"out/a.gguf": OTHER}, "the output out/a.gguf is neither the old one nor complete"),
        (FAILED, {"in/a.gguf": OTHER}, "the input in/a.gguf was changed"),
        (FAILED, {"in/b": NEW}, "in/b was left over"),
        (FAILED, {"tmp/b": NEW}, "tmp/b was left over"),
        (FAILED, {"home/.cache": NEW}, "home/.cache was left over"),
        (
            replace(FAILED, err="tinyq: a.gguf: interrupted; no output was left behind\n"),
            {"out/a.gguf": NEW},
            "says that no output was left behind, but out/a.gguf is there",
        ),
    ],
)
def test_each_loss_is_found(ended: Ended, after: Mapping[str, Entry], complaint: str) -> None:
    (made,) = complaints(found(ended, after), [COMPLETE], EXPECTED)
    assert complaint in made


def test_a_report_may_say_what_is_wrong() -> None:
    telling = replace(GOOD, out="tokenizer  a.gguf: cannot be read\n")
    assert complaints(found(telling, {"out/a.gguf": OTHER}), [COMPLETE], replace(EXPECTED, tells=True)) == []
    silent = replace(GOOD, out="tokenizer  none\n")
    assert complaints(found(silent, {"out/a.gguf": OTHER}), [COMPLETE], replace(EXPECTED, tells=True))


def test_an_input_that_is_gone_and_an_old_output_that_is_lost() -> None:
    before = {**INPUTS, "out/a.gguf": OLD}
    gone = Found(before=Snapshot(before), after=Snapshot({}), ended=FAILED)
    assert complaints(gone, [COMPLETE], EXPECTED) == [
        "the input in/a.gguf was removed",
        "the output out/a.gguf is gone",
    ]


def test_a_set_is_of_one_run() -> None:
    complete = Complete(entries=PARTS, out="done\n")
    (made,) = complaints(found(FAILED, dict(list(PARTS.items())[:1])), [complete], EXPECTED)
    assert "a mixed set" in made
    in_place = Complete(entries={"in/a.gguf": NEW, "in/.undo": NEW}, out="done\n")
    (made,) = complaints(found(FAILED, {"in/a.gguf": NEW}), [in_place], EXPECTED)
    assert "a mixed set" in made


def test_after_a_kill_only_the_next_run_counts_but_inputs_count_at_once() -> None:
    killed = Expected(codes=(-signal.SIGKILL,), killed=True)
    ended = replace(FAILED, code=-signal.SIGKILL, err="")
    assert complaints(found(ended, {"out/.a.gguf.tmp": OTHER}), [COMPLETE], killed) == []
    assert complaints(found(ended, {"in/a.gguf": OTHER}), [COMPLETE], killed) == ["the input in/a.gguf was changed"]
    assert unsettled(found(GOOD, {"out/a.gguf": NEW}), [COMPLETE], 0) == []
    (made,) = unsettled(found(GOOD, {"out/a.gguf": NEW, "out/.a.gguf.tmp": OTHER}), [COMPLETE], 0)
    assert "was left over" in made
    (made,) = unsettled(found(GOOD, {}), [COMPLETE], 0)
    assert "is not there" in made


# A program that does what one must not

CARELESS = """
import signal
import sys
data = open(sys.argv[2], "rb").read()
with open(sys.argv[3], "wb") as stream:
    for n in range(8):
        stream.write(data[:5000])
        stream.flush()
print("done")
"""
LEAVING = """
import os, sys
temporary = f"{sys.argv[3]}.{os.getpid()}"
with open(temporary, "wb") as stream:
    stream.write(open(sys.argv[2], "rb").read())
os.replace(temporary, sys.argv[3])
"""
COPY = Scenario(command="copy", line="copy {in}/text.txt {out}/copy")


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("careless")
    (folder / "careless.py").write_text(CARELESS, "utf-8")
    return Bench(folder, (sys.executable, str(folder / "careless.py")))


@pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not() or "can be tried")
@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (DiskFull(), "a traceback"),
        (InterruptAtStep(), "a traceback"),
        (Truncated(), "neither the old one nor complete"),
        (OutIsInput(), "exit code 0"),
        (OutIsLink(), "exit code"),
    ],
    ids=lambda one: one.name.replace(" ", "-") if isinstance(one, Fault) else None,
)
def test_a_careless_program_is_lost(careless: Bench, fault: Fault, complaint: str) -> None:
    assert not run_cell(careless, Nothing(), COPY, 1).lost
    cell = run_cell(careless, fault, COPY, 12)
    assert cell.tried
    assert complaint in str(cell)


@pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not() or "can be tried")
def test_what_a_kill_leaves_for_ever_is_found(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING, "utf-8")
    cell = run_cell(Bench(tmp_path, (sys.executable, str(tmp_path / "leaving.py"))), KillAtStep(), COPY, 12)
    assert "after the next run: out/copy." in str(cell)
    assert "was left over" in str(cell)


def test_places_are_apart(tmp_path: Path) -> None:
    """Names of places have one length, so that reports which hold them have one size."""
    bench = Bench(tmp_path)
    first, second = bench.place(COPY), bench.place(COPY)
    assert len(str(first.folder)) == len(str(second.folder))
    assert Snapshot.of(first, COPY) == Snapshot.of(second, COPY)
