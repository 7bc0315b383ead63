"""Arguments of wrong types and impossible paths, for every parameter of every public function; and errors of the system."""

from __future__ import annotations

import errno
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gguf_tools
from gguf_tools import edit, merge, operate, quantize, split
from gguf_tools.api import checked
from gguf_tools.errors import ArgumentError, InputError, OutputError, TinyqError
from tests.tiny_gguf import write_dense

FUNCTIONS = [getattr(gguf_tools, name) for name in gguf_tools.__all__ if inspect.isfunction(getattr(gguf_tools, name))]
NOTHING_TAKES = (b"bytes", 1 + 2j, object(), {1: object()}, [object()], {b"x"})


def parameters(kind: str = "") -> Iterator[Any]:
    """Every function with each of its parameters whose type names this kind."""
    for function in FUNCTIONS:
        hints = typing.get_type_hints(function)
        for name in (name for name in inspect.signature(function).parameters if kind in str(hints[name])):
            yield pytest.param(function, name, id=f"{function.__name__}-{name}")


def arguments(function: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """What the function needs to be called, of paths that are not there, with an argument more."""
    needed = {
        name: "gone"
        for name, one in inspect.signature(function).parameters.items()
        if one.default is inspect.Parameter.empty
    }
    return needed | given


@pytest.mark.parametrize(("function", "name"), parameters())
def test_a_wrong_type_is_refused_before_any_work(function: Callable[..., Any], name: str) -> None:
    hint = typing.get_type_hints(function)[name]
    for value in NOTHING_TAKES:
        if name == "values" and isinstance(value, dict):
            continue  # of any type, by key
        with pytest.raises(ArgumentError) as caught:
            function(**arguments(function, **{name: value}))
        assert isinstance(caught.value, TypeError)
        assert str(caught.value).startswith(f"{function.__name__}: {name} is ")
        assert str(caught.value).count("\n") == 0
    if hint is not bool and "bool" not in str(hint):
        with pytest.raises(ArgumentError):
            function(**arguments(function, **{name: True}))


@pytest.mark.parametrize(("function", "name"), parameters("Path"))
def test_a_path_that_no_file_can_have_is_an_input_error(function: Callable[..., Any], name: str) -> None:
    for path in (Path("a\0b"), Path("a\ud800b"), Path("a" * 256), Path("a/" * 2100)):
        with pytest.raises(InputError, match=f"^{name} is .*; (remove them|give a shorter path)$"):
            function(**arguments(function, **{name: {"B": path} if name == "donors" else path}))


def test_a_flag_that_only_seems_to_say_no(tmp_path: Path) -> None:
    source, out = write_dense(tmp_path / "a.gguf"), tmp_path / "out.gguf"
    out.write_bytes(b"kept")
    with pytest.raises(ArgumentError, match=r"force is 'no' \(str\); expected bool"):
        quantize(source, out, "q8_0", force="no")  # type: ignore[arg-type]
    assert out.read_bytes() == b"kept"


def test_one_text_is_no_sequence_of_texts(tmp_path: Path) -> None:
    source = write_dense(tmp_path / "a.gguf")
    with pytest.raises(ArgumentError, match=r"unset is 'general\.name' \(str\); expected Sequence\[str\]"):
        edit(source, tmp_path / "out.gguf", unset="general.name")
    with pytest.raises(ArgumentError, match="values is 'general"):
        edit(source, tmp_path / "out.gguf", "general.name=x")


def test_an_iterator_is_taken_as_the_values_that_it_gives(tmp_path: Path) -> None:
    source = write_dense(tmp_path / "a.gguf")
    made = quantize(source, tmp_path / "out.gguf", "q8_0", tensor_types=iter(["attn_q=f16"]), dry_run=True)
    assert {one["type"] for one in made.as_dict()["tensors"] if "attn_q." in one["name"]} == {"f16"}
    with pytest.raises(ArgumentError, match="tensor_types is"):
        quantize(source, tmp_path / "out.gguf", "q8_0", tensor_types=iter([1]))  # type: ignore[arg-type]


def test_signatures_and_docstrings_are_those_of_the_functions() -> None:
    for function in FUNCTIONS:
        assert function.__doc__
        assert "kwargs" not in inspect.signature(function).parameters


@pytest.mark.parametrize("out", [Path(""), ".", "/"])
def test_the_name_of_shards_is_not_a_folders(tmp_path: Path, out: str | Path) -> None:
    with pytest.raises(OutputError, match="is a folder; expected a file"):
        split(write_dense(tmp_path / "a.gguf"), out, max_tensors=3)


def test_messages_are_one_line_whatever_a_path_holds(tmp_path: Path) -> None:
    with pytest.raises(TinyqError) as caught:
        merge(tmp_path / "a\nb\u2028c", tmp_path / "out.gguf")
    assert r"a\nb\u2028c: " in str(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENAMETOOLONG, errno.ENOTCONN])
def test_an_error_of_the_system_is_an_input_error(number: int) -> None:
    @checked.checked
    def reads(path: Path) -> None:
        raise OSError(number, "no luck", "some.gguf")

    with pytest.raises(InputError, match=r"^some\.gguf: no luck; \w+"):
        reads(Path("some.gguf"))

    @checked.checked
    def calls(path: Path) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        calls(Path("some.gguf"))


UNDO_TAKES_NONE: dict[str, Any] = {
    "recipe": "swap(0:1)",
    "donors": {"B": "b.gguf"},
    "lora": "adapter",
    "in_place": True,
    "save_recipe": "saved.toml",
    "text": "text.txt",
    "dry_run": True,
    "allow_nonfinite": True,
    "assume_independent_layers": True,
    "prove": False,
}


@pytest.mark.parametrize("name", UNDO_TAKES_NONE)
def test_undo_takes_nothing_that_it_would_ignore(tmp_path: Path, name: str) -> None:
    source = write_dense(tmp_path / "a.gguf")
    operate(source, None, "swap(0:1)", in_place=True, prove=False)
    changed = source.read_bytes()
    with pytest.raises(InputError, match="give SOURCE alone"):
        operate(source, undo=True, **{name: UNDO_TAKES_NONE[name]})
    if name in ("dry_run", "in_place", "prove"):
        with pytest.raises(InputError, match="give FILE alone"):
            edit(source, undo=True, **{name: UNDO_TAKES_NONE[name]})
    assert source.read_bytes() == changed
