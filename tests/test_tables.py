"""Tables at every width: nothing is lost but what is named, and no line is longer than asked."""

from __future__ import annotations

import csv
import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.tables import Column, Facts, Lines, Report, Table, View, markdown_table, terminal_view, text_table
from gguf_tools.text import cut_middle, cut_start, distinct, printable, shown_width, wrapped

WORDS = st.text(st.sampled_from("abc XYZ-_/.大é\u0301🔬"), max_size=40)
NAME = Column("name", left=True, key=True, least=12)
COLUMNS = (
    NAME,
    Column("size in bytes", "{:,}".format),
    Column("error", "{:.2e}".format, rank=1),
    Column("why it is so", left=True, rank=2, least=16, wrap=True),
)


@given(
    st.lists(st.tuples(WORDS, st.integers(0, 10**9), st.floats(0, 1), WORDS), min_size=1, max_size=4),
    st.integers(40, 130),
)
def test_no_line_is_wider_than_asked_and_every_value_is_there(
    rows: list[tuple[str, int, float, str]], width: int
) -> None:
    text = Table(COLUMNS, rows).text(View(width))
    assert max(map(shown_width, text.split("\n"))) <= width
    for _, size, error, _ in rows:
        assert f"{size:,}" in text
        assert f"{error:.2e}" in text


@given(st.text(max_size=60), st.integers(3, 30))
def test_texts_are_cut_and_broken_to_their_width(text: str, width: int) -> None:
    clean = printable(text)
    assert shown_width(cut_middle(clean, width)) <= width
    assert shown_width(cut_start(clean, width)) <= width
    assert clean.endswith(cut_start(clean, width).removeprefix("…"))
    lines = wrapped(clean, width)
    assert all(shown_width(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(clean.split())


def test_a_table_that_fits_is_whole() -> None:
    lines = text_table(("name", "n"), [("a", "5"), ("bcdef", "12")]).splitlines()
    assert lines == ["name    n", "─────  ──", "a       5", "bcdef  12"]
    assert text_table(("name", "n"), [("a", "5")], "><").splitlines()[2:] == ["   a  5"]


def test_headings_break_before_columns_move() -> None:
    columns = (NAME, Column("prompt tok/s"), Column("generate tok/s"))
    assert Table(columns, [("a", 1, 2)]).text(View(24)).splitlines() == [
        "      prompt  generate",
        "name   tok/s     tok/s",
        "────  ──────  ────────",
        "a          1         2",
    ]


def test_columns_of_less_importance_move_to_a_second_table() -> None:
    columns = (NAME, Column("later", rank=1), Column("first"))
    rows = [("a" * 9, "1" * 8, "2" * 8)]
    first, second = Table(columns, rows).text(View(24)).split("\n\n")
    assert [first.split()[:2], second.split()[:2]] == [["name", "first"], ["name", "later"]]
    assert second.endswith("aaaaaaaaa  11111111")
    assert "\n\n" not in Table(columns, rows).text(View(None))


def test_of_long_tables_they_are_left_out_and_named() -> None:
    rows = [(f"row {n}", "1" * 9, "2" * 9) for n in range(30)]
    text = Table((NAME, Column("first"), Column("later", rank=1)), rows).text(View(24))
    assert text.splitlines()[-1] == "not shown for want of width: later (--wide shows all columns)"
    assert len(text.splitlines()) == 33


def test_a_column_without_values_is_not_shown() -> None:
    columns = (NAME, Column("never"), Column("once"))
    text = Table(columns, [("a", None, 1), ("b", None, None)]).text()
    assert text.splitlines() == ["name  once", "────  ────", "a        1", "b        –"]
    assert "never" not in Table(columns, [("a", None, 1)]).markdown()
    assert Table(columns, []).text().split()[:3] == ["name", "never", "once"]


def test_cut_names_stay_different() -> None:
    assert cut_middle("Qwen3-1.7B-surgery-q4_k_m.gguf", 20) == "Qwen3-1.7B…_k_m.gguf"
    names = [f"a-long-prefix-of-all-{kind}-and-a-long-suffix-too.gguf" for kind in ("q4_0", "q8_0")]
    assert distinct(names, 16) == ["…-all-q4_0-and…", "…-all-q8_0-and…"]
    text = Table((NAME, Column("n" * 20)), [(name, 1) for name in names]).text(View(36))
    assert "q4_0" in text
    assert "q8_0" in text
    both = [f"{a}{'-' * 60}{b}" for a in "12" for b in "34"]
    rows = Table((NAME, Column("n" * 20)), [(name, 1) for name in both]).text(View(36)).split("─\n", 1)[1]
    assert len({"".join(row.split()) for row in rows.split(" 1")}) >= 4


def test_more_rows_are_counted() -> None:
    rows = [(str(n), n) for n in range(9)]
    table = Table((NAME, Column("n")), rows, most=2)
    assert table.text().splitlines()[-1] == "… and 7 more (--json lists all)"
    assert len(table.csv().splitlines()) == 10


def test_csv_has_the_values_and_markdown_what_is_shown() -> None:
    columns = (NAME, Column("size", "{:.1f}".format), Column("share", lambda pair: "{}/{}".format(*pair)))
    table = Table(columns, [('x|"y"\n<b>', 1.23456, (3, 4)), ("z", None, None)])
    assert list(csv.reader(io.StringIO(table.csv()))) == [
        ["name", "size", "share"],
        ['x|"y"\\n<b>', "1.23456", "3/4"],
        ["z", "", ""],
    ]
    assert table.markdown().splitlines()[2] == '| x\\|"y"\\\\n\\<b> | 1.2 | 3/4 |'
    assert markdown_table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_sentences_are_broken_for_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 30
    report = Report([Facts([("note", long.strip())]), Lines(long.strip()), Lines("─" * 100, fixed=True)])
    assert report.as_text(View(80)).count("\n") == 2
    text = report.as_text(View(80, 80)).splitlines()
    assert [len(line) for line in text[-1:]] == [100]
    assert all(len(line) <= 80 for line in text[:-1])
    assert text[1].startswith(" " * 10 + "word")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal_view().prose is None
    assert terminal_view(wide=True) == View(None, None)
    monkeypatch.setenv("COLUMNS", "120")
    assert terminal_view() == View(120, 120)
    monkeypatch.setenv("COLUMNS", "3")
    assert terminal_view() == View(20, 20)
