"""The process that llama.cpp runs in: `python -m gguf_tools.runtime.worker PARENT THREAD`, started by `runtime`.

Requests come on stdin and answers leave on what stdout was at the start; everything else that is printed, by Python or
by C code, goes to stderr, which the parent has pointed at a log file. The process ends when its stdin ends or its
parent is gone, also in the midst of a computation (which runs outside of Python's lock), so none is ever left behind.
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
from gguf_tools.runtime.channel import Array, ChannelClosedError, Frame, read_frame, write_frame

_WATCH_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1
_PROGRESS_SECONDS = 0.1

Answer = tuple[dict[str, Any], Array | None]


def main() -> None:
    """Serve requests until the channel closes."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the parent's to handle; it kills this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.argv[2] == "main":
        _die_with_parent()
    requests = FileIO(os.dup(0), "rb")
    answers = FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    queue: SimpleQueue[Frame] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, queue), daemon=True).start()
    if os.name == "posix":  # elsewhere a parent's id does not change with its death
        threading.Thread(target=_watch, args=(int(sys.argv[1]),), daemon=True).start()
    serve = _Service(answers).serve
    while True:
        frame = queue.get()
        try:
            header, array = serve(frame)
        except LlamaError as error:  # llama.cpp said no; its log has the reason
            header, array = {"kind": "error", "message": str(error)}, None
        except Exception as error:
            traceback.print_exc()
            header, array = {"kind": "error", "message": f"{type(error).__name__}: {error}"}, None
        try:
            write_frame(answers, header, array)
        except ChannelClosedError:
            os._exit(0)


def _listen(requests: FileIO, queue: SimpleQueue[Frame]) -> None:
    """Queue the requests; end the process when there can be no more."""
    try:
        while True:
            queue.put(read_frame(requests))
    except ChannelClosedError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even where it is stopped or its threads cannot run.

    The kernel does so when the *thread* that started this process ends, so only the parent's main thread will do; `_watch`
    is for the others. Only Linux has it.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _watch(parent: int) -> None:
    """End the process when its parent is gone.

    Then stdin ends too, as a rule, but not while a process that the parent forked holds the pipe's other end open.
    """
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(0)


class _Service:
    def __init__(self, answers: FileIO) -> None:
        self._answers = answers
        self._engine: Any = None  # Engine; imported when asked for, so that a failing import is an answer
        self._told = 0.0

    def serve(self, frame: Frame) -> Answer:
        """Answer one frame: call the handler of its `op` with its header and array."""
        handlers: dict[str, Callable[[dict[str, Any], Any], Answer]] = {
            "load": self._load,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "render": self._render,
            "logits": self._logits,
            "greedy": self._greedy,
            "speed": self._speed,
            "reserve": self._reserve,
            "activations": self._activations,
        }
        return handlers[frame.header["op"]](frame.header, frame.array)

    def _progress(self, done: int, total: int) -> None:
        """Tell the parent that work goes on: it shows progress, and takes long silence for a hang."""
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

    def _greedy(self, header: dict[str, Any], array: Any) -> Answer:
        prompts = np.split(array, np.cumsum(header["lengths"])[:-1])
        tokens, margins = self._engine.greedy(
            prompts, header["n_tokens"], frozenset(header["stop"]), header["context"], self._progress
        )
        return {"kind": "greedy", "tokens": tokens, "margins": margins}, None

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


if __name__ == "__main__":
    main()
