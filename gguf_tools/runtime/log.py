"""Extracting the cause of a failure, and buffer sizes, from llama.cpp's log."""

from __future__ import annotations

import re

from gguf_tools.text import shortened

_MAX_LINES = 2
_MAX_CHARS = 400

_ASSERTION = re.compile(r"GGML_ASSERT|GGML_ABORT|^\S+\.(?:c|cpp|cu|h|hpp|m|mm):\d+: ")
_FAILURE = re.compile(
    r"error|fail|missing|invalid|unknown|unsupported|wrong|corrupt|mismatch|not (?:found|supported|within|enough)"
    r"|requires|unable|cannot|can't|could not|out of memory|terminate called|what\(\)|exception|exceeds",
    re.IGNORECASE,
)
# Lines that only repeat that the call before them failed, and those that list the file's contents or llama.cpp's settings.
_NOISE = re.compile(
    r"failed to load model(?:$|[ ,'])|failed to initialize the context$|^\s*warning"
    r"|^llama_model_loader: - |^(?:print_info|load_tensors|create_tensor|load|llama_context): ",
    re.IGNORECASE,
)
_BUFFER = re.compile(r":\s+(\S+)\s+(model|KV|RS|compute|output) buffer size =\s+([0-9.]+) MiB")
_FUNCTION = re.compile(r"^(?:[\w:~]*_[\w:~]*: |error loading model: )+")


def decisive_lines(log: str) -> str:
    """The lines of a log that say why llama.cpp failed, joined with "; " ("" if there are none).

    If an assertion failed, its line alone; otherwise the last lines that report a failure, without those that only repeat that
    a call failed. Function names at the start of lines are removed.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    asserted = [line for line in lines if _ASSERTION.search(line)]
    if asserted:
        return shortened(re.sub(r"^\S*/", "", asserted[-1]), _MAX_CHARS)
    failures = [line for line in lines if _FAILURE.search(line) and not _NOISE.search(line)]
    chosen = list(dict.fromkeys(_FUNCTION.sub("", line) for line in failures))[-_MAX_LINES:]
    return "; ".join(shortened(line, _MAX_CHARS) for line in chosen)


def last_lines(log: str) -> str:
    """The last lines of a log, for a process that ended without reporting a failure ("" if the log is empty)."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return "its log ends: " + "; ".join(shortened(line, _MAX_CHARS) for line in lines[-_MAX_LINES:]) if lines else ""


def buffer_sizes(log: str) -> dict[str, float]:
    """Bytes of the buffers that a log reports, summed over devices, by llama.cpp's name: model, KV, RS, compute, output.

    RS are recurrent states. A split model and a hybrid cache report several buffers on one device, which are added; compute
    buffers are reserved repeatedly, and the last report per device counts.
    """
    found: dict[str, float] = {}
    scratch: dict[str, float] = {}
    for match in _BUFFER.finditer(log):
        device, kind, size = match[1], match[2], float(match[3]) * (1 << 20)
        if kind == "compute":
            scratch[device] = size
        else:
            found[kind] = found.get(kind, 0.0) + size
    return found | ({"compute": sum(scratch.values())} if scratch else {})
