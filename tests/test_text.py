"""Numbers and tables as people read them."""

from __future__ import annotations

import json

import pytest

from gguf_tools.tables import Column, Facts, Lines, Table
from gguf_tools.text import as_json, first_line, human_bytes, human_count, one_line, printable


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


def test_one_line() -> None:
    assert one_line(" a\n# `b`\t c ") == "a # 'b' c"


HOSTILE = "<b>\x1b[2J\r\n\x9b\u2028\u202e\udcff&\t"
ESCAPED = "<b>\\x1b[2J\\r\\n\\x9b\\u2028\\u202e\\udcff&\\t"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n one\ntwo", "one"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("x" * 160, "x" * 160),
        ("x" * 161, "x" * 159 + "…"),
    ],
)
def test_the_first_line_of_an_error(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


def test_control_characters_are_escaped_and_others_stay() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable("Größe 大 é\u0301 👩\u200d🔬 ×") == "Größe 大 é\u0301 👩\u200d🔬 ×"


def test_blocks_escape_whatever_they_hold() -> None:
    blocks = [
        Facts([(HOSTILE, HOSTILE)]),
        Table((Column(HOSTILE), Column("n")), [(HOSTILE, HOSTILE)]),
        Lines(HOSTILE.replace("\n", "")),
    ]
    for block in blocks:
        text, html = block.text(), block.html()
        assert all(line == printable(line) for line in (*text.split("\n"), *html.split("\n")))
        html.encode("utf-8")
        assert "<b>" in text
        assert "<b>" not in html
        assert "&lt;b&gt;\\x1b[2J" in html
        assert "&amp;" in html


def test_blocks_as_text() -> None:
    assert Facts([("a", "1"), ("longer than nine", "2")]).text() == "a         1\nlonger than nine 2"
    assert (Lines("a\nb").text(), Lines().text(), Lines().html()) == ("a\nb", "", "")


def test_as_json_is_what_json_gives_back() -> None:
    value = {"a": (1, (2, None)), 3: [{"b": frozenset({"y", "x"})}], "c": "text"}
    found = as_json(value)
    assert found == {"a": [1, [2, None]], "3": [{"b": ["x", "y"]}], "c": "text"}
    assert json.loads(json.dumps(found)) == found
