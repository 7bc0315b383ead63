"""llama-cpp-python missing or too old: which version is needed, and for what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from quant import ggml, installed
from quant.errors import LlamaError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    installed.require_llama_cpp.cache_clear()
    yield
    installed.require_llama_cpp.cache_clear()


def test_the_version_is_the_one_that_the_package_asks_for() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    match = re.search(r'"llama-cpp-python>=([\d.]+)"', text)
    assert match
    assert match[1] == ".".join(map(str, installed.OLDEST))


def test_what_is_installed_here_will_do() -> None:
    installed.require_llama_cpp("run tests")


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda _: None)
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    with pytest.raises(LlamaError) as caught:
        ggml.library_folder()
    assert str(caught.value) == (
        "llama-cpp-python is not installed; 0.3.36 or later is needed to encode and decode quantized weights; run "
        "`pip install 'llama-cpp-python>=0.3.36'`"
    )


@pytest.mark.parametrize("found", ["0.2.90", "0.3.35", "0.3", "0.3.9"])
def test_too_old(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: found)
    with pytest.raises(
        LlamaError, match=rf"llama-cpp-python {found} is too old; 0\.3\.36 or later is needed to run GGUF"
    ):
        installed.require_llama_cpp("run GGUF files")


@pytest.mark.parametrize("found", ["0.3.36", "0.3.37+cu124", "0.4", "1.0.0rc1"])
def test_new_enough(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: found)
    installed.require_llama_cpp("run GGUF files")


def test_built_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", none)
    installed.require_llama_cpp("run GGUF files")
