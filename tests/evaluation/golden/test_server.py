"""Golden values against servers: llama-cpp-python's own, and the protocol of llama.cpp's."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden.engines import check_server
from gguf_tools.evaluation.golden.read import read_golden_files
from tests.evaluation.golden.conftest import Place
from tests.evaluation.trace.planting import planted

WAIT = 120.0


@pytest.fixture(scope="module")
def bad_file(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(place.file, tmp_path_factory.mktemp("bad") / "bad.gguf", ("blk.1.attn_v.weight", np.negative))


def served(file: Path) -> Iterator[str]:
    """llama-cpp-python's server on a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(file),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--logits_all", "true", "--n_ctx", "256", "--n_threads", "1", "--verbose", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        end = time.monotonic() + WAIT
        while True:
            try:
                opener.open(f"{url}/v1/models", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def test_llama_cpp_pythons_server(place: Place, bad_file: Path) -> None:
    pytest.importorskip("uvicorn")
    golden = read_golden_files(place.golden)
    for url in served(place.file):
        found = check_server(golden, url, "model")
        assert found.passed, found.first
        assert len(found.compared) == 1
        assert any("have no text" in note for note in found.notes)
    for url in served(bad_file):
        found = check_server(golden, url, "model")
        assert found.first
        assert found.first.point == "logits"


class Answers(BaseHTTPRequestHandler):
    """The answer of llama.cpp's `/completion` with `n_probs`, from golden values plus an offset.

    As in its `process_token`, the second prompt's continuation ends with an end-of-text token, and the third's first token is a
    part of a character, of which there are no log probabilities.
    """

    golden: Any = None
    offset = 0.0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        n = next(n for n, one in enumerate(self.golden.prompts) if list(one.tokens) == body["prompt"])
        row = self.golden.arrays[f"logits_{n}"][-1].astype(np.float64)
        logs = row - row.max() - np.log(np.exp(row - row.max()).sum()) + self.offset
        top = [{"id": int(i), "token": "?", "logprob": float(logs[i])} for i in np.argsort(-logs)[: body["n_probs"]]]
        ids = self.golden.prompts[n].greedy[: min(body["n_predict"], 3 if n == 1 else 99)]
        steps = [{"id": i, "logprob": -1.0, "top_logprobs": top} for i in ids]
        answer = {"content": "", "tokens": ids, "stop_type": "eos" if len(ids) < body["n_predict"] else "limit"}
        answer |= {"completion_probabilities": steps} if n != 2 else {}
        assert body["return_tokens"]
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_the_protocol_of_llama_cpps_server(place: Place, offset: float) -> None:
    golden = read_golden_files(place.golden)
    handler = type("Handler", (Answers,), {"golden": golden, "offset": offset})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        found = check_server(golden, f"http://127.0.0.1:{server.server_port}", "")
        assert found.passed is not bool(offset)
        assert found.greedy == 24
        assert len(found.compared) == 2
        assert any("no log probabilities after prompt 2" in note for note in found.notes)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_no_server_answers(place: Place) -> None:
    golden = read_golden_files(place.golden)
    with pytest.raises(InputError, match="no server answers"):
        check_server(golden, "http://127.0.0.1:9", "")
    with pytest.raises(InputError, match="no address of a server"):
        check_server(golden, "file:///etc/passwd", "")
