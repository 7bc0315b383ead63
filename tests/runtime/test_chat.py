"""Chat templates: rendered in llama.cpp's process by llama-cpp-python, as transformers renders them."""

from __future__ import annotations

import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.runtime import chat as chat_templates
from gguf_tools.runtime.process import Runtime, RuntimeOptions

MESSAGES = [{"role": "user", "content": "hi & <b>"}]


def test_thinking_switch(chat_runtime: Runtime) -> None:
    plain = "<|im_start|>user\nhi & <b><|im_end|>\n<|im_start|>assistant\n"
    assert chat_runtime.render_chat(MESSAGES) == plain
    assert chat_runtime.render_chat(MESSAGES, enable_thinking=True) == plain
    assert chat_runtime.render_chat(MESSAGES, enable_thinking=False) == plain + "<think>\n\n</think>\n\n"
    assert chat_runtime.render_chat(MESSAGES, add_generation_prompt=False) == plain.removesuffix(
        "<|im_start|>assistant\n"
    )


RICH = """
{%- if tools is not none %}TOOLS {{ tools | tojson }}
{% endif -%}
{{ bos_token }}
{%- for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns = namespace(seen=true) -%}
    {% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}
    {% if loop.index > 5 %}{% break %}{% endif %}
{%- endfor %}
{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') | length }}
"""


@pytest.mark.parametrize("tools", [None, [{"name": "ü<"}]])
def test_like_transformers(chat_runtime: Runtime, tools: Any) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    bos, eos = "<|bos|>", "<|eos|>"
    messages = [{"role": "system", "content": "s"}, *MESSAGES * 7]
    rendered, _ = utils.render_jinja_template(
        conversations=[messages], tools=tools, chat_template=RICH, bos_token=bos, eos_token=eos
    )
    ours = chat_runtime.render_chat(messages, template=RICH, add_generation_prompt=False, tools=tools)
    assert [ours] == rendered


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only\nusers') }}", "refused the messages: only users"),
        ("a\n{% if %}", "syntax error in its line 2"),
        ("{% include 'x' %}", "refused"),
        ("{{ messages[0].content.__class__.__mro__ }}", "refused.*unsafe"),
        ("{{ messages.append(1) }}", "refused.*unsafe|refused.*not safely callable"),
        ("{{ messages[3].content.x }}", "refused"),
        ("{{ 1 / 0 }}", "refused"),
        ("{% for i in range(10000000) %}x{% endfor %}", "refused"),
        ("{{ 'x' * 10 ** 7 }}", "wrote 10,000,000 characters; expected 4,000,000 at most"),
        ("{{ raise_exception('x' * 10 ** 6) }}", "refused the messages: x+…$"),
    ],
)
def test_bad_templates(chat_runtime: Runtime, template: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        chat_runtime.render_chat(MESSAGES, template=template)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_refusal_leaves_the_process_running(chat_runtime: Runtime) -> None:
    before = chat_runtime.pid
    with pytest.raises(InputError, match="syntax error in its line 1"):
        chat_runtime.render_chat(MESSAGES, template="{% if %}")
    assert chat_runtime.render_chat(MESSAGES).startswith("<|im_start|>user")
    assert chat_runtime.pid == before


ENDLESS = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
)
HUGE = "{% set x = namespace(a='x') %}{% for i in range(60) %}{% set x.a = x.a ~ x.a %}{% endfor %}{{ x.a | length }}"
WIDE = "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"


def test_an_endless_template_is_stopped(chat: Path) -> None:
    with Runtime(chat, RuntimeOptions(threads=1, vocab_only=True)) as runtime:
        # Only now, for a busy machine may take longer to start the process.
        runtime.options = replace(runtime.options, timeout=0.5)
        with pytest.raises(LlamaError, match=r"made no progress for 0\.5 s"):
            runtime.render_chat(MESSAGES, template=ENDLESS)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "did not end within 0.5 seconds of CPU time"),
        (HUGE, "needs more than 1024 MiB of memory"),
        (WIDE, "needs more than 1024 MiB of memory"),
        ("{{ 'x' * 10 ** 12 }}", "needs more than 1024 MiB of memory"),
        ("{{ 'x'.center(10 ** 12) }}", "needs more than 1024 MiB of memory|refused"),
    ],
)
def test_a_template_has_limits_of_its_own(monkeypatch: pytest.MonkeyPatch, template: str, message: str) -> None:
    """Within the worker, which goes on."""
    monkeypatch.setattr(chat_templates, "MOST_SECONDS", 0.5 if template is ENDLESS else 60.0)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(chat_templates.TemplateRefusalError, match=message):
        chat_templates.render(template, MESSAGES, "", "", True, {})
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0
    assert chat_templates.render("{{ messages[0].role }}", MESSAGES, "", "", True, {}) == MESSAGES[0]["role"]


def test_the_worker_survives_a_template_without_bounds(chat_runtime: Runtime) -> None:
    before = chat_runtime.pid
    with pytest.raises(InputError, match="needs more than 1024 MiB of memory"):
        chat_runtime.render_chat(MESSAGES, template=HUGE)
    assert chat_runtime.render_chat(MESSAGES).startswith("<|im_start|>user")
    assert chat_runtime.pid == before


def test_no_template(dense_runtime: Runtime) -> None:
    with pytest.raises(InputError, match="has no chat template"):
        dense_runtime.render_chat(MESSAGES)
