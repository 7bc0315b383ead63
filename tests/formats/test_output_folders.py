"""Folders as outputs: which ones --force replaces, and what lies in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gguf_tools.errors import OutputError
from gguf_tools.formats.output import GOLDEN, atomic_folder, check_folder, check_outputs
from tests.formats.output_files import MARK, MARKS, files


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    with atomic_folder(tmp_path / "far" / "real", marks=MARKS) as folder:
        (folder / "config.json").write_text("1")
    (tmp_path / "link").symlink_to("far/real")
    with atomic_folder(tmp_path / "link", force=True, marks=MARKS) as folder:
        (folder / "config.json").write_text("2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "real" / "config.json").read_text() == "2"
    assert (files(tmp_path), files(tmp_path / "far")) == (["far", "link"], ["real"])


def test_force_replaces_no_subfolder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "checkpoint-500").mkdir(parents=True)
    (out / "checkpoint-500" / "config.json").write_text("precious")
    (out / "config.json").write_text("1")
    with (
        pytest.raises(OutputError, match="has the subfolder checkpoint-500, and --force"),
        atomic_folder(out, force=True, marks=MARKS),
    ):
        raise AssertionError("entered")
    (out / "checkpoint-500").rename(tmp_path / "moved")
    with atomic_folder(out, force=True, marks=MARKS) as folder:
        # One that another process makes meanwhile is kept too.
        (folder / "config.json").write_text("2")
        (out / "meanwhile").mkdir()
        with pytest.raises(OutputError):
            check_folder(out, True, MARKS)
        (out / "meanwhile").rmdir()
    assert (files(tmp_path), files(out)) == (["moved", "out"], ["config.json"])


def test_force_replaces_golden_values_of_several_models(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in (out, out / "llama", out / "qwen3"):
        folder.mkdir()
        (folder / "golden.json").write_text("{}")
    (out / "llama" / "checkpoint").mkdir()
    check_folder(out, True, (GOLDEN,))
    (out / "mine").mkdir()
    with pytest.raises(OutputError, match="has the subfolder mine"):
        check_folder(out, True, (GOLDEN,))


def test_force_replaces_no_folder_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text("{}")
    with pytest.raises(OutputError, match=r"is a folder without config\.json, and --force"):
        check_folder(tmp_path, True, MARKS)


@pytest.mark.parametrize("name", ["recipe.toml", "below/recipe.toml"])
def test_a_folder_that_contains_an_input_is_not_replaced(tmp_path: Path, name: str) -> None:
    recipe = tmp_path / "out" / name
    recipe.parent.mkdir(parents=True)
    recipe.touch()
    (tmp_path / "out" / "golden.json").touch()
    (recipe.parent / "golden.json").touch()
    (tmp_path / "link").symlink_to("out/" + name)
    (recipe.parent / "link").symlink_to(tmp_path / "elsewhere")
    (recipe.parent / "_").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").touch()
    for given in (recipe, tmp_path / "link", recipe.parent / "link"):
        with pytest.raises(
            OutputError, match=f"out: contains the input {re.escape(str(given))}; give OUT another path"
        ):
            check_outputs({"OUT": tmp_path / "out"}, [given], force=True, folders={"OUT": (GOLDEN,)})


def test_a_folder_that_a_killed_run_had_moved_away_comes_back(tmp_path: Path) -> None:
    old = tmp_path / f".out.{MARK}.old"
    old.mkdir()
    (old / "config.json").write_text("precious")
    (tmp_path / f".out.{MARK}.tmp").mkdir()
    with pytest.raises(OutputError, match="exists already"), atomic_folder(tmp_path / "out", marks=MARKS):
        raise AssertionError("entered")
    assert files(tmp_path) == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "precious"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_not_made_through_a_link_to_nothing(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with (
        pytest.raises(OutputError, match="is a symbolic link to nowhere, which does not exist"),
        atomic_folder(tmp_path / "out", force=force, marks=MARKS),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
