"""The process that runs llama.cpp: `python -m gguf_tools.runtime.worker PARENT THREAD`, started by `Runtime`.

Requests arrive on stdin, and answers are written to the original stdout; all other output, by Python or C code, goes to
stderr, which the parent has redirected to a log file. The process ends when its stdin ends or its parent dies, also during a
computation (which releases the GIL), so that no worker outlives its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from io import FileIO
from queue import SimpleQueue
from typing import Any

import numpy as np

from gguf_tools.errors import LlamaError
from gguf_tools.runtime.channel import Array, ChannelClosedError, Frame, begin, read_frame, write_frame

_WATCH_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1
_PROGRESS_SECONDS = 0.1

_KEEP_CONTINUATION = ("read", "next", "tokenize", "detokenize", "render")
"""Requests that leave the engine's context as it is."""

Answer = tuple[dict[str, Any], Array | None]


def main() -> None:
    """Serve requests until the channel closes."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # handled by the parent, which kills this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.argv[2] == "main":
        _die_with_parent()
    requests = FileIO(os.dup(0), "rb")
    answers = FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(ChannelClosedError):  # which the answer to the first request notices too
        begin(answers)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    queue: SimpleQueue[Frame] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, queue), daemon=True).start()
    if os.name == "posix":  # on other systems getppid does not change when the parent dies
        threading.Thread(target=_watch, args=(int(sys.argv[1]),), daemon=True).start()
    serve = _Service(answers).serve
    while True:
        frame = queue.get()
        try:
            header, array = serve(frame)
        except LlamaError as error:  # llama.cpp failed; its log has the cause
            header, array = {"kind": "error", "message": str(error)}, None
        except Exception as error:
            traceback.print_exc()
            header, array = {"kind": "error", "message": f"{type(error).__name__}: {error}"}, None
        try:
            write_frame(answers, header, array)
        except ChannelClosedError:
            os._exit(0)


def _listen(requests: FileIO, queue: SimpleQueue[Frame]) -> None:
    """Queue the requests; end the process when stdin is closed."""
    try:
        while True:
            queue.put(read_frame(requests))
    except ChannelClosedError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even if it is suspended or its threads cannot run.

    Linux only. The kernel kills it when the *thread* that started it ends, so this is used only if the parent's main thread
    did; `_watch` covers the other cases.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _watch(parent: int) -> None:
    """End the process when its parent has died.

    stdin usually ends then too, but not while another child of the parent keeps the other end of the pipe open.
    """
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(0)


class _Service:
    def __init__(self, answers: FileIO) -> None:
        self._answers = answers
        self._engine: Any = None  # Engine; imported by `_load`, so that a failing import is reported as an answer
        self._continuation: Any = None  # Continuation
        self._told = 0.0

    def serve(self, frame: Frame) -> Answer:
        """The answer to one request, by the handler of its `op`."""
        handlers: dict[str, Callable[[dict[str, Any], Any], Answer]] = {
            "load": self._load,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "render": self._render,
            "logits": self._logits,
            "block_size": self._block_size,
            "block": self._block,
            "greedy": self._greedy,
            "read": self._read,
            "next": self._next,
            "log_likelihoods": self._log_likelihoods,
            "speed": self._speed,
            "reserve": self._reserve,
            "activations": self._activations,
            "layer_changes": self._layer_changes,
            "nodes": self._nodes,
            "exchange": self._exchange,
            "intermediates": self._intermediates,
        }
        if frame.header["op"] not in _KEEP_CONTINUATION:
            self._end_continuation()
        return handlers[frame.header["op"]](frame.header, frame.array)

    def _progress(self, done: int, total: int) -> None:
        """Report progress to the parent, which displays it and kills a worker that reports none for too long."""
        now = time.monotonic()
        if now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            write_frame(self._answers, {"kind": "progress", "done": done, "total": total})

    def _load(self, header: dict[str, Any], _: Any) -> Answer:
        from gguf_tools.runtime.engine import Engine

        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._engine = Engine(header["path"], header["options"], self._progress)
        return {"kind": "info", "info": self._engine.info()}, None

    def _tokenize(self, header: dict[str, Any], _: Any) -> Answer:
        text = header["text"].encode("utf-8")
        ids = self._engine.tokenize(text, header["add_special"], header["parse_special"])
        return {"kind": "tokens"}, np.array(ids, dtype=np.int32)

    def _detokenize(self, header: dict[str, Any], array: Any) -> Answer:
        return {"kind": "text", "text": self._engine.detokenize(array.tolist(), header["special"])}, None

    def _render(self, header: dict[str, Any], _: Any) -> Answer:
        from gguf_tools.runtime.chat import TemplateRefusalError, render

        try:
            return {"kind": "text", "text": render(**header["request"])}, None
        except TemplateRefusalError as error:
            return {"kind": "refused", "message": str(error)}, None

    def _logits(self, header: dict[str, Any], array: Any) -> Answer:
        return {"kind": "logits"}, self._engine.logits(array, header["context"], self._progress)

    def _block_size(self, header: dict[str, Any], _: Any) -> Answer:
        return {"kind": "block_size", "size": self._engine.block_size(header["context"])}, None

    def _block(self, header: dict[str, Any], array: Any) -> Answer:
        return {"kind": "block"}, self._engine.block(array, header["start"], header["context"])

    def _greedy(self, header: dict[str, Any], array: Any) -> Answer:
        from gguf_tools.runtime.generation import Ends, greedy

        prompts = np.split(array, np.cumsum(header["lengths"])[:-1])
        ends = Ends(frozenset(header["stop"]), tuple(header["until"]))
        tokens, margins = greedy(self._engine, prompts, header["n_tokens"], ends, header["context"], self._progress)
        return {"kind": "greedy", "tokens": tokens, "margins": margins}, None

    def _log_likelihoods(self, header: dict[str, Any], array: Any) -> Answer:
        from gguf_tools.runtime.likelihood import log_likelihoods
        from gguf_tools.runtime.prefix_plan import Request

        tokens = np.split(array, np.cumsum(header["lengths"])[:-1])
        requests = [Request(ids, scored) for ids, scored in zip(tokens, header["scored"], strict=True)]
        sums, greedy = log_likelihoods(self._engine, requests, self._progress)
        return {"kind": "log_likelihoods", "sums": sums, "greedy": greedy}, None

    def _end_continuation(self) -> None:
        if self._continuation is not None:
            self._continuation.end()
            self._continuation = None

    def _read(self, header: dict[str, Any], array: Any) -> Answer:
        """Answers whether the tokens were read: not if the sequence is not there, or its state cannot go back to `start`."""
        from gguf_tools.runtime.continuation import Continuation

        if header["start"] == 0:
            self._end_continuation()
            self._continuation = Continuation(self._engine, header["context"])
        done = self._continuation is not None and self._continuation.read(header["start"], array)
        return {"kind": "read", "done": done}, None

    def _next(self, header: dict[str, Any], _: Any) -> Answer:
        if self._continuation is None:
            raise LlamaError("no sequence has been read that could be continued")
        if header["sampling"] is not None:
            self._continuation.begin(header["sampling"])
        return {"kind": "token", "token": self._continuation.next(header["previous"])}, None

    def _speed(self, header: dict[str, Any], _: Any) -> Answer:
        reading, writing = self._engine.speed(
            header["n_prompt"], header["n_generate"], header["repeat"], self._progress
        )
        return {"kind": "speed", "prompt_tok_s": reading, "generate_tok_s": writing}, None

    def _reserve(self, header: dict[str, Any], _: Any) -> Answer:
        self._engine.reserve(header["context"])
        return {"kind": "done"}, None

    def _activations(self, header: dict[str, Any], array: Any) -> Answer:
        tensors, sums = self._engine.activations(array, header["lengths"], header["process_output"], self._progress)
        return {"kind": "activations", "tensors": tensors}, sums

    def _layer_changes(self, header: dict[str, Any], array: Any) -> Answer:
        return {"kind": "layers", **self._engine.layer_changes(array, header["lengths"], self._progress)}, None

    def _nodes(self, _: dict[str, Any], array: Any) -> Answer:
        return {"kind": "nodes", "nodes": self._engine.nodes(array)}, None

    def _intermediates(self, header: dict[str, Any], array: Any) -> Answer:
        records, flat = self._engine.intermediates(array, header["names"], header["step"], self._progress)
        return {"kind": "intermediates", "records": records}, flat

    def _exchange(self, header: dict[str, Any], array: Any) -> Answer:
        """Answers with the nodes that were read and the logits; asked with the tokens (as floats) and the new values."""
        count = header["tokens"]
        tokens = array[:count].astype(np.int32)
        places, sizes = header["write"], header["sizes"]
        parts = np.split(array[count:], np.cumsum(sizes)[:-1]) if places else []
        found, logits = self._engine.exchange(tokens, header["read"], dict(zip(places, parts, strict=True)))
        kept = [found[place].reshape(-1) for place in header["read"]]
        return {"kind": "values", "sizes": [part.size for part in kept]}, np.concatenate([*kept, logits.reshape(-1)])


if __name__ == "__main__":
    main()
