"""Golden values against servers: llama-cpp-python's own, and the protocol of llama.cpp's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils.import_utils import is_serve_available

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden.read import GoldenFiles, read_golden_files
from gguf_tools.evaluation.golden.servers import by_text, check_server
from gguf_tools.evaluation.golden.write import write_golden
from gguf_tools.runtime.silence import silence_limit
from tests.evaluation.golden.conftest import Place
from tests.evaluation.trace.planting import planted
from tests.hub.faults import whole

WAIT = 120.0


@pytest.fixture(scope="module")
def bad_file(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(place.file, tmp_path_factory.mktemp("bad") / "bad.gguf", ("blk.1.attn_v.weight", np.negative))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def served(file: Path) -> Iterator[str]:
    """llama-cpp-python's server on a free port."""
    port = free_port()
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
    yield from running(command, f"http://127.0.0.1:{port}", "/v1/models")


def running(command: list[str], url: str, ready: str) -> Iterator[str]:
    """A server, from when it answers at `ready`, until the next step of the iteration."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        end = time.monotonic() + WAIT
        while True:
            try:
                opener.open(f"{url}{ready}", timeout=5).close()
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


LLAMA_SERVER = os.environ.get("TINYQ_LLAMA_SERVER") or shutil.which("llama-server")


@pytest.mark.skipif(not LLAMA_SERVER, reason="no llama-server on the PATH, or named by TINYQ_LLAMA_SERVER")
def test_llama_cpps_own_server(place: Place, bad_file: Path) -> None:
    """Token ids in, ids and log probabilities out; the same server with text; a prompt longer than its context."""
    golden = read_golden_files(place.golden)
    for file in (place.file, bad_file):
        port = free_port()
        command = [str(LLAMA_SERVER), "-m", str(file), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-c", "256", "-np", "1", "-t", "1", "-fit", "off"]
        for url in running(command, f"http://127.0.0.1:{port}", "/health"):
            found = check_server(golden, url, "")
            assert found.engine.startswith("llama.cpp's server")
            assert found.passed is (file is place.file), found.first
            assert len(found.compared) >= 2
            assert found.greedy == 19  # of the second prompt the server returned three
            if file is place.file:
                assert by_text(golden, url, "").passed
                with pytest.raises(InputError, match=r"refuses prompt 0 \(status 400: .*context"):
                    check_server(with_long_prompt(golden), url, "")
            else:
                assert found.first
                assert found.first.point == "logits"


def with_long_prompt(golden: GoldenFiles) -> GoldenFiles:
    """The same with a first prompt of 300 tokens."""
    first = replace(golden.prompts[0], tokens=(3,) * 300)
    return replace(golden, prompts=(first, *golden.prompts[1:]))


@pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs openai, which is not in the test extra")
def test_transformers_serve(place: Place, tmp_path: Path) -> None:
    """It returns no log probabilities, so that its greedy text is compared."""
    source, folder, port = tmp_path / "source", tmp_path / "golden", free_port()
    shutil.copytree(place.source, source)
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3MoeForCausalLM"]}), "utf-8")
    folder.mkdir()
    write_golden(source, folder, texts=["Once upon a time"])
    golden = read_golden_files(folder)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(source)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    for url in running(command, f"http://127.0.0.1:{port}", "/health"):
        found = check_server(golden, url, str(source))
        assert found.passed, found.first
        assert found.notes[0].startswith("compared: the greedy text after prompt 0")
        assert not check_server(with_continuation(golden, "something else"), url, str(source)).passed


def with_continuation(golden: GoldenFiles, text: str | None) -> GoldenFiles:
    """The same with this text after each prompt."""
    return replace(golden, prompts=tuple(replace(one, text="Once", continuation=text) for one in golden.prompts))


class OfText(BaseHTTPRequestHandler):
    """Answers of servers that take text: OpenAI's form, the one of llama.cpp's server, and that of transformers serve."""

    golden: Any = None
    form = ""
    said = " upon a time"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self.answer(404, {"error": {"message": "File Not Found"}})
            return
        row = self.golden.arrays["logits_0"][-1].astype(np.float64)
        logs = np.sort(row - row.max() - np.log(np.exp(row - row.max()).sum()))[::-1][: body["logprobs"]]
        content = [{"top_logprobs": [{"id": n, "token": "?", "logprob": value} for n, value in enumerate(logs)]}]
        forms = {
            "openai": {"top_logprobs": [{str(n): value for n, value in enumerate(logs)}]},
            "llama.cpp": {"content": content},
            "within a character": {"content": []},
            "transformers": None,
        }
        self.answer(200, {"choices": [{"text": self.said[: 3 * body["max_tokens"]], "logprobs": forms[self.form]}]})

    def answer(self, status: int, content: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.mark.parametrize("form", ["openai", "llama.cpp", "within a character", "transformers"])
def test_servers_that_take_text(place: Place, form: str) -> None:
    golden = read_golden_files(place.golden)
    one = replace(golden, prompts=golden.prompts[:1])
    handler = type("Handler", (OfText,), {"golden": golden, "form": form})
    for url in serving(handler):
        found = check_server(with_continuation(one, " upon a t"), url, "")
        assert found.passed, found.first
        assert ("the greedy text" in found.notes[0]) is (form in ("within a character", "transformers"))
        if form == "transformers":
            found = check_server(with_continuation(one, " upon a hill"), url, "")
            assert found.first
            assert found.first.point == "text"
            assert "' upon a hill' from character 0" in found.first.expected
            with pytest.raises(InputError, match="returns no log probabilities"):
                check_server(with_continuation(one, None), url, "")


def test_a_server_that_refuses(place: Place) -> None:
    """What llama.cpp's server says to a prompt beyond its context."""
    message = "the request exceeds the available context size, try increasing it"

    class Refusing(OfText):
        def do_POST(self) -> None:
            self.answer(400, {"error": {"code": 400, "message": message, "type": "exceed_context_size_error"}})

    for url in serving(Refusing):
        with pytest.raises(InputError, match=rf"refuses prompt 0 \(status 400: {message}\)"):
            check_server(read_golden_files(place.golden), url, "")


def serving(handler: Any) -> Iterator[str]:
    """A server in this process, until the next step of the iteration."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
    for url in serving(handler):
        found = check_server(golden, url, "")
        assert found.passed is not bool(offset)
        assert found.greedy == 19  # of the second prompt the server returned three
        assert len(found.compared) == 2
        assert any("no log probabilities after prompt 2" in note for note in found.notes)


def test_no_server_answers(place: Place) -> None:
    golden = read_golden_files(place.golden)
    with pytest.raises(InputError, match="no server answers"):
        check_server(golden, "http://127.0.0.1:9", "")
    with pytest.raises(InputError, match="no address of a server"):
        check_server(golden, "file:///etc/passwd", "")


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://u@127.0.0.1",
        "http://a b",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://[::1",
        "http://127.0.0.1:1/?x",
        "http://\x1b",
        "ftp://x",
    ],
)
def test_an_address_that_no_request_can_be_sent_to(place: Place, url: str) -> None:
    with pytest.raises(InputError, match="address"):
        check_server(read_golden_files(place.golden), url, "")


@pytest.mark.parametrize("port", [":1", ":0", ":99999", ":1/?x"])
def test_the_password_in_an_address_is_not_shown(place: Place, port: str) -> None:
    with pytest.raises(InputError, match="user name") as caught:
        check_server(read_golden_files(place.golden), f"http://user:secret@127.0.0.1{port}", "")
    assert "secret" not in str(caught.value)


class Raw:
    """A server that sends given pieces to every request, and what it was asked for."""

    def __init__(self, *pieces: bytes, pause: float = 0.0) -> None:
        self.asked: list[bytes] = []
        self._pieces, self._pause = pieces, pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self.asked.append(connection.recv(1 << 16).split(b"\r\n")[0])
            for piece in self._pieces:
                connection.sendall(piece)
                time.sleep(self._pause)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


START = b"HTTP/1.1 200 OK\r\n"
IDS = '{"completion_probabilities": [{"top_logprobs": [{"id": %s, "logprob": -1}]}], "tokens": [%s]}'


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (bytes(range(256)), "no server answers"),
        (b"hello\n", "no server answers"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "no server answers"),
        (b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n", "no server answers"),
        (START + b"X: y\r\n" * 101 + b"\r\n", "no server answers"),
        (START + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "no server answers"),
        (START + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{}", "no server answers"),
        (b"HTTP/1.1 100 Continue\r\n\r\nabc", "no server answers"),
        (
            whole(b"", "302 X", "Location: http://127.0.0.1:1/\r\n"),
            "redirects to http://127.0.0.1:1/; give the address",
        ),
        (whole(b"", "307 X", "Location: file:///etc/passwd\r\n"), "redirects to file:///etc/passwd"),
        (whole(b"[" * 100_000), "returned no completion"),
        (whole((IDS % ("Infinity", "1")).encode()), "answers without ids"),
        (whole((IDS % ("1", "-Infinity")).encode()), "answers without ids"),
        (whole((IDS % ("999999999", "1")).encode()), "ids outside the vocabulary"),
        (whole((IDS % ("1", "999999999")).encode()), "ids outside the vocabulary"),
        (whole(b'{"completion_probabilities": [], "tokens": [], "stop_type": "eos"}'), "answers without ids"),
        (whole(b'{"choices": [{"text": "a", "logprobs": {"top_logprobs": [{}]}}]}'), "returns no log probabilities"),
        (START + b"\r\n" + b" " * ((64 << 20) + 1), "has more than 64 MiB"),
    ],
)
def test_answers_that_are_none(place: Place, answer: bytes, error: str) -> None:
    golden = with_continuation(read_golden_files(place.golden), None)
    with Raw(answer) as server, pytest.raises(InputError, match=re.escape(error)):
        check_server(golden, server.url, "")
    assert all(line.startswith(b"POST ") for line in server.asked)


@pytest.mark.parametrize("pieces", [(START, *[b"X: y\r\n"] * 99), (b"HTTP/1.1 100 Continue\r\n\r\n",) * 99])
def test_a_server_that_sends_a_little_now_and_then_is_not_waited_for(place: Place, pieces: tuple[bytes, ...]) -> None:
    """Each piece comes within the socket's timeout."""
    with Raw(*pieces, pause=0.1) as server, silence_limit(0.3), pytest.raises(InputError, match=r"within 0\.3 s"):
        check_server(read_golden_files(place.golden), server.url, "")


def test_log_probabilities_that_are_not_the_largest_differ(place: Place) -> None:
    golden = read_golden_files(place.golden)
    logs = golden.arrays["logits_0"][-1].astype(np.float64)
    logs -= logs.max() + np.log(np.exp(logs - logs.max()).sum())
    token = int(logs.argmin())
    top = {"completion_probabilities": [{"top_logprobs": [{"id": token, "logprob": float(logs[token])}]}]}
    body = json.dumps({**top, "tokens": list(golden.prompts[0].greedy)}).encode()
    with Raw(whole(body)) as server:
        found = check_server(replace(golden, prompts=golden.prompts[:1]), server.url, "")
    assert found.first
    assert "as number 1 by size" in found.first.expected
