"""The report fits the terminal: no line is wider, whatever the number of layers."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import click
import pytest

from gguf_tools.commands.common import show_report
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation.trace.report import COLOURS, TraceReport, heatmap, text_of
from gguf_tools.evaluation.trace.run import Trace, trace
from gguf_tools.tables import View
from tests.made_checkpoints import Made


@pytest.fixture(scope="module")
def found(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A trace of 150 layers, which are copies of one's points."""
    source, file = made("qwen3-moe", "plain"), tmp_path_factory.mktemp("report") / "a.gguf"
    execute(prepare(Request(source=source, type="q8_0", threads=1)), file)
    small = trace(file, source, tokens=90, decode=True, routing=True, budget=True, threads=1)
    points = [replace(point, layer=n) for n in range(150) for point in small.points if point.layer == 0]
    return replace(small, path=Path("a.gguf"), reference=Path("source"), points=tuple(points))


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider(found: Trace, width: int) -> None:
    assert max(map(len, text_of(found, View(width, width)).splitlines())) <= width


def test_the_map_has_colours_on_a_terminal_only(
    found: Trace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = replace(found, points=(replace(found.points[0], tolerance=0.0), *found.points[1:]))

    def printed() -> str:
        with click.Context(click.Command("trace")):
            show_report(TraceReport(bad), COLOURS)
        return capsys.readouterr().out

    plain = printed()
    assert "\x1b" not in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert click.unstyle(printed()).split() == plain.split()
    assert "\x1b[31m█" in printed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed()


def test_all_layers_are_in_the_maps(found: Trace) -> None:
    maps = heatmap(found, 80).split("\n\n")
    rows = [line for part in maps for line in part.splitlines() if line.startswith("mixer_norm ")]
    assert sum(len(row.split()[1]) for row in rows) == 150
    assert len(heatmap(found).split("\n\n")) == 1


def test_csv_has_every_point_and_markdown_the_summary(found: Trace) -> None:
    points, budget = TraceReport(found).as_csv().split("\n\n")
    rows = list(csv.DictReader(io.StringIO(points)))
    assert [float(row["NMSE of this layer"]) for row in rows] == [point.local.nmse for point in found.points]
    assert found.budget
    assert budget.count("\n") == 1 + len(found.budget.tensors)
    text = TraceReport(found).as_markdown()
    assert text.startswith("```\nlocal error")
    assert "- reference: source" in text
    assert TraceReport(found).as_text(View(80, 80)) == text_of(found, View(80, 80))
