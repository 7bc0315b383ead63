"""Modelfiles for Ollama: layouts found by rendering, proved, written as Go templates, and read back by other code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

import gguf_tools
from gguf_tools.convert import Request, execute, prepare
from gguf_tools.errors import InputError
from gguf_tools.evaluate.runtime import Runtime, RuntimeOptions
from gguf_tools.modelfile import (
    ChatLayout,
    Render,
    Turn,
    derive_layout,
    go_template,
    modelfile_for,
    modelfile_text,
    sampling_parameters,
)
from tests.gguf_tools.modelfiles_for_tests import inferred_tags, ollama_prompt, parse, parse_modelfile

BUNDLED = Path(gguf_tools.__file__).parent / "bundled" / "hybrid"
BOS = "<s>"

CHATML = """{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a test.<|im_end|>
{% endif -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif %}"""
ALTERNATES = """{{ bos_token }}{% set first = 1 if messages[0].role == 'system' else 0 %}
{% for m in messages[first:] %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}
{% if m.role == 'user' %}{{ '[INST] ' + (messages[0].content + '\\n\\n' if loop.first and first else '') }}
{{- m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
NO_SYSTEM = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content + '<end_of_turn>\\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
IGNORES_SYSTEM = """{% for m in messages %}{% if m.role != 'system' %}{{ m.role[0] + ': ' + m.content + '\\n' }}{% endif %}
{% endfor %}{{ 'a: ' if add_generation_prompt }}"""
FIRST_SYSTEM = """{% if messages[0].role == 'system' and messages[0].content %}{{ messages[0].content }}{% else %}Hm."a"
{% endif %}{% for m in messages %}{% if m.role != 'system' %}{{ '\\n' + m.role + ':' + m.content + eos_token }}{% endif %}
{% endfor %}{{ '\\nassistant:' if add_generation_prompt }}"""
ODD_TEXT = r'''{% for m in messages %}{{ '{{"""\u200b{' + m.role + '\\"}\r\n{' }}{{ m.content }}{{ '{{{' }}
{% endfor %}{{ '""\n""""' if add_generation_prompt }}'''
ALWAYS_THINKS = """{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.reasoning_content %}
{{ '[' + m.reasoning_content + ']' }}{% endif %}{{ m.content + '\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<assistant>' + ('[' if enable_thinking is true else
 '[]' if enable_thinking is false else '') }}{% endif %}"""
ON_SWITCH = CHATML.removesuffix("{% endif %}") + "{{ '<think>' if enable_thinking }}{% endif %}"
QWEN3 = str(json.loads((BUNDLED / "tokenizer_config.json").read_text("utf-8"))["chat_template"])

GOOD = {
    "chatml": CHATML,
    "alternates": ALTERNATES,
    "no system": NO_SYSTEM,
    "ignores system": IGNORES_SYSTEM,
    "first system": FIRST_SYSTEM,
    "odd text": ODD_TEXT,
    "always thinks": ALWAYS_THINKS,
    "on switch": ON_SWITCH,
    "qwen3": QWEN3,
}

LLAMA3 = """{% for m in messages %}{% set text = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim
 + '<|eot_id|>' %}{{ bos_token + text if loop.first else text }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
LAST_SYSTEM = """{% set s = messages[0].content if messages[0].role == 'system' %}{% for m in messages[1 if s else 0:] %}
{% if m.role == 'user' %}[INST] {{ s + '\\n\\n' if s and loop.last }}{{ m.content }} [/INST]
{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"""
COUNTS = """{% for m in messages %}{{ loop.index ~ m.role ~ ': ' ~ m.content ~ '\\n' }}{% endfor %}"""
REFUSED = {
    "trims": (LLAMA3, "white space around questions"),
    "last system": (LAST_SYSTEM, "system"),
    "counts": (COUNTS, "assistant"),
    "date": ("{{ strftime_now('%d %b %Y') }}" + CHATML, "today's date (strftime_now)"),
    "no answers": ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}", "once each and in order"),
    "upper": (CHATML.replace("m.content", "m.content | upper"), "once each and in order"),
    "broken": ("{% for %}", "Expected an expression"),
    "thinking in system": (CHATML.replace("a test", "{{ 'fast' if enable_thinking is false }}"), "thinking off"),
    "no empty answer": (CHATML.replace("{{ m.content }}", "{{ m.content or 'nothing' }}"), "an empty"),
}


def renderer(template: str) -> Render:
    def render(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        options = dict(options)
        try:
            format_chat = Jinja2ChatFormatter(template, "</s>", BOS, options.pop("add_generation_prompt"))
            return str(format_chat(messages=list(messages), **options).prompt)
        except (ValueError, TypeError, jinja2.TemplateError) as error:
            raise InputError(f"the chat template refused the messages: {error}") from error

    return render


def layout_of(template: str, bos: str = BOS) -> ChatLayout:
    layout = derive_layout(renderer(template), template, bos)
    assert isinstance(layout, ChatLayout), layout
    return layout


def jinja(template: str, messages: Sequence[Mapping[str, Any]], think: bool | None) -> str:
    options = {} if think is None else {"enable_thinking": think}
    return renderer(template)(messages, {"add_generation_prompt": True, **options}).removeprefix(BOS)


LAYOUTS = {name: layout_of(template) for name, template in GOOD.items()}
CONTENTS = (
    st.text() | st.text("{}\"' \n\t<>%#\\|é🙂\u200b") | st.sampled_from(["", "{{ .Content }}", "<|im_end|>", "[]"])
)
EXCHANGES = st.lists(st.tuples(CONTENTS, CONTENTS, CONTENTS), max_size=3)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.none() | CONTENTS, EXCHANGES, CONTENTS, st.sampled_from([None, True, False]))
def test_the_go_template_says_what_the_jinja_template_says(
    name: str, system: str | None, exchanges: list[tuple[str, str, str]], question: str, think: bool | None
) -> None:
    layout = LAYOUTS[name]
    messages: list[dict[str, Any]] = [] if system is None or name == "no system" else [_message("system", system)]
    for asked, answered, thought in exchanges:
        messages += [_message("user", asked), {**_message("assistant", answered), "reasoning_content": thought}]
    messages.append(_message("user", question))
    expected = jinja(GOOD[name], messages, think)
    assert layout.render(messages, think) == expected
    assert ollama_prompt(go_template(layout), messages, think) == expected


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize("name", sorted(GOOD))
def test_an_answer_may_be_continued(name: str) -> None:
    layout = LAYOUTS[name]
    for thought in ("", "Hm"):
        answer = {**_message("assistant", "It"), **({"reasoning_content": thought} if thought else {})}
        messages = [_message("user", "a"), answer]
        prompt = ollama_prompt(go_template(layout), messages, None)
        whole = renderer(GOOD[name])(messages, {"add_generation_prompt": False}).removeprefix(BOS)
        assert prompt == layout.render(messages)
        assert prompt.endswith("It")
        assert whole == prompt + layout.assistant.after


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_ollama_cannot_say_is_refused_with_a_reason(name: str) -> None:
    template, part = REFUSED[name]
    reason = derive_layout(renderer(template), template, BOS)
    assert isinstance(reason, str)
    assert part in reason
    assert "\n" not in reason
    text = modelfile_text("m.gguf", reason, {}, [], None)
    assert "TEMPLATE" not in dict(parse_modelfile(text))
    assert f"# No TEMPLATE: {reason}" in text


def test_the_layout_of_chatml_has_its_default_system_prompt() -> None:
    layout = LAYOUTS["chatml"]
    assert layout.default_system == "You are a test."
    assert layout.user == Turn(
        "<|im_start|>user\n",
        "<|im_end|>\n",
        (("", "<|im_start|>system\nYou are a test.<|im_end|>\n<|im_start|>user\n"),),
    )
    assert layout.generation == ("<|im_start|>assistant\n",) * 3
    assert layout.thoughts is None


def test_the_layout_of_the_bundled_model_lets_ollama_see_that_it_thinks() -> None:
    layout = LAYOUTS["qwen3"]
    start = "<|im_start|>assistant\n"
    assert layout.generation == (start, start, start + "<think>\n\n</think>\n\n")
    assert layout.thoughts is not None
    assert not layout.thoughts.always
    assert inferred_tags(parse(go_template(layout))) == ("<think>", "</think>")
    assert inferred_tags(parse(go_template(LAYOUTS["always thinks"]))) == ("[", "]")
    assert inferred_tags(parse(go_template(LAYOUTS["chatml"]))) == ("", "")


def test_a_folded_system_prompt_stands_in_the_first_question() -> None:
    prompt = ollama_prompt(go_template(LAYOUTS["alternates"]), [_message("system", "S"), _message("user", "U")], None)
    assert prompt == "[INST] S\n\nU [/INST]"


def test_a_template_without_system_prompts_is_said_to_have_none() -> None:
    for name in ("no system", "ignores system"):
        assert LAYOUTS[name].system is None
        assert "shows no system prompts" in modelfile_text("m.gguf", LAYOUTS[name], {}, [], None)
    assert LAYOUTS["first system"].skips_empty_system
    assert not LAYOUTS["first system"].late_system


def test_bos_is_left_out_only_where_ollama_adds_it() -> None:
    messages = [_message("user", "U")]
    assert layout_of(ALTERNATES).render(messages) == "[INST] U [/INST]"
    assert layout_of(ALTERNATES, bos="").render(messages) == "<s>[INST] U [/INST]"


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_modelfile_gives_back_all_that_was_put_in(name: str) -> None:
    layout = LAYOUTS[name]
    stop = ["<|im_end|>", "two words", " x ", 'say "', '""q', "a\nb", "", "<|im_end|>"]
    text = modelfile_text("my model.gguf", layout, {"temperature": 0.7, "top_k": 20}, stop, 4096, license='"L"\n')
    commands = parse_modelfile(text)
    assert commands[0] == ("FROM", "./my model.gguf")
    assert dict(commands)["TEMPLATE"] == go_template(layout)
    assert dict(commands).get("SYSTEM") == layout.default_system
    assert [value for command, value in commands if command == "stop"] == stop[:-2]
    values = dict(commands)
    assert (values["temperature"], values["top_k"], values["num_ctx"]) == ("0.7", "20", "4096")
    assert values["LICENSE"] == '"L"\n'


def test_text_that_a_modelfile_cannot_hold_becomes_a_comment() -> None:
    text = modelfile_text("m.gguf", "no", {}, ["a\u200bb", '"""'], None)
    assert parse_modelfile(text) == [("FROM", "./m.gguf")]
    assert text.count("# PARAMETER stop left out") == 2
    for name in ("", "..", "a/b", "a\nb", "a\tb", "a\udc80"):
        with pytest.raises(InputError, match="cannot stand in a Modelfile"):
            modelfile_text(name, "no", {}, [], None)


def test_sampling_defaults_are_those_of_the_file_and_no_others() -> None:
    metadata = {
        "general.sampling.temp": "0.600000",
        "general.sampling.top_k": "20",
        "general.sampling.min_p": "nan",
        "general.sampling.top_p": "often",
        "general.sampling.penalty_repeat": "1.05",
        "general.sampling.mirostat": "1",
    }
    found = sampling_parameters(metadata)
    assert found == {"temperature": 0.6, "top_k": 20, "repeat_penalty": 1.05}
    lines = modelfile_text("m.gguf", "no", {**found, "top_p": 1.0, "min_p": 1e-7}, [], None).splitlines()
    numbers = [line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER")]
    assert numbers == ["temperature 0.6", "top_k 20", "repeat_penalty 1.05", "top_p 1", "min_p 0.0000001"]


def test_the_modelfile_of_the_bundled_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    execute(prepare(Request(BUNDLED, "f16")), path)
    with Runtime(path, RuntimeOptions(vocab_only=True)) as runtime:
        modelfile = modelfile_for(path, runtime, 256)
    assert modelfile.layout == LAYOUTS["qwen3"]
    assert modelfile.reason is None
    values = dict(parse_modelfile(modelfile.text))
    assert values["FROM"] == "./tiny.gguf"
    assert values["TEMPLATE"] == go_template(LAYOUTS["qwen3"])
    assert "SYSTEM" not in values
    assert ("stop", "<|im_end|>") in parse_modelfile(modelfile.text)
    assert values["num_ctx"] == "256"
    assert "# Tools are not in TEMPLATE." in modelfile.text


def test_a_model_without_a_chat_template_gets_none() -> None:
    info = SimpleNamespace(chat_template=None, bos=None, add_bos=True, eog=frozenset({3}), metadata={})
    runtime = SimpleNamespace(info=info, detokenize=lambda ids, special: "<eos>")
    modelfile = modelfile_for(Path("base.gguf"), cast(Runtime, runtime))
    assert modelfile.layout is None
    assert modelfile.reason == "the file has no chat template"
    assert parse_modelfile(modelfile.text) == [("FROM", "./base.gguf"), ("stop", "<eos>")]
