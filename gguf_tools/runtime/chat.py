"""Rendering chat templates in the worker process, by llama-cpp-python's formatter.

A template comes with a file and is untrusted. Jinja's immutable sandbox keeps it from reaching the interpreter, and the worker
process can be killed if the template does not end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from gguf_tools.runtime.bounds import TimeExceededError, bounded
from gguf_tools.text import shortened

MOST_CHARACTERS = 4_000_000
"""Most characters of a rendered conversation: about a million tokens."""

MOST_SECONDS = 10.0
"""Most seconds of CPU time for one rendering, which normally takes milliseconds."""

MOST_MEMORY = 1 << 30
"""Most bytes of address space that one rendering may add to the process."""

_LONGEST_COMPLAINT = 300


class TemplateRefusalError(Exception):
    """A template is broken or does not accept the messages; its error message in one line."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool,
    options: Mapping[str, Any],
) -> str:
    """The text of a conversation; `options` are passed to the template as variables.

    Raises TemplateRefusalError if the template fails or exceeds the limits above. Source: `Jinja2ChatFormatter` in
    llama_cpp/llama_chat_format.py, which renders as transformers' `render_jinja_template` does.
    """
    names = {"documents": None, **options}  # transformers defines it, the formatter does not
    plain: Any = [dict(message) for message in messages]
    try:
        with bounded(MOST_SECONDS, MOST_MEMORY):
            formatter = _formatter(template, bos_token, eos_token, add_generation_prompt)
            text = str(formatter(messages=plain, **names).prompt)
    except TimeExceededError as error:
        raise TemplateRefusalError(
            f"the chat template did not end within {MOST_SECONDS:g} seconds of CPU time"
        ) from error
    except MemoryError as error:
        raise TemplateRefusalError(f"the chat template needs more than {MOST_MEMORY >> 20} MiB of memory") from error
    except jinja2.TemplateSyntaxError as error:
        raise TemplateRefusalError(
            f"the chat template has a syntax error in its line {error.lineno}: {_one_line(error)}"
        ) from error
    except Exception as error:
        # Expressions in a template can raise errors of any class: type errors, overflows, the sandbox's refusals.
        raise TemplateRefusalError(f"the chat template refused the messages: {_one_line(error)}") from error
    if len(text) > MOST_CHARACTERS:
        raise TemplateRefusalError(
            f"the chat template wrote {len(text):,} characters; expected {MOST_CHARACTERS:,} at most"
        )
    return text


@lru_cache(maxsize=16)
def _formatter(template: str, bos_token: str, eos_token: str, add_generation_prompt: bool) -> Jinja2ChatFormatter:
    return Jinja2ChatFormatter(template, eos_token, bos_token, add_generation_prompt)


def _one_line(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, _LONGEST_COMPLAINT)
