"""The pages for contributors show code that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_layout import ROOMS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "file"),
    [("adding-a-target.md", "gguf_tools/targets/qwen3.py"), ("adding-an-op.md", "surgery/ops/order.py")],
)
def test_the_change_that_a_page_shows_is_in_the_code(page: str, file: str) -> None:
    blocks = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        code = "\n".join(line.removeprefix("+") for line in block.rstrip().splitlines())
        assert code in (ROOT / file).read_text("utf-8")


def test_the_architecture_page_names_every_room_in_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`(\w+)/`", page.partition("## The packages")[2].partition("`surgery/` has")[0])
    assert [room for room in named if room in ROOMS] == list(ROOMS)
