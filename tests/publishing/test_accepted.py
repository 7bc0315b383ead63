"""The front matter that the hub accepts: what is kept, moved, or left out and told."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_tools.publishing.model_card.accepted import ISO_639_1, LICENSES, accepted
from gguf_tools.publishing.names import is_full_id, is_repo_id


@pytest.mark.parametrize(
    ("given", "kept", "told"),
    [
        ({"license": "apache-2.0"}, {"license": "apache-2.0"}, 0),
        ({"license": "MIT"}, {"license": "mit"}, 0),
        ({"license": "my-license-1.0"}, {"license": "other", "license_name": "my-license-1.0"}, 1),
        ({"license": "A license of mine"}, {"license": "other", "license_name": "a-license-of-mine"}, 1),
        (
            {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
            {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
            0,
        ),
        ({"license_name": "qwen"}, {"license": "other", "license_name": "qwen"}, 0),
        (
            {"license": "other", "license_name": "My Own License"},
            {"license": "other", "license_name": "my-own-license"},
            1,
        ),
        (
            {"license": "other", "license_link": "https://x.org/l"},
            {"license": "other", "license_link": "https://x.org/l"},
            0,
        ),
        ({"license": "other", "license_link": "docs/LICENSE"}, {"license": "other"}, 1),
        ({"license": "other", "license_link": "http://[x/"}, {"license": "other"}, 1),
        ({"license": "mit", "license_name": "mine", "license_link": "LICENSE"}, {"license": "mit"}, 0),
        ({"language": ["en", "code", "DE", "gsw"]}, {"language": ["en", "code", "de", "gsw"]}, 0),
        (
            {"language": ["pt-BR", "pt", "zh-Hans"]},
            {"language": ["pt", "zh"], "language_bcp47": ["pt-BR", "zh-Hans"]},
            0,
        ),
        ({"language": ["English", "xx", "x-y"]}, {}, 3),
        (
            {"base_model": "a/b", "base_model_relation": "quantized"},
            {"base_model": "a/b", "base_model_relation": "quantized"},
            0,
        ),
        ({"base_model": "a/b c", "base_model_relation": "quantized"}, {}, 1),
        (
            {"base_model": ["a/b", "/home/me/model"], "base_model_relation": "quantized"},
            {"base_model": ["a/b"], "base_model_relation": "quantized"},
            1,
        ),
        ({"datasets": ["squad", "a/b", "a/b", "a/b/c"]}, {"datasets": ["squad", "a/b"]}, 1),
    ],
)
def test_values(given: dict[str, Any], kept: dict[str, Any], told: int) -> None:
    found, notes = accepted(given)
    assert found == kept
    assert len(notes) == told
    bcp47 = found.pop("language_bcp47", None)
    assert accepted(found) == (found, ()), bcp47


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a/b",
            "b",
            "A-1/b_2.c",
            "a" * 96,
            "_a/b",
            "-a/b",
            "a/b-",
            "a/.b",
            "a/b.",
            "a--b/c",
            "a/b..c",
            "a/b.git",
            "a/b.gitx",
        ),
        *("a/b/c", "/b", "a/", "", "é/b", "a b/c", "a\n/b", "a" * 97, "a/" + "b" * 97),
    ],
)
def test_names_of_repositories_are_those_that_the_client_accepts(name: str) -> None:
    validators = pytest.importorskip("huggingface_hub.utils._validators")
    try:
        validators.validate_repo_id(name)
        right = True
    except ValueError:
        right = False
    assert is_repo_id(name) == right
    assert is_full_id(name) == (right and "/" in name)


def test_the_lists_have_what_everyone_uses() -> None:
    assert {"en", "zh", "de"} <= ISO_639_1
    assert all(len(code) == 2 for code in ISO_639_1)
    assert {"apache-2.0", "mit", "llama3.1", "gemma", "other"} <= LICENSES
