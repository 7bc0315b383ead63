"""A hub for a test, with the client of this process pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import use
from tests.hub.server import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub; the client's cache is `home/hub` in the test's folder."""
    with Hub() as made:
        use(made, monkeypatch, tmp_path / "home")
        yield made
