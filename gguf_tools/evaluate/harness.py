"""The model class `tinyq` of lm-evaluation-harness, registered on import (`gguf_tools.evaluation.harness`)."""

from __future__ import annotations

from gguf_tools.evaluation.harness import NAME, TinyqLM

__all__ = ["NAME", "TinyqLM"]
