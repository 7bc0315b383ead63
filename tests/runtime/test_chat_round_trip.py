"""A chat template with tools reaches llama.cpp unchanged, whichever way the file took, and renders as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.bundled import bundled_model
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from tests.conftest import Ran

Tinyq = Callable[..., Ran]

HYBRID = bundled_model("hybrid")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather <now> & "later", in °C',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
QUESTION = {"role": "user", "content": "Is it warm in Köln?"}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    QUESTION,
    {"role": "assistant", "content": "", "reasoning_content": "I look it up.", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"degrees": 21}'},
    {"role": "tool", "content": "sunny"},
]


@pytest.fixture(scope="module")
def template() -> str:
    return str(json.loads((HYBRID / "tokenizer_config.json").read_text("utf-8"))["chat_template"])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "f16.gguf"
    execute(prepare(Request(source=HYBRID, type="f16")), path)
    return path


@pytest.fixture(scope="module")
def vocabulary(converted: Path) -> Iterator[Runtime]:
    with Runtime(converted, RuntimeOptions(vocab_only=True)) as runtime:
        yield runtime


@pytest.mark.parametrize("way", ["convert", "quantize", "surgery"])
def test_the_template_is_unchanged(tinyq: Tinyq, converted: Path, tmp_path: Path, template: str, way: str) -> None:
    out = tmp_path / "out.gguf"
    if way == "convert":
        out = converted
    elif way == "quantize":
        assert tinyq("quantize", converted, out, "q8_0", "-q").code == 0
    else:
        assert tinyq("surgery", converted, out, "--swap", "0:2", "-q").code == 0
    with Runtime(out, RuntimeOptions(vocab_only=True)) as runtime:
        assert runtime.info.chat_template == template


@pytest.mark.parametrize(
    "options", [{}, {"enable_thinking": False}, {"tools": TOOLS}], ids=["plain", "switch", "tools"]
)
@pytest.mark.parametrize("messages", [[QUESTION], CONVERSATION], ids=["question", "tool calls"])
def test_rendered_as_by_transformers(vocabulary: Runtime, messages: list[Any], options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(HYBRID)
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    assert vocabulary.render_chat(messages, **options) == expected
    assert "Köln" in expected
    assert ("<tools>" in expected) == ("tools" in options)
