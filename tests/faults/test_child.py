"""When a command counts as hung: by the processor time that it uses, not by the clock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults import child
from tests.faults.child import Running, run
from tests.faults.place import Place

WAITING = "import time; time.sleep(600)"
ENDLESS = "while True: pass"
BUSY_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ENDLESS!r}])"
BRIEF = "import time; time.sleep(1.5)"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("in", "out", "tmp", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(child, "STEP", 0.1)
    monkeypatch.setattr(child, "LIMIT", 0.5)
    # These programs have no handler to wait for.
    monkeypatch.setattr(Running, "_handles_signals", lambda running: True)
    return Place(tmp_path, (sys.executable, "-c"))


@pytest.mark.parametrize("program", [WAITING, ENDLESS, BUSY_CHILD])
def test_a_command_that_does_nothing_or_does_not_end_is_hung(place: Place, program: str) -> None:
    ended = run(place, [program])
    assert ended.hung
    assert ended.survivors == 0


def test_a_command_that_gets_little_of_the_processor_is_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter(range(1, 1000))
    monkeypatch.setattr(Running, "_processor_time", lambda running: next(used) * 1e-4)
    ended = run(place, [BRIEF])
    assert (ended.hung, ended.code) == (False, 0)
