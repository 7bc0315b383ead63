"""Pointing the `huggingface_hub` client at a test hub, with an empty cache and no token."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http, close_session

from tests.hub.server import Hub


def use(hub: Hub, patch: pytest.MonkeyPatch, home: Path) -> None:
    """Point the client of this process, and of processes that it starts, at `hub`, with `home` as HF_HOME.

    The client reads its environment when it is imported, so its constants are set too.
    """
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in environment.items():
        patch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        patch.delenv(name, raising=False)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HOME", str(home))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        patch.setattr(constants, name, str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(hub.url)}))
    patch.setattr(hf_api.api, "endpoint", hub.url)
    close_session()  # the environment's proxies are read when a session is made
