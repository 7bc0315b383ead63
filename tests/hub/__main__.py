"""Serve folders as repositories of a test hub, to try commands by hand: `python -m tests.hub FOLDER…`.

Each folder becomes the repository test/NAME-OF-THE-FOLDER. The token `hf_test` belongs to the user `test`.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from tests.hub.server import Hub


def main(folders: list[str]) -> None:
    """Serve until interrupted."""
    with Hub() as hub:
        hub.tokens["hf_test"] = "test"
        for folder in folders:
            name = f"test/{Path(folder).resolve().name}"
            print(f"{name} at commit {hub.add(name, Path(folder))}")
        print(f"export HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1 HF_HOME=/tmp/hf-test", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            for request in hub.requests:
                print(request.status, request.method, request.path, request.range or "", request.sent)


main(sys.argv[1:])
