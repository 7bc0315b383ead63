"""The generated pages say what the code says; the README's table and links hold."""

from __future__ import annotations

import re
from pathlib import Path

from docs.api_page import api_page
from docs.architectures_page import architectures_page
from docs.families_table import README, readme
from docs.generate import (
    API_PAGE,
    ARCHITECTURES_PAGE,
    COMMANDS_PAGE,
    CONFORMANCE_PAGE,
    commands_page,
    conformance_page,
)

ROOT = Path(__file__).resolve().parents[2]


def test_commands_page() -> None:
    assert COMMANDS_PAGE.read_text("utf-8") == commands_page(), "run make docs"


def test_the_readmes_table_of_families() -> None:
    assert README.read_text("utf-8") == readme(), "run make docs"


def test_conformance_page() -> None:
    assert CONFORMANCE_PAGE.read_text("utf-8") == conformance_page(), "run make docs"


def test_api_page() -> None:
    assert API_PAGE.read_text("utf-8") == api_page(), "run make docs"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_architectures_page() -> None:
    assert ARCHITECTURES_PAGE.read_text("utf-8") == architectures_page(), "run make docs"
