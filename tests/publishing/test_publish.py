"""`tinyq publish`: one folder with all types, measured against one run of the reference, and what a card says of them."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gguf_tools import convert, publish
from gguf_tools.cli import run
from gguf_tools.errors import InputError, LlamaError, OutputError
from gguf_tools.evaluation.run import load_reference
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.publishing.folder import checksums_text, read_checksums
from gguf_tools.publishing.measure import Suites, measure_together
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.text import human_bytes
from tests import tiny_models
from tests.conftest import Ran
from tests.publishing.test_model_card import front_of, rows_of
from tests.tiny_models import checkpoint

Tinyq = Callable[..., Ran]
TYPES = ("f32", "q8_0", "q4_0")
SHORT = ("--answer-tokens", "3", "--think-tokens", "3", "--questions", "bundled")
README = """---
license: my-license-1.0
language: [en, pt-BR, English]
base_model: someone/base
datasets: [someone/data, "a/b/c"]
tags: [small]
---
# A model
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint(tmp_path_factory.mktemp("source") / "Tiny Model", tiny_models.dense(), dtype=torch.bfloat16)
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture(scope="module")
def made(source: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with everything measured, and the report."""
    out = source.parent / "published"
    report = source.parent / "report.json"
    names = ["--quantized-by", "somebody", "--name", "Tiny/Model (2)"]
    arguments = ["publish", source, "-o", out, "--types", "q8_0,F32", "--types", "q4_0", *SHORT, *names]
    assert run([str(a) for a in (*arguments, "--json", report, "-q")]) == 0
    return out, json.loads(report.read_text("utf-8"))


def test_the_files_are_those_of_a_conversion_each(made: tuple[Path, dict[str, Any]], source: Path) -> None:
    folder, report = made
    assert [file["type"] for file in report["files"]] == list(TYPES)  # the largest first
    for name, file in zip(TYPES, report["files"], strict=True):
        path = folder / f"Tiny-Model-2-{name.upper()}.gguf"
        assert Path(file["path"]) == path
        alone = source.parent / "alone" / path.name
        alone.parent.mkdir(exist_ok=True)
        convert(source, alone, type=name)
        assert path.read_bytes() == alone.read_bytes()
        assert file["bytes"] == path.stat().st_size
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_folder_has_what_its_checksums_list(made: tuple[Path, dict[str, Any]]) -> None:
    folder, report = made
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert {path.name for path in folder.iterdir()} == {*listed, "SHA256SUMS"} == set(report["sha256"])
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest == report["sha256"][name]
    for file in report["files"]:
        text = (folder / file["modelfile"]).read_text("utf-8")
        assert text.startswith(f"FROM ./{Path(file['path']).name}\n")
    bodies = {(folder / file["modelfile"]).read_text("utf-8").partition("\n")[2] for file in report["files"]}
    assert len(bodies) == 1


def test_the_table_has_what_was_measured(made: tuple[Path, dict[str, Any]]) -> None:
    folder, report = made
    rows = rows_of((folder / "README.md").read_text("utf-8"), "Files")
    assert list(rows[0]) == [
        *("File", "Tag", "Bits/weight", "Size", "NMSE", "KL (nats)", "Top-1", "Score (95%)", "Δ F32", "Perplexity"),
    ]
    positions = {file["fidelity"]["n_tokens"] for file in report["files"]}
    assert len(positions) == 1
    for row, file in zip(rows, report["files"], strict=True):
        fidelity, card = file["fidelity"], file["card"]
        assert row["Tag"] == f"`{file['tag']}`"
        assert row["Size"] == human_bytes(file["bytes"])
        assert row["NMSE"] == f"{fidelity['nmse']:.1e}"
        assert row["KL (nats)"] == f"{fidelity['kl_mean']:.2g}"
        assert row["Top-1"] == f"{fidelity['top1_agreement']:.2%}"
        assert row["Score (95%)"].startswith(f"{card['score']:.2f} (")
        assert float(row["Perplexity"]) == pytest.approx(card["parts"]["perplexity"]["perplexity"], rel=1e-3)
    assert rows[0]["Δ F32"] == "–"
    change = re.match(r"\**([+-][\d.]+) \(", rows[2]["Δ F32"])
    assert change
    scores = [file["card"]["score"] for file in report["files"]]
    assert float(change[1]) == pytest.approx(scores[2] - scores[0], abs=0.006)
    assert report["files"][0]["fidelity"]["nmse"] < 1e-9 < report["files"][1]["fidelity"]["nmse"]
    assert report["files"][0]["fidelity"]["greedy_exact_match"] == 1


def test_the_front_matter_is_what_the_hub_accepts(made: tuple[Path, dict[str, Any]]) -> None:
    folder, report = made
    text = (folder / "README.md").read_text("utf-8")
    front = front_of(text)
    assert front == {
        "license": "other",
        "license_name": "my-license-1.0",
        "language": ["en", "pt"],
        "language_bcp47": ["pt-BR"],
        "base_model": "someone/base",
        "base_model_relation": "quantized",
        "datasets": ["someone/data"],
        "model_name": front["model_name"],
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "quantized_by": "somebody",
        "tags": ["gguf", "qwen3", "tinyq", "small"],
    }
    told = " ".join(report["notes"])
    assert "'my-license-1.0' is not in the hub's list" in told
    assert "'English' is no ISO 639 code" in told
    assert "'a/b/c' is no id" in told
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(text).data.to_dict()
    assert {key: data[key] for key in front} == front
    assert yaml.safe_load(hub.ModelCard(text).data.to_yaml()) == front


def test_the_verify_lines_hold(made: tuple[Path, dict[str, Any]], source: Path, tinyq: Tinyq) -> None:
    folder, _ = made
    section = (folder / "README.md").read_text("utf-8").split("## Check the files")[1].split("```")[1]
    lines = [line for line in section.splitlines() if line.startswith("tinyq ")]
    assert len(lines) == len(TYPES)
    for line in lines:
        _, command, file, option, base = shlex.split(line)
        assert (command, option, base) == ("verify", "--source", "someone/base")
        assert tinyq(command, folder / file, option, source, "-q").code == 0


def test_no_machine_s_path_is_on_the_card(made: tuple[Path, dict[str, Any]], source: Path) -> None:
    for path in made[0].iterdir():
        if path.suffix != ".gguf":
            assert str(source.parent) not in path.read_text("utf-8")


def test_the_reference_runs_once_and_the_threads_change_nothing(
    made: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one thread the files are measured one after another, in the fixture side by side."""
    loaded, opened = [], []
    enter = Runtime.__enter__

    def load(*arguments: Any) -> Any:
        loaded.append(arguments)
        return load_reference(*arguments)

    def noted(runtime: Runtime) -> Runtime:
        opened.append(runtime.path.name)
        return enter(runtime)

    monkeypatch.setattr("gguf_tools.publishing.measure.load_reference", load)
    monkeypatch.setattr(Runtime, "__enter__", noted)
    short = {"questions": "bundled", "answer_tokens": 3, "think_tokens": 3}
    result = publish(source, tmp_path / "out", types=TYPES, threads=1, **short)  # type: ignore[arg-type]
    for file, other in zip(result.as_dict()["files"], made[1]["files"], strict=True):
        assert file["fidelity"] == other["fidelity"]
        assert file["card"] == other["card"]
    assert len(loaded) == 1
    assert [name for name in opened if name.endswith(".gguf")] == [path.name for path in result.paths]


def test_surgery_and_an_importance_matrix(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    """Both hold for all types; the matrix is published, so that the card's commands can be run."""
    exact, text, matrix = tmp_path / "exact.gguf", tmp_path / "text.txt", tmp_path / "m.gguf"
    convert(source, exact, type="f32", surgery="swap(0:1)")
    text.write_text("the cat sat on the mat and then it went out. " * 60)
    assert tinyq("imatrix", exact, text, "-o", matrix, "-q").code == 0
    out = tmp_path / "out"
    options = ("--types", "q4_0,f32", "--imatrix", matrix, "--suite", "fidelity", "--swap", "0:1")
    ran = tinyq("publish", source, "-o", out, *options, "--json", tmp_path / "r.json")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["files"][0]["fidelity"]["nmse"] < 1e-9
    assert (out / "Tiny-Model-imatrix.gguf").read_bytes() == matrix.read_bytes()
    card = (out / "README.md").read_text("utf-8")
    assert "## Layer surgery" in card
    assert "base_model_relation" not in front_of(card)
    assert "--imatrix Tiny-Model-imatrix.gguf" in card
    assert rows_of(card, "Files")[0]["Tag"] == "`F32`"
    for path in (out / "Tiny-Model-F32.gguf", out / "Tiny-Model-Q4_0.gguf"):
        assert tinyq("verify", path, "--source", source, "--imatrix", out / "Tiny-Model-imatrix.gguf", "-q").code == 0


def test_a_dry_run_says_the_sizes_and_writes_nothing(
    made: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path, tinyq: Tinyq
) -> None:
    out = tmp_path / "out"
    ran = tinyq("publish", source, "-o", out, "--types", "q8_0,f32,q4_0", "--dry-run", "--json", tmp_path / "r.json")
    assert ran.code == 0, ran.err
    assert "nothing was written (--dry-run)" in ran.out
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert [file["type"] for file in report["files"]] == list(TYPES)
    # The names differ from those of the fixture, and so does the recorded path to the source: the sizes of the data are equal.
    for file, other in zip(report["files"], made[1]["files"], strict=True):
        assert abs(file["bytes"] - other["bytes"]) < 256
        assert file["bpw"] == pytest.approx(other["bpw"])
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--types", "q8_0,Q8_0"], r"--types has q8_0 twice"),
        (["--types", "q4_k,q4_k_m"], r"--types has q4_k_m twice"),
        (["--types", "auto,f16"], r"--types has f16 twice"),
        (["--types", "q9_0"], r"type q9_0 does not exist"),
        (["--types", " , "], r"expected types such as"),
        (["--base-model", "no id"], r"--base-model is 'no id'"),
        (["--quantized-by", "a\x1bb"], r"--quantized-by"),
        (["--context", "100000000"], r"--context is 100000000; give fewer"),
        (["--weight", "facts=x"], r"facts=x"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    source: Path, tmp_path: Path, tinyq: Tinyq, options: list[str], said: str
) -> None:
    ran = tinyq("publish", source, "-o", tmp_path / "out", "--suite", "none", "-q", *options)
    assert ran.code == 2
    assert re.search(said, ran.err), ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_is_no_source(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a GGUF; publish makes all types from a checkpoint"):
        publish(next(made[0].glob("*.gguf")), tmp_path / "out")


def test_a_folder_is_replaced_only_if_it_is_one_s_own(
    made: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    again = {"types": ("f32",), "suite": "none"}
    with pytest.raises(OutputError, match="exists already"):
        publish(source, out, **again)  # type: ignore[arg-type]
    (out / "banner.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"holds banner.png, which is not in its SHA256SUMS and would be lost"):
        publish(source, out, force=True, **again)  # type: ignore[arg-type]
    assert (out / "banner.png").read_bytes() == b"mine"
    (out / "banner.png").unlink()
    publish(source, out, force=True, **again)  # type: ignore[arg-type]
    assert len(list(out.glob("*.gguf"))) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is a folder without SHA256SUMS"):
        publish(source, other, force=True, **again)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="is also an input"):
        publish(source, source, force=True, **again)  # type: ignore[arg-type]


def test_one_file_that_llama_cpp_fails_on_ends_all(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The error of the file is raised, also where others wait for the reference; no process is left."""
    paths = []
    for name in TYPES:
        path = tmp_path / f"{name}.gguf"
        shutil.copyfile(next(made[0].glob(f"*-{name.upper()}.gguf")), path)
        paths.append(path)
    for broken in paths[1:]:
        data = bytearray(broken.read_bytes())
        entry = read_header(broken).tensors[0]
        at = data.index(entry.name.encode())
        data[at : at + 1] = b"x"  # a tensor of another name, in a file that is whole
        broken.write_bytes(data)
    suites = Suites(reference=None, card=None)
    with pytest.raises(LlamaError, match=r"q(8|4)_0\.gguf: llama.cpp failed \(load\)"):
        measure_together(paths, suites, RuntimeOptions(threads=2), tmp_path)


def test_a_broken_first_file_does_not_leave_the_others_waiting(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise InputError("the reference cannot be made")

    monkeypatch.setattr("gguf_tools.publishing.measure.load_reference", failing)
    with pytest.raises(InputError, match="the reference cannot be made"):
        publish(source, tmp_path / "out", types=TYPES, suite="fidelity", threads=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc  name\n",
        "0" * 64 + " name\n",
        "0" * 64 + "  ../name\n",
        "0" * 64 + "  a/b\n",
        "0" * 64 + "  ..\n",
        "0" * 64 + "  SHA256SUMS\n",
        2 * ("0" * 64 + "  name\n"),
    ],
)
def test_lists_of_checksums_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(InputError, match="SHA256SUMS"):
        read_checksums(tmp_path)


def test_checksums_are_read_as_written(tmp_path: Path) -> None:
    digests = {"a b.gguf": "0" * 64, "ä.gguf": "f" * 64}
    (tmp_path / "SHA256SUMS").write_text(checksums_text(digests), "utf-8")
    assert read_checksums(tmp_path) == digests
