"""llama.cpp's own quantizer, as the tests ask it (see quant_child)."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Llama:
    """A child process that runs llama.cpp's quantizer; a crash there fails the test that asked."""

    def __init__(self) -> None:
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
