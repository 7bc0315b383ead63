"""No option of any command writes over an input, over what another writes, or over a file without --force; and no output comes
of a source that changed meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from gguf_tools import convert, operate, quantize
from gguf_tools.cli import tinyq as group
from gguf_tools.commands.common import WRITTEN
from gguf_tools.errors import CheckpointError, OutputError
from gguf_tools.evaluation.golden.write import write_golden
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.gguf.imatrix import write_imatrix
from gguf_tools.verification.run import verify
from quant.imatrix import ImportanceMatrix, Statistics
from surgery.gguf.in_place import plan_in_place
from tests.conftest import Ran
from tests.faults.declared import commands

Tinyq = Callable[..., Ran]


@dataclass(frozen=True)
class Place:
    """Inputs of all commands in one folder, and where outputs go."""

    folder: Path
    source: Path
    file: Path
    text: Path
    matrix: Path
    golden: Path
    out: Path

    def contents(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, qwen3_folder: Path, f32_file: Path, golden_folder: Path) -> Place:
    import numpy as np

    source, file, text, matrix = (tmp_path / name for name in ("source", "in.gguf", "text.txt", "m.gguf"))
    shutil.copytree(qwen3_folder, source)
    shutil.copytree(golden_folder, tmp_path / "golden")
    shutil.copy(f32_file, file)
    text.write_text("Once upon a time")
    entry = Statistics(np.ones((1, 64), np.float32), np.ones(1, np.float32))
    made = ImportanceMatrix(entries={"blk.0.attn_q.weight": entry}, datasets=(), chunks=1, chunk_size=1, name="m")
    write_imatrix(made, matrix)
    (tmp_path / "out").mkdir()
    return Place(tmp_path, source, file, text, matrix, tmp_path / "golden", tmp_path / "out")


@pytest.fixture(scope="session")
def golden_folder(qwen3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "golden"
    path.mkdir()
    write_golden(qwen3_folder, path)
    return path


@pytest.fixture(scope="session")
def f32_file(qwen3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "f32.gguf"
    convert(qwen3_folder, path, type="f32")
    return path


def runs(place: Place) -> dict[str, list[tuple[list[object], dict[str, Path]]]]:
    """By command: arguments without outputs, the outputs by what names them ("" for an argument)."""
    source, file, text, out = place.source, place.file, place.text, place.out
    return {
        "convert": [([source], {"": out / "a.gguf"})],
        "quantize": [([file], {"": out / "a.gguf"})],
        "surgery": [
            ([file, "--swap", "0:1"], {"": out / "a.gguf", "--save-recipe": out / "a.toml"}),
            ([source, "--swap", "0:1"], {"": out / "folder", "--save-recipe": out / "a.toml"}),
        ],
        "imatrix": [([file, text], {"-o": out / "a.gguf"}), (["--merge", place.matrix], {"-o": out / "a.gguf"})],
        "card": [([source, file, "--suite", "none"], {"--out": out / "a.md"})],
        "publish": [([source, "--suite", "none"], {"--out": out / "folder"})],
        "eval": [
            (
                [file, "--suite", "card"],
                {"--csv": out / "a.csv", "--markdown": out / "a.md", "--answers": out / "a.jsonl"},
            )
        ],
        "verify": [([file, "--source", source], {})],
        "diff": [([source, file], {})],
        "golden": [
            ([source, "--tokens", "1"], {"": out / "golden"}),
            (["--family", "olmoe"], {"--all": out / "suite"}),
        ],
        "check": [([place.golden, "--dump", place.golden / "golden.safetensors"], {})],
        "trace": [([file, "--tokens", "4"], {"--html": out / "a.html", "--png": out / "a.png"})],
        "inspect": [([file], {}), ([source], {})],
        "edit": [([file, "--name", "A"], {"": out / "a.gguf"})],
        "split": [([file, "--max-tensors", "9"], {"": out / "a.gguf"})],
        "merge": [([file], {"": out / "a.gguf"})],
        "describe": [([source], {"--out": out / "a.toml"})],
        "demo": [([], {})],
        "compare": [([file, text], {})],
        "ask": [([file, "Hello"], {})],
        "chat": [([file], {})],
        "search run": [([file, "--storage", out / "none.db"], {"--html": out / "a.html"})],
        "search report": [([out / "none.db"], {"--html": out / "a.html", "--png": out / "pictures"})],
        "search export": [([out / "none.db"], {"": out / "a.gguf"})],
        "search profile": [([file], {"--png": out / "a.png"})],
    }


def by_name() -> dict[str, click.Command]:
    """The commands by name, those of a group with its name; lm-eval's outputs are options of the harness."""
    return {name: command for name, command in commands(group) if name != "lm-eval"}


def given(arguments: list[object], outputs: dict[str, Path]) -> list[object]:
    """The command line; TYPE of quantize comes last."""
    flags = [part for option, path in outputs.items() if option for part in (option, path)]
    return [*arguments[:1], *([outputs[""]] if "" in outputs else []), *arguments[1:], *flags]


def cases(place: Place) -> Iterator[tuple[str, list[object], dict[str, Path]]]:
    for command in by_name():
        for arguments, outputs in runs(place)[command]:
            yield command, arguments, {**outputs, "--json": place.out / "a.json"}


def typed(command: str, line: list[object]) -> list[object]:
    return [*command.split(), *line, *(["q8_0"] if command == "quantize" else [])]


def test_every_option_that_writes_is_tried(place: Place) -> None:
    for command, found in by_name().items():
        named = {
            option for param in found.params if param.name in WRITTEN for option in (param.opts if param.opts else [])
        }
        tried = {option for _, outputs in runs(place)[command] for option in outputs} | {"--json"}
        flags = {option for option in named if option.startswith("-")} - {"--out", "-o"}
        assert flags <= tried, command
        assert any(param.name == "force" for param in found.params), command


@pytest.mark.parametrize("link", [False, True])
def test_no_option_writes_over_an_input(tinyq: Tinyq, place: Place, link: bool) -> None:
    before = place.contents()
    for command, arguments, outputs in cases(place):
        inputs = [one for one in arguments if isinstance(one, Path)]
        inputs += [place.source / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
        for option in outputs:
            for path in [one for one in inputs if one.is_file() and (one in arguments or place.source in arguments)]:
                given_path = place.out / "link" if link else path
                if link:
                    given_path.hardlink_to(path)
                ran = tinyq(*typed(command, given(arguments, {**outputs, option: given_path})), "--force")
                if link:
                    given_path.unlink()
                assert (ran.code, ran.out) == (2, ""), (command, option)
                assert "is also an input of this command" in ran.err, (command, option, path)
    assert place.contents() == before
    assert list(place.out.iterdir()) == []


def test_no_option_writes_over_a_file_without_force(tinyq: Tinyq, place: Place) -> None:
    for command, arguments, outputs in cases(place):
        for option, path in outputs.items():
            path.write_text("precious")
            ran = tinyq(*typed(command, given(arguments, outputs)))
            assert (ran.code, ran.out) == (2, ""), (command, option)
            assert "exists already" in ran.err or "is a file" in ran.err, (command, option)
            assert [one.name for one in place.out.iterdir()] == [path.name]
            assert path.read_text() == "precious"
            path.unlink()


def test_no_option_writes_over_what_another_writes(tinyq: Tinyq, place: Place) -> None:
    for command, arguments, outputs in cases(place):
        for option in outputs:
            for other in outputs:
                if other != option:
                    ran = tinyq(*typed(command, given(arguments, {**outputs, option: outputs[other]})), "--force")
                    assert (ran.code, ran.out) == (2, ""), (command, option)
                    assert "is also the output of " in ran.err, (command, option, other)
    assert list(place.out.iterdir()) == []


def test_a_report_is_no_part_of_a_split_output(tinyq: Tinyq, place: Place) -> None:
    report = place.out / "a-00002-of-00003.gguf"
    ran = tinyq("quantize", place.file, place.out / "a.gguf", "q8_0", "--split-max-size", "20K", "--json", report)
    assert ran.code == 2
    assert "is the name of a shard of" in ran.err
    assert list(place.out.iterdir()) == []


def test_recipes_are_inputs_too(tinyq: Tinyq, place: Place) -> None:
    recipe = place.folder / "r.toml"
    recipe.write_text('steps = ["swap(0:1)"]\n')
    for option in ("--save-recipe", "--json"):
        ran = tinyq("surgery", place.file, place.out / "a.gguf", "--recipe", recipe, option, recipe, "--force")
        assert "is also an input of this command" in ran.err
    with pytest.raises(OutputError, match="is also an input of this command"):
        operate(place.file, place.out / "a.gguf", recipe, save_recipe=recipe, force=True)
    assert recipe.read_text() == 'steps = ["swap(0:1)"]\n'


def test_an_adapter_with_a_scale_is_an_input_too(tinyq: Tinyq, place: Place) -> None:
    adapter = place.folder / "adapter"
    adapter.mkdir()
    config = adapter / "adapter_config.json"
    config.write_text("{}")
    for lora in (adapter, f"{adapter}@0.5"):
        ran = tinyq("convert", place.source, place.out / "o.gguf", "--lora", lora, "--json", config, "--force")
        assert (ran.code, ran.err) == (
            2,
            f"tinyq: {config}: is also an input of this command; give --json another path\n",
        )


def test_a_report_does_not_replace_what_only_reading_tells_to_be_an_input(tinyq: Tinyq, place: Place) -> None:
    """The donor that a recipe names, and the source that a file records, by another name too."""
    donor = place.folder / "donor.gguf"
    shutil.copy(place.file, donor)
    recipe = place.folder / "recipe.toml"
    recipe.write_text('steps = ["graft(B:0@1)"]\n[donors.B]\npath = "donor.gguf"\n')
    made = place.folder / "made.gguf"
    assert tinyq("convert", place.source, made, "--type", "f32", "-q").code == 0
    before = place.contents()
    link = place.folder / "link.json"
    os.link(place.source / "config.json", link)
    lines: list[tuple[object, ...]] = [
        ("surgery", place.file, place.out / "o.gguf", "--recipe", recipe, "--no-prove", "--json", donor),
        ("eval", made, "--oracle", "none", "--no-speed", "--tokens", 1, "--json", link),
    ]
    for line in lines:
        ran = tinyq(*line, "--force")
        assert ran.code == 2
        assert f"{line[-1]}: is also an input of this command" in ran.err
    link.unlink()
    after = place.contents()
    assert {name: after[name] for name in before} == before


def test_a_recipe_that_cannot_be_saved_is_said_before_the_work(tinyq: Tinyq, place: Place) -> None:
    ran = tinyq("surgery", place.file, place.out / "a.gguf", "--swap", "0:1", "--save-recipe", place.out / "no" / "r")
    assert "does not exist; create it first" in ran.err
    assert list(place.out.iterdir()) == []


def test_a_gguf_made_before_in_the_sources_folder_may_be_replaced(tinyq: Tinyq, place: Place) -> None:
    out = place.source / "a.gguf"
    assert tinyq("convert", place.source, out).code == 0
    assert tinyq("convert", place.source, out).code == 2
    assert tinyq("convert", place.source, out, "--force").code == 0


# Sources that change


class Touching:
    """Progress that touches a file once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *_: Any) -> None:
        os.utime(self.path, ns=(1, 1))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_checkpoint_that_changes_while_it_is_converted(place: Place, name: str) -> None:
    changing = place.source / name
    with pytest.raises(CheckpointError, match=f"{name}: changed while it was read"):
        convert(place.source, place.out / "a.gguf", type="f16", progress=Touching(changing))
    os.utime(changing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        operate(place.source, place.out / "folder", "swap(0:1)", progress=Touching(changing))
    os.utime(changing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        verify(place.file, place.source, progress=Touching(changing))
    assert list(place.out.iterdir()) == []


def test_a_gguf_that_changes_while_it_is_read(place: Place) -> None:
    with pytest.raises(CheckpointError, match=r"in\.gguf: changed while it was read"):
        quantize(place.file, place.out / "a.gguf", "q8_0", progress=Touching(place.file))
    os.utime(place.file)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        quantize(place.file, place.out / "a.gguf", "q8_0", split_max_size="20K", progress=Touching(place.file))
    os.utime(place.file)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        operate(place.file, place.out / "a.gguf", "swap(0:1)", progress=Touching(place.file))
    os.utime(place.file)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        verify(place.file, place.source, progress=Touching(place.file))
    assert list(place.out.iterdir()) == []


def test_a_gguf_that_changes_before_it_is_changed_in_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*args: Any) -> Any:
        Touching(place.file)()
        return plan_in_place(*args)

    before = place.file.read_bytes()
    monkeypatch.setattr("gguf_tools.api.operate.plan_in_place", touched)
    with pytest.raises(CheckpointError, match=r"in\.gguf: changed while it was read"):
        operate(place.file, recipe="swap(0:1)", in_place=True, prove=False)
    assert place.file.read_bytes() == before
    assert list(place.folder.glob(".in.gguf*")) == []


def test_weights_that_cannot_be_read_are_no_difference(
    tinyq: Tinyq, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, count = DataFile.read, 0

    def fail(file: DataFile, offset: int, size: int) -> bytearray:
        nonlocal count
        count += file.path.suffix == ".safetensors"
        if count == 20:
            raise CheckpointError(f"{file.path}: cannot be read at byte {offset} (Input/output error); check the disk")
        return read(file, offset, size)

    monkeypatch.setattr(DataFile, "read", fail)
    ran = tinyq("verify", place.file, "--source", place.source, "--threads", "1")
    assert (ran.code, ran.out) == (2, "")
    assert "model.safetensors: cannot be read at byte" in ran.err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_source_that_changes_while_it_is_inspected(
    tinyq: Tinyq, place: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from gguf_tools.inspection import report

    described = report.inspect

    def touched(*args: Any) -> Any:
        found = described(*args)
        os.utime(place.source / name, ns=(1, 1))
        return found

    monkeypatch.setattr(report, "inspect", touched)
    ran = tinyq("inspect", place.source, "--json", place.out / "a.json")
    assert (ran.code, ran.out) == (2, "")
    assert f"{name}: changed while it was read" in ran.err
    assert list(place.out.iterdir()) == []


def test_inputs_of_cards_and_matrices_that_change(tinyq: Tinyq, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf_tools.publishing.model_card as model_card
    import quant.imatrix as matrices

    gather, coverage = model_card.gather, matrices.coverage

    def touched(function: Any, path: Path) -> Any:
        return lambda *a, **k: (Touching(path)(), function(*a, **k))[1]

    monkeypatch.setattr(model_card, "gather", touched(gather, place.file))
    monkeypatch.setattr(matrices, "coverage", touched(coverage, place.matrix))
    ran = tinyq("card", place.source, place.file, "--suite", "none", "--out", place.out / "a.md", "--modelfile")
    assert "in.gguf: changed while it was read" in ran.err
    ran = tinyq("imatrix", "--merge", place.matrix, "-o", place.out / "a.gguf")
    assert "m.gguf: changed while it was read" in ran.err
    assert list(place.out.iterdir()) == []


def test_a_folder_that_contains_an_input_is_not_replaced(tinyq: Tinyq, place: Place) -> None:
    made = place.out / "made"
    assert tinyq("surgery", place.source, made, "--swap", "0:1").code == 0
    ran = tinyq("surgery", place.source, made, "--recipe", made / "tinyq-recipe.toml", "--force")
    assert (ran.code, "made: contains the input" in ran.err) == (2, True), ran.err
    inside = place.golden / "model.gguf"
    shutil.copy(place.file, inside)
    ran = tinyq("golden", inside, place.golden, "--force")
    assert (ran.code, "golden: contains the input" in ran.err) == (2, True), ran.err
    assert inside.exists()
    # Golden values do not replace a checkpoint, such as the one that the file was made from.
    assert "without golden.json" in tinyq("golden", place.file, made, "--force").err


def test_a_file_with_two_names_is_not_changed_in_place(tinyq: Tinyq, place: Place, tmp_path: Path) -> None:
    file = place.file
    assert tinyq("edit", file, "--in-place", "--name", "a").code == 0
    other, before = tmp_path / "backup" / "of.gguf", file.read_bytes()
    other.parent.mkdir()
    other.hardlink_to(file)
    for args in (["edit", file, "--in-place", "--name", "b"], ["edit", file, "--in-place", "--name", "longer" * 999],
                 ["edit", other, "--in-place", "--name", "b"], ["edit", file, "--undo"],
                 ["surgery", file, "--in-place", "--swap", "0:1"]):  # fmt: skip
        ran = tinyq(*args)
        assert (ran.code, "has 2 names (hard links), which would all change" in ran.err) == (2, True), ran.err
    assert other.read_bytes() == before
    other.unlink()
    assert tinyq("edit", file, "--undo").code == 0
