"""Chat templates as the worker process renders them: by llama-cpp-python's formatter, in its sandbox.

A template comes with a file and is untrusted. Jinja's immutable sandbox keeps it from the interpreter, and the process
that it runs in can be killed where it does not come to an end.
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
"""Of a rendered conversation: about a million tokens."""

MOST_SECONDS = 10.0
"""Of computing; a template needs milliseconds."""

MOST_MEMORY = 1 << 30
"""Bytes, beside what the process has already."""

_LONGEST_COMPLAINT = 300


class TemplateRefusalError(Exception):
    """A template that is broken, or that does not accept the messages: its own complaint, in one line."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool,
    options: Mapping[str, Any],
) -> str:
    """The text of a conversation; `options` reach the template. Raises TemplateRefusalError.

    Source: `Jinja2ChatFormatter` in llama_cpp/llama_chat_format.py, which renders as transformers' `render_jinja_template`.
    """
    names = {"documents": None, **options}  # transformers defines it, the formatter does not
    plain: Any = [dict(message) for message in messages]
    try:
        with bounded(MOST_SECONDS, MOST_MEMORY):
            formatter = _formatter(template, bos_token, eos_token, add_generation_prompt)
            text = str(formatter(messages=plain, **names).prompt)
    except TimeExceededError as error:
        raise TemplateRefusalError(
            f"the chat template did not end within {MOST_SECONDS:g} seconds of computing"
        ) from error
    except MemoryError as error:
        raise TemplateRefusalError(f"the chat template needs more than {MOST_MEMORY >> 20} MiB of memory") from error
    except jinja2.TemplateSyntaxError as error:
        raise TemplateRefusalError(
            f"the chat template is broken at its line {error.lineno}: {_one_line(error)}"
        ) from error
    except Exception as error:
        # Whatever a template's expressions raise (type errors, overflows, the sandbox's refusals) is its own fault.
        raise TemplateRefusalError(f"the chat template refused the messages: {_one_line(error)}") from error
    if len(text) > MOST_CHARACTERS:
        raise TemplateRefusalError(
            f"the chat template wrote {len(text):,} characters, and at most {MOST_CHARACTERS:,} are taken"
        )
    return text


@lru_cache(maxsize=16)
def _formatter(template: str, bos_token: str, eos_token: str, add_generation_prompt: bool) -> Jinja2ChatFormatter:
    return Jinja2ChatFormatter(template, eos_token, bos_token, add_generation_prompt)


def _one_line(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, _LONGEST_COMPLAINT)
