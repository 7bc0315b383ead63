"""The page on the Python API: signatures and docstrings of the public names, as they stand in the code."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gguf_tools
import quant
from gguf_tools.tables import Shown

WIDTH = 100

HEAD = """# Python API

Generated from the signatures and docstrings by `make docs`.

Each function corresponds to the command of its name (`operate` to `tinyq surgery`): the same checks, outputs and errors. Its
keywords are the command's options, with underscores for dashes; errors name the options, so `--force` means `force=True`.
Importing `gguf_tools` imports nothing else; a function's module is imported on first use.

- **Errors** are the exceptions of `gguf_tools.errors`, with one-line messages: `TinyqError` and its subclasses `InputError` (with
  subclasses `CheckpointError`, `UnsupportedError`, `TokenizerError`, `ArgumentError`), `OutputError`, `ThresholdError` and
  `LlamaError`. An argument whose type is not that of the signature is an `ArgumentError`, which is a `TypeError` too. After an
  error no output is left.
- **Results** have `as_dict()`, the report that the command writes with `--json`. `print(result)` prints the command's summary,
  notebooks show it as HTML. Names read from files are escaped in both.
- **Progress**: `progress` is called as `progress(stage, done, total)`; stages such as "reading" and "writing" count weights or
  bytes, others tokens, prompts or tensors. An exception that it raises ends the work, and leaves no output.
"""

ARRAYS = """## Arrays

`quant` by itself encodes and decodes arrays, K-quants included, with numpy and llama-cpp-python alone."""


def api_page() -> str:
    """The page: the functions, then what they return."""
    names = [name for name in gguf_tools.__all__ if name != "__version__"]
    values = {name: getattr(gguf_tools, name) for name in names}
    lines = [HEAD, "## Functions", ""]
    for name, value in values.items():
        if inspect.isfunction(value):
            lines += [f"### {name}", "", "```python", _signature(name, value), "```", "", _doc(value), ""]
    lines += [ARRAYS, ""]
    for name in quant.__all__:
        value = getattr(quant, name)
        lines += [f"### quant.{name}", "", "```python", _signature(name, value), "```", "", _doc(value), ""]
    lines += ["## Results", ""]
    for name, value in values.items():
        if inspect.isclass(value):
            lines += [f"### {name}", "", _doc(value), "", *_members(value), ""]
    return "\n".join(lines)


def _doc(value: object) -> str:
    return inspect.getdoc(value) or ""


def _signature(name: str, function: Callable[..., Any]) -> str:
    """The call with types and defaults, on one line where it fits, else a line a parameter."""
    line, parameters, result = _call(name, function)
    return line if len(line) <= WIDTH else "\n".join([f"{name}(", *(f"    {p}," for p in parameters), f"){result}"])


def _call(name: str, function: Callable[..., Any]) -> tuple[str, list[str], str]:
    """The call on one line, its parameters but for self, and its result."""
    signature = inspect.signature(function)
    parameters: list[str] = []
    keyword = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            parameters.append("*")
            keyword = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parameters.append(f"{parameter.name}: {parameter.annotation}{default}")
    result = f" -> {signature.return_annotation}"
    return f"{name}({', '.join(parameters)}){result}", parameters, result


def _members(value: type) -> Iterator[str]:
    """The fields, properties and methods of a result, but for those that all results have."""
    for field in dataclasses.fields(value):
        yield f"- `{field.name}`: `{field.type}`"
    for name, member in vars(value).items():
        if name.startswith("_") or hasattr(Shown, name):
            continue
        function = getattr(member, "fget", None) or getattr(member, "func", None)
        doc = " ".join(_doc(member).split())
        if function:
            yield f"- `{name}`: `{inspect.signature(function).return_annotation}`. {doc}"
        elif inspect.isfunction(member):
            yield f"- `{_call(name, member)[0]}`: {doc}"
