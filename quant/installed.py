"""Whether the llama-cpp-python that is needed is installed."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec

from quant.errors import LlamaError

OLDEST = (0, 3, 36)
"""The oldest version of llama-cpp-python whose llama.cpp and ggml have what is used."""


@cache
def require_llama_cpp(purpose: str) -> None:
    """Raise LlamaError unless a llama-cpp-python that is new enough is installed; `purpose` completes "is needed to"."""
    # Its import takes time that no other command needs.
    from importlib.metadata import PackageNotFoundError, version

    needed = ".".join(map(str, OLDEST))
    advice = f"{needed} or later is needed to {purpose}; run `pip install 'llama-cpp-python>={needed}'`"
    if find_spec("llama_cpp") is None:
        raise LlamaError(f"llama-cpp-python is not installed; {advice}")
    try:
        found = version("llama-cpp-python")
    except PackageNotFoundError:  # built in place: its functions are looked up when they are used
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[: len(OLDEST)])
    if numbers < OLDEST:
        raise LlamaError(f"llama-cpp-python {found} is too old; {advice}")
