"""Chat templates: rendered in the sandbox, and turned into a Modelfile's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuzzing.target import Prepared, Target
from gguf_tools.errors import InputError
from gguf_tools.publishing.modelfile.probe import derive_layout
from gguf_tools.publishing.modelfile.write import modelfile_text
from gguf_tools.runtime.chat import TemplateRefusalError, render

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if loop.index0 == 0 and sys %}{{ '<<SYS>>' + sys + '<</SYS>>' }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content']|trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}"
)
WORDS = [
    *(
        b"{{ ",
        b" }}",
        b"{% ",
        b" %}",
        b"{% for m in messages %}",
        b"{% endfor %}",
        b"{% if ",
        b"{% endif %}",
        b"{% set ",
        b"{#",
        b"#}",
    ),
    *(
        b"messages",
        b".content",
        b"['role']",
        b".__class__",
        b"namespace()",
        b"range(99999999)",
        b" * 9999999",
        b"raise_exception(1)",
    ),
    *(
        b"{% macro f(x) %}",
        b"{% endmacro %}",
        b"{% generation %}",
        b"|tojson",
        b"|trim",
        b"|length",
        b"strftime_now('%Y')",
        b"cycler",
    ),
    *(
        b"{% include 'x' %}",
        b"{% import 'x' as y %}",
        b"{% extends 'x' %}",
        b"loop.index0",
        b"tools",
        b"documents",
        b"lipsum(9)",
    ),
]
MESSAGES = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "reasoning_content": "so"},
    {"role": "user", "content": "Bye"},
)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _render(folder: Path) -> Prepared:
    def read(data: bytes) -> bool:
        try:
            text = render(_text(data), MESSAGES, "<s>", "</s>", True, {"enable_thinking": False})
        except TemplateRefusalError as error:
            if "\n" in str(error):
                raise AssertionError("a refusal of several lines") from error
            return False
        return isinstance(text, str)

    return Prepared([CHATML.encode(), LLAMA2.encode()], read)


def _modelfile(folder: Path) -> Prepared:
    def read(data: bytes) -> bool:
        template = _text(data)

        def rendered(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
            given = {"add_generation_prompt": True, **options}
            try:
                return render(template, messages, "<s>", "</s>", given.pop("add_generation_prompt"), given)
            except TemplateRefusalError as error:
                raise InputError(str(error)) from error

        layout = derive_layout(rendered, template, "<s>")
        modelfile_text("model.gguf", layout, {"temperature": 0.6}, ["</s>"], 2048)
        return not isinstance(layout, str)

    return Prepared([CHATML.encode(), LLAMA2.encode()], read)


TARGETS = (
    Target(
        name="template",
        title="chat template, rendered",
        prepare=_render,
        words=WORDS,
        longest=1500,
        executions=100_000,
        short=60,
    ),
    Target(
        name="template-modelfile",
        title="chat template, as a Modelfile's",
        prepare=_modelfile,
        words=WORDS,
        longest=1500,
        executions=20_000,
        short=20,
        deep=True,
    ),
)
