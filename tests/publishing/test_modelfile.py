"""Modelfiles for Ollama: layouts found by rendering, proved, written as Go templates, and read back by other code."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import InputError
from gguf_tools.publishing.modelfile import (
    ChatLayout,
    Render,
    Turn,
    derive_layout,
    go_template,
    modelfile_for,
    modelfile_text,
    sampling_parameters,
)
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from tests.publishing.modelfiles import (
    ALTERNATES,
    BOS,
    BUNDLED,
    GOOD,
    REFUSED,
    inferred_tags,
    ollama_prompt,
    parse,
    parse_modelfile,
)

GO_PROGRAM = """package main

import ("bytes"; "encoding/json"; "fmt"; "os"; "text/template")

type Message struct{ Role, Content, Thinking string }
type Data struct{ Messages []*Message; Think, IsThinkSet bool }
type Case struct{ Template, Expected string; Data Data }

func main() {
	var cases []Case
	text, _ := os.ReadFile("cases.json")
	if err := json.Unmarshal(text, &cases); err != nil { panic(err) }
	for _, c := range cases {
		var out bytes.Buffer
		err := template.Must(template.New("").Parse(c.Template)).Execute(&out, c.Data)
		if err != nil || out.String() != c.Expected { fmt.Printf("%v %q %q\\n", err, out.String(), c.Expected) }
	}
}
"""


def renderer(template: str) -> Render:
    def render(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        options = dict(options)
        try:
            format_chat = Jinja2ChatFormatter(template, "</s>", BOS, options.pop("add_generation_prompt"))
            return str(format_chat(messages=cast(Any, list(messages)), **options).prompt)
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
        assert "omits system prompts" in modelfile_text("m.gguf", LAYOUTS[name], {}, [], None)
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
    text = modelfile_text("my model.gguf", layout, {"temperature": 0.7, "top_k": 20}, stop, 4096)
    commands = parse_modelfile(text)
    assert commands[0] == ("FROM", "./my model.gguf")
    assert dict(commands)["TEMPLATE"] == go_template(layout)
    assert dict(commands).get("SYSTEM") == layout.default_system
    assert [value for command, value in commands if command == "stop"] == stop[:-2]
    values = dict(commands)
    assert (values["temperature"], values["top_k"], values["num_ctx"]) == ("0.7", "20", "4096")


def test_text_that_a_modelfile_cannot_hold_becomes_a_comment() -> None:
    layout = replace(LAYOUTS["chatml"], default_system='"""\n')
    text = modelfile_text("m.gguf", layout, {}, ["a\u200bb", '"""'], None)
    assert [command for command, _ in parse_modelfile(text)] == ["FROM", "TEMPLATE"]
    assert text.count("# PARAMETER stop omitted") == 2
    assert text.count("# SYSTEM omitted") == 1
    for name in ("", "..", "a/", "a/..", "a\nb", "a\tb", "a\udc80"):
        with pytest.raises(InputError, match="that a Modelfile cannot contain"):
            modelfile_text(name, "no", {}, [], None)


@pytest.mark.parametrize(
    ("place", "expected"),
    [("-m.gguf", "./-m.gguf"), ("a b/m.gguf", "./a b/m.gguf"), ("../m.gguf", "../m.gguf"), ("/x/m.gguf", "/x/m.gguf")],
)
def test_a_modelfile_finds_a_file_in_another_folder(place: str, expected: str) -> None:
    assert parse_modelfile(modelfile_text(place, "no", {}, [], None)) == [("FROM", expected)]


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
    execute(prepare(Request(source=BUNDLED, type="f16")), path)
    with Runtime(path, RuntimeOptions(vocab_only=True)) as runtime:
        modelfile = modelfile_for("tiny.gguf", runtime, 256)
    assert modelfile.layout == LAYOUTS["qwen3"]
    assert modelfile.reason is None
    values = dict(parse_modelfile(modelfile.text))
    assert values["FROM"] == "./tiny.gguf"
    assert values["TEMPLATE"] == go_template(LAYOUTS["qwen3"])
    assert "SYSTEM" not in values
    assert ("stop", "<|im_end|>") in parse_modelfile(modelfile.text)
    assert values["num_ctx"] == "256"
    assert "# TEMPLATE does not support tools." in modelfile.text


@pytest.mark.skipif(shutil.which("go") is None, reason="has no Go")
def test_go_itself_reads_the_templates_in_the_same_way(tmp_path: Path) -> None:
    cases = []
    for layout, think, system in product(LAYOUTS.values(), (None, True, False), ("", "S")):
        roles = ["system", "user", "assistant", "user", "assistant"]
        contents = [system, "{{ . }}", " a\n", '"', "It"]
        for count in (2, 4, 5):
            messages = [_message(*pair) for pair in zip(roles[:count], contents, strict=False)]
            expected = layout.render(messages, think)
            go_messages = [{"Role": m["role"], "Content": m["content"], "Thinking": ""} for m in messages]
            data = {"Messages": go_messages, "Think": think is True, "IsThinkSet": think is not None}
            cases.append({"Template": go_template(layout), "Data": data, "Expected": expected})
    (tmp_path / "main.go").write_text(GO_PROGRAM, "utf-8")
    (tmp_path / "cases.json").write_text(json.dumps(cases), "utf-8")
    done = subprocess.run(["go", "run", "main.go"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_model_without_a_chat_template_gets_none() -> None:
    info = SimpleNamespace(chat_template=None, bos=None, add_bos=True, eog=frozenset({3}), metadata={})
    runtime = SimpleNamespace(info=info, detokenize=lambda ids, special: "<eos>")
    modelfile = modelfile_for("base.gguf", cast(Runtime, runtime))
    assert modelfile.layout is None
    assert modelfile.reason == "the file has no chat template"
    assert parse_modelfile(modelfile.text) == [("FROM", "./base.gguf"), ("stop", "<eos>")]
