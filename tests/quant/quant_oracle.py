"""llama.cpp's own quantizer, as the tests ask it (see quant_child)."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant import ggml
from quant.types import TensorType

ROOT = Path(__file__).resolve().parents[2]


class Llama:
    """A child process that runs llama.cpp's quantizer; a crash there fails the test that asked."""

    def __init__(self) -> None:
        self._known: dict[bytes, dict[str, Any]] = {}
        self._start()
        atexit.register(lambda: self._process.kill())

    def _start(self) -> None:
        child = Path(__file__).with_name("quant_child.py")
        self._process = subprocess.Popen(
            [sys.executable, str(child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        )

    def types(self, **request: Any) -> list[int]:
        """The answer to `types`, asked once: mutation testing asks for the same models again and again."""
        key = hashlib.sha256(json.dumps(request).encode()).digest()
        if key not in self._known:
            self._known[key] = self.ask(op="types", **request)
        found: list[int] = self._known[key]["types"]
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        """The child's answer to one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            last = self._process.stderr.read()[-2000:]
            self._start()
            raise AssertionError(f"llama.cpp ended its process on {request}: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def quantize(self, source: Path, output: Path, ftype: int, **params: Any) -> None:
        """`llama_model_quantize`; fails with its log."""
        answer = self.ask(op="quantize", input=str(source), output=str(output), ftype=ftype, **params)
        assert answer["rc"] == 0, answer["log"]


@cache
def llama() -> Llama:
    """The one child of this test run."""
    return Llama()


def valid(kind: TensorType, raw: NDArray[np.uint8]) -> bool:
    """Whether ggml accepts encoded blocks: no infinite scale and no NaN (`ggml_validate_row_data`, which also prints)."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    return bool(prototype(("ggml_validate_row_data", ggml.library()))(kind.ggml_id, raw.ctypes.data, raw.nbytes))
