"""Built-in prompts and prompt files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools.errors import InputError
from gguf_tools.evaluation.prompts import (
    Prompt,
    base_prompts,
    chat_prompts,
    default_prompts,
    load_prompts,
)


def test_built_in_prompts() -> None:
    base, chat = base_prompts(), chat_prompts()
    assert len(base) >= 20
    assert len(chat) >= 20
    assert "Once upon" in [p.text for p in base]
    assert len({p.text for p in base}) == len(base)
    assert len({p.messages[0]["content"] for p in chat}) == len(chat)
    assert not any(p.is_chat for p in base)
    assert all(p.is_chat for p in chat)
    assert default_prompts(False) == base
    mixed = default_prompts(True)
    assert len(mixed) >= 20
    assert sum(p.is_chat for p in mixed) * 2 == len(mixed)


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes('\ufeffOnce upon\r\n\n   \nÜber die Brücke  \n{"not": json}'.encode())
    prompts = load_prompts(path)
    assert [p.text for p in prompts] == ["Once upon", "Über die Brücke", '{"not": json}']
    assert prompts[1].origin == f"{path}:4"


def test_json_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": " a b"}\n\n{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 7}\n', encoding="utf-8"
    )
    assert load_prompts(path) == [
        Prompt(text=" a b", origin=f"{path}:1"),
        Prompt(messages=({"role": "user", "content": "hi"},), max_tokens=7, origin=f"{path}:3"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[1]", "is a list"),
        ('{"text": "a"}', "key 'text' is not known"),
        ("{}", "expected one of them"),
        ('{"prompt": "a", "messages": []}', "has both or neither"),
        ('{"prompt": ""}', "expected non-empty text"),
        ('{"prompt": 3}', "expected non-empty text"),
        ('{"messages": []}', "a list of objects"),
        ('{"messages": [{"role": "user"}]}', "message 0 is not"),
        ('{"messages": [{"role": "user", "content": "a"}, 3]}', "message 1 is not"),
        ('{"prompt": "a", "max_tokens": 0}', "whole number"),
        ('{"prompt": "a", "max_tokens": true}', "whole number"),
    ],
)
def test_wrong_json_names_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts(tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(InputError, match="has no prompts"):
        load_prompts(empty)
    empty.write_bytes(b"ok\nab\xff\n")
    with pytest.raises(InputError, match=r":2: is not UTF-8 \(byte 3"):
        load_prompts(empty)
