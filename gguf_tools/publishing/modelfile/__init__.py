"""Ollama Modelfiles, derived from a GGUF's metadata alone.

`probe` renders its Jinja template to find the text around messages, `layout` represents that text, `verify` checks it on
other conversations, `go_text` writes it as the Go template that Ollama runs, and `write` writes the Modelfile.
"""

from gguf_tools.publishing.modelfile.go_text import go_template
from gguf_tools.publishing.modelfile.layout import ChatLayout, Thoughts, Turn
from gguf_tools.publishing.modelfile.probe import derive_layout
from gguf_tools.publishing.modelfile.verify import Render, first_difference
from gguf_tools.publishing.modelfile.write import Modelfile, modelfile_for, modelfile_text, sampling_parameters

__all__ = [
    "ChatLayout",
    "Modelfile",
    "Render",
    "Thoughts",
    "Turn",
    "derive_layout",
    "first_difference",
    "go_template",
    "modelfile_for",
    "modelfile_text",
    "sampling_parameters",
]
