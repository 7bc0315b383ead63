"""Which texts are names on the hub, and which names a path in its cache has."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id

from gguf_tools.sources.hub import HubName, cached_name, parse_name, shown_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3-0.6B", HubName("Qwen/Qwen3-0.6B")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        (f"org/name@{COMMIT}", HubName("org/name", COMMIT)),
        ("org/name@refs/pr/7", HubName("org/name", "refs/pr/7")),
        ("org/name/file.gguf", HubName("org/name", "main", "file.gguf")),
        ("org/name@dev/sub/file.Q8_0.gguf", HubName("org/name", "dev", "sub/file.Q8_0.gguf")),
        ("org/name@refs/pr/7/a.safetensors", HubName("org/name", "refs/pr/7", "a.safetensors")),
        ("a.b/c_d", HubName("a.b/c_d")),
    ],
)
def test_names(text: str, expected: HubName) -> None:
    assert parse_name(text) == expected
    validate_repo_id(expected.repository)


PATHS = (
    *("name", "/org/name", "./org/name", "../name", "org/name/", "org//name", "org/name/sub", "a/b/c/d", "org/name@"),
    *(
        "out/model.gguf",
        "org/name/../a.gguf",
        "org/a..b",
        "org/a--b",
        "org/-a",
        "org/a.",
        "org/na me",
        "a/b\n",
        "ünder/name",
    ),
)


@pytest.mark.parametrize("text", PATHS)
def test_other_texts_are_paths(text: str) -> None:
    assert parse_name(text) is None


def test_a_name_is_shown_as_it_is_given() -> None:
    for text in ("org/name", "org/name@v1", "org/name@v1/a.gguf", "org/name/a.gguf"):
        assert str(parse_name(text)) == text
    assert str(parse_name(f"org/name@{COMMIT}")) == f"org/name@{COMMIT[:12]}"


def test_a_path_in_the_cache_has_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name" / "snapshots" / COMMIT
    assert cached_name(folder) == HubName("org/name", COMMIT)
    assert cached_name(folder / "sub" / "a.gguf") == HubName("org/name", COMMIT, "sub/a.gguf")
    assert shown_source(folder / "a.gguf") == f"org/name@{COMMIT[:12]}/a.gguf"
    assert cached_name(tmp_path) is None
    assert cached_name(tmp_path / "models--org--name" / "blobs" / "x") is None
    assert shown_source(tmp_path) == str(tmp_path)
