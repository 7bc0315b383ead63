"""Tiny checkpoints of the custom families, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools.families.registry import family_named

Made = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(family, variant) → the folder of its tiny checkpoint, which must not be changed."""
    done: dict[tuple[str, str], Path] = {}

    def make(family: str, variant: str) -> Path:
        if (family, variant) not in done:
            folder = tmp_path_factory.mktemp("custom") / "tiny"
            write = family_named(family).tiny
            assert write
            write(folder, variant, 1)
            done[family, variant] = folder
        return done[family, variant]

    return make
