"""The HTML page: one file that loads nothing, escapes everything, and renders in a real browser without an error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from surgery.search.leaderboard import board
from surgery.search.objective import parse_objective
from surgery.search.page import page
from tests.conftest import Ran
from tests.surgery.search.search_files import search_line

pytest.importorskip("optuna")
Tinyq = Callable[..., Ran]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of all blocks."""
    from gguf_tools.cli import run

    folder = tmp_path_factory.mktemp("page")
    line = search_line(folder, "--strategy", "single", "--strategy", "blocks", "--storage", folder / "study.db")
    assert run([*line, "--rival", "q8_0", "--quiet"]) == 0
    return folder / "study.db"


def test_the_page_renders_in_a_browser_without_an_error(study: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    out, report = tmp_path / "search.html", tmp_path / "report.json"
    assert tinyq("search", "report", study, "--html", out, "--json", report).code == 0
    line = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    line += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom", out.as_uri()]
    ran = subprocess.run(line, capture_output=True, timeout=300, env={**os.environ, "HOME": str(tmp_path)})
    assert ran.returncode == 0
    shown, said = ran.stdout.decode(), ran.stderr.decode()
    champion = re.search(r'"best": \{\s*"recipe": "([^"]+)"', report.read_text("utf-8"))
    assert champion
    assert f"<td>{champion[1]}</td>" in shown
    assert shown.count("<svg") == 1
    assert "Repeat the block" in shown
    assert "CONSOLE" not in said


def test_the_page_loads_nothing_and_has_no_script(study: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    out = tmp_path / "search.html"
    assert tinyq("search", "report", study, "--html", out).code == 0
    text = out.read_text("utf-8")
    assert "<script" not in text
    assert not re.search(r"(src|href)=|url\(|@import", text)


def test_names_are_escaped(study: Path) -> None:
    setup = {
        "layer_count": 4,
        "strategies": ["single"],
        "questions": [0, 0],
        "passages": [1, 1],
        "set": "<b>\x1b[31m",
    }
    found = page(board("<script>alert(1)</script>", setup, [parse_objective("perplexity")], [], []))
    assert "<script" not in found
    assert "\x1b" not in found


def test_pictures_are_written_on_request(study: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    pytest.importorskip("matplotlib")
    assert tinyq("search", "report", study, "--png", tmp_path / "pictures").code == 0
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == ["heatmap-1.png", "heatmap-2.png", "heatmap-3.png", "size.png"]
    same = tinyq("search", "report", f"sqlite:///{study}", "--json", study, "--force")
    assert f"{study}: is also an input of this command" in same.err
    again = ("search", "report", study, "--png", tmp_path / "pictures")
    assert f"{tmp_path / 'pictures' / 'size.png'}: exists already" in tinyq(*again).err
    assert tinyq(*again, "--force").code == 0
    same = tinyq(*again, "--force", "--html", tmp_path / "pictures" / "size.png")
    assert "is also the output of --png size.png" in same.err
    assert "is also an input" in tinyq("search", "report", study, "--png", study, "--force").err
    assert all((tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in found)


def test_the_report_fits_80_columns_and_has_csv(
    study: Path, tmp_path: Path, tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = tinyq("search", "report", study).out
    assert max(map(len, shown.splitlines())) <= 80
    rows = tinyq("search", "report", study, "--format", "csv").out.splitlines()
    assert rows[0].startswith("rank,recipe,bits/byte")
    assert any(",base as q8_0," in row for row in rows)


def test_a_model_card_has_the_leaderboard(study: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    out, folder = tmp_path / "README.md", study.parent
    line = ("card", folder / "model.gguf", folder / "model.gguf", "--suite", "none", "--out", out, "--study", study)
    found = tinyq(*line)
    assert found.code == 0, found.err
    text = out.read_text("utf-8")
    assert "## Search" in text
    assert "| rank | recipe |" in text
    assert "On held-out items" in text
    assert tinyq(*line[:-1], tmp_path / "none.db", "--force").code == 2
