"""`gguf_tools.operate`: `tinyq surgery` as a function."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools import operate
from gguf_tools.errors import InputError, OutputError
from gguf_tools.formats.journal import journal_path, undo_paths
from surgery.recipe import Recipe, parse_text, read_file
from tests.api.conftest import Told
from tests.conftest import Ran

Tinyq = Callable[..., Ran]
RECIPE = "swap(0:1) + interpolate(0:2, 0.5)"


@pytest.mark.parametrize("kind", ["gguf", "checkpoint"])
def test_it_does_what_the_command_does(
    tinyq: Tinyq, exact_file: Path, qwen3_folder: Path, tmp_path: Path, told: Told, kind: str
) -> None:
    source, out = (exact_file if kind == "gguf" else qwen3_folder), tmp_path / "out"
    report, saved = tmp_path / "a.json", tmp_path / "r.toml"
    ran = tinyq("surgery", source, out, "--recipe", RECIPE, "--json", report, "--save-recipe", saved)
    assert ran.code == 0, ran.err
    weights = out if kind == "gguf" else out / "model.safetensors"
    by_command, recipe = weights.read_bytes(), saved.read_bytes()
    result = operate(str(source), str(out), RECIPE, force=True, save_recipe=str(saved), progress=told)
    assert (weights.read_bytes(), saved.read_bytes()) == (by_command, recipe)
    assert result.as_dict() == json.loads(report.read_text("utf-8"))
    assert f"{result}\n" == ran.out
    assert (result.path, result.recipe, result.layers_before) == (out, ran_recipe(report), 3)
    assert (result.layers_after, read_file(saved).layers) == (4, 3)
    assert told.stages == ["writing"]
    assert told.ended("writing")


def ran_recipe(report: Path) -> str:
    return str(json.loads(report.read_text("utf-8"))["recipe"])


def test_in_place_and_back(tinyq: Tinyq, exact_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    shutil.copy(exact_file, file)
    before = file.read_bytes()
    result = operate(file, recipe=parse_text("swap(0:2)"), in_place=True)
    assert (result.path, result.in_place) == (file, True)
    assert file.read_bytes() != before
    undone = operate(file, undo=True)
    assert undone.as_dict() == {"source": str(file), "undone": "swap(0:2)"}
    assert repr(undone) == f"undone    swap(0:2) in {file}"
    assert (undone.recipe, undone.layers_after) == ("swap(0:2)", 0)
    assert file.read_bytes() == before


def test_an_interrupted_change_is_completed(tinyq: Tinyq, exact_file: Path, tmp_path: Path) -> None:
    """Its journal is left over."""
    file = tmp_path / "a.gguf"
    shutil.copy(exact_file, file)
    before = file.read_bytes()
    operate(file, recipe="swap(0:2)", in_place=True)
    changed, (record,) = file.read_bytes(), undo_paths(file)
    for complete in ("function", "command"):
        record.rename(journal_path(file))
        file.write_bytes(before)
        if complete == "function":
            result = operate(file, in_place=True)
            assert result.as_dict() == {"source": str(file), "completed": "swap(0:2)"}
            said = str(result)
        else:
            said = tinyq("surgery", file, "--in-place").out.rstrip()
        assert said == f"completed the interrupted change of {file}: swap(0:2)"
        assert (file.read_bytes(), journal_path(file).exists()) == (changed, False)


def test_a_dry_run_writes_nothing(tinyq: Tinyq, exact_file: Path, tmp_path: Path) -> None:
    result = operate(exact_file, recipe="duplicate(1)", dry_run=True, save_recipe=tmp_path / "r.toml")
    ran = tinyq("surgery", exact_file, "--duplicate", "1", "--dry-run", "--json", "-")
    assert result.as_dict() == json.loads(ran.out)
    assert (result.path, result.bytes, result.layers_after) == (None, None, 4)
    assert "copy of 1" in result._repr_html_()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "swap(0:1)"}, "the output is missing"),
        ({"out": "OUT"}, "there is no op"),
        ({"out": "OUT", "recipe": Recipe()}, "there is no op"),
        ({"out": "OUT", "recipe": "swap(0:7)"}, "there is no layer 7"),
        ({"out": "OUT", "recipe": "wobble(1)"}, "op 'wobble' is not known"),
        ({"out": "OUT", "recipe": "swap(0:1)", "in_place": True}, "takes no OUT"),
        ({"recipe": "duplicate(1)", "in_place": True}, "can only reorder whole layers"),
        ({"recipe": "duplicate(1)", "in_place": True, "dry_run": True}, "can only reorder whole layers"),
        ({"undo": True}, "nothing to undo"),
        ({"undo": True, "recipe": "swap(0:1)"}, "give SOURCE alone"),
        ({"out": "OUT", "recipe": "swap(0:1)", "threads": 0}, "--threads is 0"),
    ],
)
def test_what_does_not_fit_is_an_input_error(
    exact_file: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    before = exact_file.read_bytes()
    given = {name: tmp_path / "out.gguf" if value == "OUT" else value for name, value in options.items()}
    with pytest.raises(InputError) as raised:
        operate(exact_file, **given)  # type: ignore[arg-type]
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert exact_file.read_bytes() == before


def test_guards_of_the_output(exact_file: Path, qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"older")
    for source in (exact_file, qwen3_folder):
        with pytest.raises(OutputError):
            operate(source, out, "swap(0:1)")
    with pytest.raises(OutputError, match="is also an input of this command"):
        operate(exact_file, exact_file, "swap(0:1)", force=True)
    with pytest.raises(InputError, match="is not a GGUF file"):
        operate(qwen3_folder, recipe="swap(0:1)", in_place=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]
