"""The text of a Modelfile.

Source: Ollama. parser/parser.go: a value ends at a line break unless quotes are open; `\"""` or `"` open and close them, and
nothing inside is an escape; characters that Go does not count as printable are dropped, except for line breaks, tabs and
spaces. docs/modelfile.mdx and api/types.go: the names and types of the parameters. server/images.go and server/create.go:
without TEMPLATE, Ollama uses one of its own templates if it resembles tokenizer.chat_template, or else (from 0.30) runs
tokenizer.chat_template; with TEMPLATE, it still runs tokenizer.chat_template if that supports tools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_tools.conversion.general_metadata import SAMPLING
from gguf_tools.errors import InputError
from gguf_tools.publishing.modelfile.go_text import go_template, is_kept
from gguf_tools.publishing.modelfile.layout import ChatLayout, Message
from gguf_tools.publishing.modelfile.probe import derive_layout
from gguf_tools.runtime.process import Runtime

_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Key in generation_config.json → Ollama's parameter."""

NO_CHAT_TEMPLATE = "the file has no chat template"
_TOOLS_NOTE = (
    "TEMPLATE does not support tools. From version 0.30 on, Ollama usually runs the file's own chat template, which does"
    " (OLLAMA_GO_TEMPLATE=1 makes it run TEMPLATE)."
)
_NO_SYSTEM_NOTE = "The chat template omits system prompts, so TEMPLATE omits them too."
_FALLBACK_NOTE = (
    "Ollama uses one of its own templates that resembles the file's, or runs the file's (from version 0.30 on)."
)


@dataclass(frozen=True)
class Modelfile:
    """The text of a Modelfile, with the layout of its TEMPLATE, or the reason why it has none."""

    text: str
    layout: ChatLayout | None
    reason: str | None

    def at(self, place: str) -> str:
        """The text for another file with the same vocabulary and metadata, at `place`."""
        return f"FROM {_file(place)}\n{self.text.partition(chr(10))[2]}"


def modelfile_for(place: str, runtime: Runtime, context: int | None = None) -> Modelfile:
    """The Modelfile of a GGUF that `runtime` has open (the vocabulary suffices).

    `place` is the file's path relative to the Modelfile's folder, with forward slashes. `context` is Ollama's context length
    in tokens; None leaves it to Ollama.
    """
    info = runtime.info
    template = info.chat_template or ""

    def render(messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        return runtime.render_chat(messages, **options)

    bos = "" if info.bos is None or not info.add_bos else runtime.detokenize([info.bos], special=True)
    layout: ChatLayout | str = NO_CHAT_TEMPLATE
    if template:
        layout = derive_layout(render, template, bos)
    stop = [runtime.detokenize([token], special=True) for token in sorted(info.eog)]
    tools = "tools" in template or "tool_call" in template
    text = modelfile_text(place, layout, sampling_parameters(info.metadata), stop, context, tools=tools)
    return Modelfile(text, *((None, layout) if isinstance(layout, str) else (layout, None)))


def sampling_parameters(metadata: Mapping[str, str]) -> dict[str, float | int]:
    """Ollama's parameters for the `general.sampling.*` keys in llama.cpp's metadata, whose values are text."""
    found: dict[str, float | int] = {}
    for key, name in SAMPLING.items():
        try:
            value = float(metadata[f"general.sampling.{name}"])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value):
            found[_PARAMETERS[key]] = int(value) if key == "top_k" else value
    return found


def modelfile_text(
    place: str,
    layout: ChatLayout | str,
    defaults: Mapping[str, float | int],
    stop: Sequence[str],
    context: int | None,
    *,
    tools: bool = False,
) -> str:
    """A Modelfile for the file at `place`, a path relative to the Modelfile's folder.

    `layout` may be the reason why there is no TEMPLATE. `tools`: the file's chat template supports tools, which a comment
    mentions. Raises InputError for a file name that a Modelfile cannot contain.
    """
    lines = [f"FROM {_file(place)}"]
    if isinstance(layout, str):
        note = "" if layout == NO_CHAT_TEMPLATE else f" {_FALLBACK_NOTE}"
        lines += [_comment(f"No TEMPLATE: {layout}.{note}")]
    else:
        lines += [_comment(_TOOLS_NOTE)] if tools else []
        lines += [_comment(_NO_SYSTEM_NOTE)] if layout.system is None else []
        lines += [f'TEMPLATE """{go_template(layout)}"""']
        if layout.default_system is not None:
            lines += [_line("SYSTEM", layout.default_system, "the default system prompt")]
    lines += [f"PARAMETER {name} {_number(value)}" for name, value in defaults.items()]
    lines += [_line("PARAMETER stop", text, "a stop text") for text in dict.fromkeys(stop) if text]
    lines += [f"PARAMETER num_ctx {context}"] if context is not None else []
    return "\n".join(lines) + "\n"


def _file(place: str) -> str:
    if place.rpartition("/")[2] in ("", ".", "..") or not place.isprintable():
        raise InputError(f"file name {place!r} has characters that a Modelfile cannot contain; rename the file")
    path = place if place.startswith(("/", "../")) else f"./{place}"
    return f'"{path}"' if " " in path else path


def _line(keyword: str, text: str, what: str) -> str:
    """An instruction with quoted text, or a comment if a Modelfile cannot contain the text."""
    if '"""' in text or not all(map(is_kept, text)):
        return _comment(f"{keyword} omitted: {what} has characters that a Modelfile cannot contain: {text!r:.200}")
    quotes = '"""' if "\n" in text or text.startswith('"') else '"'
    return f"{keyword} {quotes}{text}{quotes}"


def _comment(text: str) -> str:
    return "# " + " ".join(text.split())


def _number(value: float | int) -> str:
    """The shortest decimal that rounds to the same 32-bit float."""
    return str(value) if isinstance(value, int) else np.format_float_positional(np.float32(value), trim="-")
