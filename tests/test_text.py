"""Numbers and tables as people read them."""

from __future__ import annotations

import pytest

from gguf_tools.text import human_bytes, human_count, markdown_table, one_line, table


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_350_000, "4.3 MB"), (1.2e9, "1.2 GB"), (5e13, "50000.0 GB")],
)
def test_bytes(count: float, expected: str) -> None:
    assert human_bytes(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(950, "950"), (2_133_880, "2.1 M"), (1.7e9, "1.7 B"), (3e12, "3000.0 B")]
)
def test_counts(count: float, expected: str) -> None:
    assert human_count(count) == expected


def test_tables() -> None:
    head, rows = ("name", "n"), [("a", "5"), ("bcdef", "12")]
    assert table(head, rows).splitlines() == ["name    n", "─────  ──", "a       5", "bcdef  12"]
    assert table(head, rows, "><").splitlines()[2:] == ["    a  5", "bcdef  12"]
    assert markdown_table(head, rows) == "| name | n |\n| :--- | ---: |\n| a | 5 |\n| bcdef | 12 |\n"
    assert markdown_table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_one_line() -> None:
    assert one_line(" a\n# `b`\t c ") == "a # 'b' c"
