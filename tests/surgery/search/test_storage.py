"""Two processes on one PostgreSQL share a study: a server of its own is started for the test."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.surgery.search.search_files import environment, search_line

pytest.importorskip("optuna")
pytest.importorskip("psycopg")


def _binary(name: str) -> str:
    """A program of PostgreSQL, also where Debian keeps it; skips the test where it is not installed."""
    places = [str(place) for place in Path("/usr/lib/postgresql").glob("*/bin")]
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if found is None:
        pytest.skip(f"{name} of PostgreSQL is not installed")
    return found


def _as_user() -> list[str]:
    """How a command is run by someone who is not root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not installed")
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a database of a new server on loopback."""
    initdb, postgres = _binary("initdb"), _binary("postgres")
    as_user = _as_user()
    # A path of its own, as sockets have short names, and other users cannot enter pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="tinyq-postgres-"))
    if as_user:
        os.chown(folder, 65534, 65534)
    variables = {**os.environ, "HOME": str(folder)}
    try:
        init = [*as_user, initdb, "--auth=trust", "--username=tinyq", "--no-sync", "--pgdata", str(folder / "data")]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, env=variables, cwd="/")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line = [*as_user, postgres, "-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-F"]
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=variables, cwd="/") as running:
            assert running.stderr is not None
            for said in running.stderr:
                if "ready to accept connections" in said:
                    break
            yield f"postgresql://tinyq@127.0.0.1:{port}/postgres"
            running.terminate()
    finally:
        shutil.rmtree(folder)


def test_two_workers_share_a_study_on_postgresql(server: str, tmp_path: Path) -> None:
    """Both come to the same leaderboard, no candidate is measured twice, and it is that of a worker alone."""

    def command(storage: str, name: str) -> list[str]:
        line = search_line(tmp_path, "--strategy", "single", "--storage", storage, "--json", tmp_path / name)
        return [sys.executable, "-m", "gguf_tools", *line]

    workers = [subprocess.Popen(command(server, f"{n}.json"), cwd=tmp_path, env=environment()) for n in range(2)]
    try:
        assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    subprocess.run(command(str(tmp_path / "alone.db"), "alone.json"), cwd=tmp_path, env=environment(), check=True)
    one, two, alone = (_plain(tmp_path / f"{name}.json") for name in ("0", "1", "alone"))
    assert one == two
    assert one == alone


def _plain(path: Path) -> dict[str, Any]:
    """A report with its candidates in the order of their recipes."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    found["trials"].sort(key=lambda trial: str(trial["recipe"]))
    return found
