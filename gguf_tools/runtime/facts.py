"""How a file was run: llama.cpp's settings, and the versions of all that takes part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from gguf_tools import __version__
from gguf_tools.runtime.process import Runtime

GREEDY = "greedy"
"""The largest logit, the lowest id among equals: no sampler takes part in a measurement."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """The value of `engine` in `tinyq eval --json`.

    `context`: most tokens of a sequence. `llama_cpp`: the version of the library, with that of ggml and its commit.
    """

    kv_type: str
    flash_attn: bool
    gpu_layers: int
    threads: int
    context: int
    llama_cpp: str
    llama_cpp_python: str
    gguf: str
    tinyq: str
    sampling: str = GREEDY

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The settings in words."""
        flash = "with" if self.flash_attn else "without"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        layers = {0: "on the CPU", -1: "all layers on the GPU"}.get(
            self.gpu_layers, f"{self.gpu_layers} layers on the GPU"
        )
        return f"{self.kv_type} cache, {flash} flash attention, {threads}, {layers}, {self.sampling} decoding"

    @property
    def versions(self) -> str:
        """The versions in words."""
        python = f"llama-cpp-python {self.llama_cpp_python}"
        return f"tinyq {self.tinyq}, llama.cpp {self.llama_cpp}, {python}, gguf {self.gguf}"


def engine_facts(runtime: Runtime) -> EngineFacts:
    """How `runtime`, which must be running, runs its file."""
    options = runtime.options
    return EngineFacts(
        kv_type=options.kv_type,
        flash_attn=options.flash_attn,
        gpu_layers=options.gpu_layers,
        threads=runtime.threads,
        context=runtime.context_limit,
        llama_cpp=runtime.info.build,
        llama_cpp_python=version("llama-cpp-python"),
        gguf=version("gguf"),
        tinyq=__version__,
    )
