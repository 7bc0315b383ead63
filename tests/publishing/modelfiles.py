"""Chat templates, and readers of what tinyq writes for Ollama, which share no code with the writer.

The Go subset: text, actions with {{- and -}} (if, else if, else, range over a list with two variables, end, variables,
assignment, fields, strings, and, or, not, eq, ne, len, slice). Source: the documentation of Go's text/template.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf_tools

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
    "date": ("{{ strftime_now('%d %b %Y') }}" + CHATML, "the current date (strftime_now)"),
    "no answers": ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}", "once each and in order"),
    "upper": (CHATML.replace("m.content", "m.content | upper"), "once each and in order"),
    "broken": ("{% for %}", "Expected an expression"),
    "thinking in system": (CHATML.replace("a test", "{{ 'fast' if enable_thinking is false }}"), "thinking off"),
    "no empty answer": (CHATML.replace("{{ m.content }}", "{{ m.content or 'nothing' }}"), "an empty"),
}


_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[()=,]|[$.\w]+)')


@dataclass
class Node:
    """A text, an action, or a branch (`if` or `range`) whose bodies are lists of nodes."""

    kind: str
    value: str = ""
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


def parse(template: str) -> list[Node]:
    """The nodes of a Go template; empty texts are none."""
    parts = re.split(r"\{\{(-\s)?((?:\"(?:[^\"\\]|\\.)*\"|[^\"])*?)(\s-)?\}\}", template)
    nodes: list[Node] = []
    text = parts[0]
    stack: list[list[Node]] = [nodes]
    owners: list[tuple[Node, int]] = []
    for left, action, right, following in zip(parts[1::4], parts[2::4], parts[3::4], parts[4::4], strict=True):
        assert action is not None
        text = text.rstrip(" \t\r\n") if left else text
        if text:
            stack[-1].append(Node("text", text))
        text = following.lstrip(" \t\r\n") if right else following
        _action(action.strip(), stack, owners)
    assert not owners, "a branch is not closed"
    assert "{{" not in text
    nodes += [Node("text", text)] if text else []
    return nodes


def _action(action: str, stack: list[list[Node]], owners: list[tuple[Node, int]]) -> None:
    word, _, rest = action.partition(" ")
    if word in ("if", "range"):
        node = Node(word, rest)
        stack[-1].append(node)
        stack.append(node.body)
        owners.append((node, 1))
    elif action == "end":
        for _ in range(owners.pop()[1]):
            stack.pop()
    elif word == "else":
        node, depth = owners.pop()
        assert node.kind == "if"
        stack.append(node.otherwise)
        if rest:
            inner = Node("if", rest.removeprefix("if "))
            node.otherwise.append(inner)
            stack.append(inner.body)
            owners.append((inner, depth + 2))
        else:
            owners.append((node, depth + 1))
    else:
        stack[-1].append(Node("action", action))


def execute(template: str, data: Mapping[str, Any]) -> str:
    """The text of a template, where `data` is the dot."""
    return _run(parse(template), data, {"$": data})


def _run(nodes: Sequence[Node], dot: Any, variables: dict[str, Any]) -> str:
    out = ""
    for node in nodes:
        if node.kind == "text":
            out += node.value
        elif node.kind == "if":
            out += _run(node.body if _value(node.value, dot, variables) else node.otherwise, dot, variables)
        elif node.kind == "range":
            names, _, pipeline = node.value.partition(":=")
            index, element = (name.strip() for name in names.split(","))
            for number, item in enumerate(_value(pipeline, dot, variables)):
                variables |= {index: number, element: item}
                out += _run(node.body, item, variables)
        elif match := re.match(r"(\$\w+)\s*(:?=)\s*(.*)", node.value):
            name, sign, pipeline = match.groups()
            assert sign == ":=" or name in variables
            variables[name] = _value(pipeline, dot, variables)
        else:
            value = _value(node.value, dot, variables)
            assert isinstance(value, str)
            out += value
    return out


def _value(pipeline: str, dot: Any, variables: Mapping[str, Any]) -> Any:
    tokens = _TOKEN.findall(pipeline)
    assert "".join(tokens) == re.sub(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', "", pipeline), pipeline
    value, rest = _command(tokens, dot, variables)
    assert not rest
    return value


def _command(tokens: list[str], dot: Any, variables: Mapping[str, Any]) -> tuple[Any, list[str]]:
    operands: list[Any] = []
    function = ""
    while tokens and tokens[0] != ")":
        token, tokens = tokens[0], tokens[1:]
        if token == "(":
            inner, tokens = _command(tokens, dot, variables)
            assert tokens[0] == ")"
            operands, tokens = [*operands, inner], tokens[1:]
        elif token[0] == '"':
            operands.append(ast.literal_eval(token))
        elif token[0] in ".$":
            head, *names = token.split(".")
            value = variables[head] if head else dot
            for name in names:
                value = value[name]
            operands.append(value)
        elif token.isdigit():
            operands.append(int(token))
        else:
            assert not function
            assert not operands
            function = token
    return _call(function, operands), tokens


def _call(function: str, operands: list[Any]) -> Any:
    first, *rest = operands
    if function == "and":
        return next((value for value in operands if not value), operands[-1])
    if function == "or":
        return next((value for value in operands if value), operands[-1])
    if function in ("eq", "ne"):
        assert len(rest) == 1 and type(first) is type(rest[0])  # noqa: PT018
        return (first == rest[0]) == (function == "eq")
    if function == "slice":
        return first[rest[0] :]
    assert not rest
    return len(first) if function == "len" else {"": first, "not": not first}[function]


def ollama_prompt(template: str, messages: Sequence[Mapping[str, Any]], think: bool | None) -> str:
    """What Ollama makes of a conversation. Source: Values and Execute in Ollama's template/template.go."""
    rows = [{"Role": m["role"], "Content": m["content"], "Thinking": m.get("reasoning_content", "")} for m in messages]
    return execute(template, {"Messages": rows, "Think": think is True, "IsThinkSet": think is not None})


def inferred_tags(nodes: Sequence[Node], in_messages: bool = False) -> tuple[str, str]:
    """The tags that Ollama finds around thoughts. Source: InferTags in Ollama's thinking/template.go."""
    tags = ("", "")
    for node in nodes:
        if in_messages and re.search(r"(?<![\w$])\.Thinking\b", node.value) and node.kind != "text":
            first, last = nodes[0], nodes[-1]
            tags = (
                first.value.strip() if first.kind == "text" else tags[0],
                last.value.strip() if last.kind == "text" else tags[1],
            )
        inside = ".Messages" in node.value if node.kind == "range" else in_messages
        for body in (node.body, node.otherwise):
            found = inferred_tags(body, inside)
            tags = (found[0] or tags[0], found[1] or tags[1])
    return tags


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """The commands and values of a Modelfile. Source: ParseFile and unquote in Ollama's parser/parser.go."""
    commands: list[tuple[str, str]] = []
    while text := text.lstrip(" \t\r\n"):
        line, _, rest = text.partition("\n")
        if line.startswith("#"):
            text = rest
            continue
        command, _, text = text.partition(" ")
        if command == "PARAMETER":
            command, _, text = text.partition(" ")
        value = ""
        while True:
            line, newline, text = text.partition("\n")
            value += "".join(c for c in line if c.isprintable() or c in "\t\r")
            if (found := _unquoted(value.strip())) is not None:
                commands.append((command, found))
                break
            assert newline, "a quote is not closed"
            value += newline
    return commands


def _unquoted(value: str) -> str | None:
    for quote in ('"""', '"'):
        if value.startswith(quote):
            closed = value.endswith(quote) and len(value) >= 2 * len(quote)
            return value[len(quote) : -len(quote)] if closed else None
    return value
