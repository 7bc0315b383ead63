"""The README's Python does what it shows."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert (done.attempted, done.failed) == (5, 0)
    assert (tmp_path / "dense-q8_0.gguf").exists()
