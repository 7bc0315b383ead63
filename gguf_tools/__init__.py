"""tinyq: convert trained decoders to GGUF for llama.cpp, and verify the result against a torch reference.

The functions and results in `__all__` are the public API (docs/api.md); each is imported on first use.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
"""As in `typing`, which is not imported here because it doubles the time until the command handles signals."""

__version__ = "0.1.0"

__all__ = [
    "AdapterResult",
    "AskResult",
    "ConvertResult",
    "DescribeResult",
    "EditResult",
    "EvaluateResult",
    "GGUFFile",
    "Inspection",
    "LoadedModel",
    "OperateResult",
    "PublishResult",
    "QuantizeResult",
    "ReshapeResult",
    "__version__",
    "ask",
    "convert",
    "convert_adapter",
    "describe",
    "edit",
    "evaluate",
    "inspect",
    "load_model",
    "merge",
    "open_gguf",
    "operate",
    "publish",
    "quantize",
    "split",
]

if TYPE_CHECKING:
    from typing import Any

    from gguf_tools.api.ask import ask
    from gguf_tools.api.convert import convert
    from gguf_tools.api.convert_adapter import convert_adapter
    from gguf_tools.api.describe import describe
    from gguf_tools.api.edit import edit
    from gguf_tools.api.evaluate import evaluate
    from gguf_tools.api.inspect import inspect
    from gguf_tools.api.load_model import load_model
    from gguf_tools.api.open_gguf import open_gguf
    from gguf_tools.api.operate import operate
    from gguf_tools.api.publish import publish
    from gguf_tools.api.quantize import quantize
    from gguf_tools.api.reshape import merge, split
    from gguf_tools.api.results.adapter import AdapterResult
    from gguf_tools.api.results.conversation import AskResult
    from gguf_tools.api.results.conversion import ConvertResult
    from gguf_tools.api.results.description import DescribeResult
    from gguf_tools.api.results.editing import EditResult, ReshapeResult
    from gguf_tools.api.results.evaluation import EvaluateResult
    from gguf_tools.api.results.gguf import GGUFFile
    from gguf_tools.api.results.model import LoadedModel
    from gguf_tools.api.results.publication import PublishResult
    from gguf_tools.api.results.quantization import QuantizeResult
    from gguf_tools.api.results.surgery import OperateResult
    from gguf_tools.inspection.result import Inspection

_MODULES = {
    "AdapterResult": "api.results.adapter",
    "AskResult": "api.results.conversation",
    "ConvertResult": "api.results.conversion",
    "DescribeResult": "api.results.description",
    "EditResult": "api.results.editing",
    "EvaluateResult": "api.results.evaluation",
    "GGUFFile": "api.results.gguf",
    "Inspection": "inspection.result",
    "LoadedModel": "api.results.model",
    "OperateResult": "api.results.surgery",
    "PublishResult": "api.results.publication",
    "QuantizeResult": "api.results.quantization",
    "ReshapeResult": "api.results.editing",
    "ask": "api.ask",
    "convert": "api.convert",
    "convert_adapter": "api.convert_adapter",
    "describe": "api.describe",
    "edit": "api.edit",
    "evaluate": "api.evaluate",
    "inspect": "api.inspect",
    "load_model": "api.load_model",
    "merge": "api.reshape",
    "open_gguf": "api.open_gguf",
    "operate": "api.operate",
    "publish": "api.publish",
    "quantize": "api.quantize",
    "split": "api.reshape",
}
"""Public name → the module that defines it. A subpackage of such a name would hide the function when it is
imported, unless it puts the function in its own place, as `evaluate` does."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
