"""`tinyq surgery`, and its options on `tinyq convert`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools.formats.gguf.header import read_header
from surgery.ops import all_ops
from surgery.recipe import read_file
from tests.conftest import Ran
from tests.oracle import convert
from tests.surgery.surgery_files import raw_tensors
from tests.tiny_models import checkpoint, dense

Tinyq = Callable[..., Ran]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint of four layers."""
    return checkpoint(tmp_path_factory.mktemp("four") / "hf", dense(num_hidden_layers=4))


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """Its conversion, to change."""
    return convert(folder, tmp_path / "model.gguf")


def test_options_apply_in_the_order_given(tinyq: Tinyq, folder: Path, file: Path, tmp_path: Path) -> None:
    given = ["--swap", "0:1", "--delete=3", "--swap", "0:2", "--only", "ffn", "--bridge", "0:2"]
    ran = tinyq("surgery", file, tmp_path / "a.gguf", *given, "--json", "-")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["recipe"] == "swap(0:1) + delete(3) + swap(0:2, only=ffn) + bridge(0:2)"
    assert (report["layers_before"], report["layers_after"]) == (4, 4)
    assert [layer["from"] for layer in report["layers"]] == [
        "attention of 1, ffn of 2", "0", "attention of 2, ffn of 1", "attention of 1, ffn of 2",
    ]  # fmt: skip
    assert report["removed"] == [3]
    ran = tinyq("convert", folder, tmp_path / "b.gguf", "--type", "f32", *given, "-q")
    assert ran.code == 0, ran.err
    assert raw_tensors(tmp_path / "a.gguf") == raw_tensors(tmp_path / "b.gguf")
    assert read_header(tmp_path / "b.gguf").get("tinyq.surgery") == report["recipe"]
    ran = tinyq("surgery", folder, tmp_path / "hf", *given, "--quiet")
    assert (ran.code, ran.out) == (0, "")


def test_recipes_are_saved_and_read(tinyq: Tinyq, file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "r.toml"
    ran = tinyq("surgery", file, tmp_path / "a.gguf", "--swap", "0:1", "--scale", "2@0.5", "--save-recipe", saved)
    assert ran.code == 0, ran.err
    assert read_file(saved).layers == 4
    assert tinyq("surgery", file, tmp_path / "b.gguf", "--recipe", saved, "-q").code == 0
    assert tinyq("surgery", file, tmp_path / "c.gguf", "--recipe", "swap(0:1) + scale(2@0.5)", "-q").code == 0
    assert (
        (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
    )


def test_a_dry_run_draws_both_stacks_and_writes_nothing(tinyq: Tinyq, folder: Path, file: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    options = ["--swap", "1:2", "--interpolate", "0:3@0.25", "--delete", "4", "--dry-run"]
    drawings = []
    for source in (file, folder):
        ran = tinyq("surgery", source, tmp_path / "out", *options, "--save-recipe", tmp_path / "r.toml")
        assert ran.code == 0, ran.err
        drawings.append(ran.out.splitlines())
    assert drawings[0] == drawings[1]
    text = "\n".join(drawings[0])
    assert "layers    4 → 4; 11 tensors are computed, all others copied" in text
    assert "1 a │ made: 0.75·0 + 0.25·3" in text
    assert "3 a │ was 1" in text
    assert "nothing was written" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_in_place_and_back(tinyq: Tinyq, file: Path) -> None:
    before = file.read_bytes()
    assert tinyq("surgery", file, "--in-place", "--swap", "0:3", "--dry-run").code == 0
    assert file.read_bytes() == before
    ran = tinyq("surgery", file, "--in-place", "--swap", "0:3", "--json", "-")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["in_place"] is True
    assert read_header(file).get("tinyq.surgery") == "swap(0:3)"
    ran = tinyq("surgery", file, "--undo")
    assert (ran.code, ran.out) == (0, f"undone    swap(0:3) in {file}\n")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["OUT", "--swap", "0:9"], "there is no layer 9; the model has 4 layers at this point, 0 to 3"),
        (["OUT", "--only", "ffn"], "does not follow a swap, blend or scale"),
        (["OUT"], "there is no op"),
        (["OUT", "--wobble", "1"], "No such option"),
        (["OUT", "--swap"], "Option '--swap' requires an argument"),
        (["OUT", "--recipe", "wobble(1)"], "op 'wobble' is not known; the ops are attenuate"),
        (["OUT", "--in-place", "--swap", "0:1"], "takes no OUT"),
        (["--swap", "0:1"], "the output is missing"),
        (["--in-place", "--duplicate", "1"], "can only reorder whole layers"),
        (["--undo"], "nothing to undo"),
        (["--undo", "--swap", "0:1"], "give SOURCE alone"),
        (["SELF", "--swap", "0:1", "--force"], "is also an input of this command"),
    ],
)
def test_what_is_wrong_is_one_line(tinyq: Tinyq, file: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    places = {"OUT": str(tmp_path / "out.gguf"), "SELF": str(file)}
    before = file.read_bytes()
    ran = tinyq("surgery", file, *(places.get(argument, argument) for argument in arguments))
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_folder_is_not_changed_in_place(tinyq: Tinyq, folder: Path) -> None:
    ran = tinyq("surgery", folder, "--in-place", "--swap", "0:1")
    assert (ran.code, "is not a GGUF file" in ran.err) == (2, True)


@pytest.mark.parametrize("command", ["surgery", "convert"])
def test_help_lists_every_op(tinyq: Tinyq, command: str) -> None:
    ran = tinyq(command, "--help")
    assert ran.code == 0
    assert "Layer surgery" in ran.out
    for name in (*all_ops(), "only", "recipe"):
        assert f"--{name}" in ran.out
