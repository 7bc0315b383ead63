"""What `tinyq eval` refuses, in one line and with nothing written, and files on which llama.cpp fails."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools.bundled import bundled_model
from tests.conftest import Ran
from tests.tiny_gguf import write_dense

Tinyq = Callable[..., Ran]


def refused(ran: Ran, folder: Path) -> str:
    """The one line of a refusal, with nothing written."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("tinyq: ")
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err
    assert not list(folder.glob("out.*"))
    return ran.err


CARD = ("--suite", "card")
USAGE: dict[str, tuple[tuple[str, ...], str]] = {
    "a threshold on fidelity": ((*CARD, "--max-kl", "1"), "--max-kl needs --suite fidelity or all"),
    "a reference": ((*CARD, "--reference", "x"), "--reference needs --suite fidelity or all"),
    "a threshold on the score": (("--min-score", "5"), "--min-score needs --suite card or all"),
    "questions without the suite": (("--questions", "bundled"), "--questions needs --suite card or all"),
    "answers without the suite": (("--answers", "a.jsonl"), "--answers needs --suite card or all"),
    "answers shown without the suite": (("--show-answers",), "--show-answers needs --suite card or all"),
    "weights without the suite": (("--weight", "facts=1"), "--weight needs --suite card or all"),
    "an unknown set": (
        (*CARD, "--questions", "nonsense"),
        "nonsense: is neither a question set (general, bundled)",
    ),
    "an unknown set to hold out": ((*CARD, "--held-out", "nonsense"), "nonsense: is neither a question set"),
    "too large a set": (
        (*CARD, "--questions", "bundled", "--repeat-set", "4"),
        "questions, but 4 sets of 17 need 68; give at most 3",
    ),
    "a share in percent": (
        ("--min-top1", "97"),
        "'--min-top1': it is 97; expected a share from 0 to 1, such as 0.97 for 97%",
    ),
    "a share below 0": (("--min-greedy", "-0.1"), "'--min-greedy': it is -0.1; expected a share from 0 to 1"),
    "a score above 100": (
        (*CARD, "--min-score", "100.5"),
        "'--min-score': it is 100.5; expected a score from 0 to 100",
    ),
    "an error below 0": (("--max-nmse", "-1e-9"), "'--max-nmse': it is -1e-09; expected a number of at least 0"),
    "a divergence that is no number": (("--max-kl", "nan"), "'--max-kl': it is nan; expected a number of at least 0"),
    "a time that is no number": (("--timeout", "nan"), "'--timeout': it is nan; expected a number of at least 0"),
    "no set": ((*CARD, "--repeat-set", "0"), "0 is not in the range x>=1"),
    "a weight without a number": ((*CARD, "--weight", "facts"), "--weight facts: has no weight"),
    "a weight that is none": (
        (*CARD, "--weight", "facts=a"),
        "--weight facts=a: has the weight 'a'; expected PART=NUMBER such as",
    ),
    "a weight below 0": ((*CARD, "--weight", "facts=-1"), "the weight of facts is -1.0; expected a number from 0"),
    "a weight of nothing": ((*CARD, "--weight", "taste=1"), "part 'taste' is not known; expected one of facts, "),
    "a text that is not there": ((*CARD, "--text", "gone.txt"), "gone.txt: cannot be read (No such file or directory)"),
    "an unknown suite": (("--suite", "cards"), "'cards' is not one of 'fidelity', 'card', 'all'"),
    "two outputs in one": (
        (*CARD, "--json", "-", "--csv", "-"),
        "only one of --json, --csv, --markdown and --answers can go",
    ),
}


@pytest.mark.usefixtures("no_llama")
@pytest.mark.parametrize(("options", "expected"), USAGE.values(), ids=list(USAGE))
def test_bad_usage_is_one_line(
    tinyq: Tinyq, plain: Path, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    outputs = () if "--json" in options else ("--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv")
    assert expected in refused(tinyq("eval", plain, *options, *outputs), tmp_path)


@pytest.mark.parametrize("place", [0, 1])
def test_a_crash_of_one_file_does_not_stop_the_others(tinyq: Tinyq, plain: Path, tmp_path: Path, place: int) -> None:
    bad = write_dense(tmp_path / "bad.gguf", rope=8)  # llama.cpp aborts on it
    other = tmp_path / "other.gguf"
    other.write_bytes(plain.read_bytes())
    files = [plain, other]
    files.insert(place, bad)
    report, rows = tmp_path / "out.json", tmp_path / "out.csv"
    ran = tinyq("eval", *files, "--no-speed", "--tokens", "4", "--json", report, "--csv", rows)
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert f"{bad}: llama.cpp failed (" in ran.err
    assert "was ended by SIGABRT" in ran.err
    assert f"failed: {bad}: llama.cpp failed (" in ran.out
    found = json.loads(report.read_text("utf-8"))
    assert {model["model"]["path"] for model in found["models"]} == {str(plain), str(other)}
    assert [failure["path"] for failure in found["failed"]] == [str(bad)]
    assert "GGML_ASSERT" in found["failed"][0]["message"]
    assert len(list(csv.reader(io.StringIO(rows.read_text("utf-8"))))) == 3


def test_where_all_files_crash_nothing_is_measured(tinyq: Tinyq, tmp_path: Path) -> None:
    bad = [write_dense(tmp_path / name, rope=8) for name in ("a.gguf", "b.gguf")]
    ran = tinyq("eval", *bad, "--no-speed", "--json", tmp_path / "out.json")
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert all(f"{path}: llama.cpp failed (" in ran.err for path in bad)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.usefixtures("no_llama")
@pytest.mark.parametrize("suite", ["fidelity", "card", "all"])
def test_files_are_looked_at_before_any_is_run(tinyq: Tinyq, plain: Path, tmp_path: Path, suite: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGML" + bytes(60))
    other = tmp_path / "other.gguf"
    other.symlink_to(plain)
    for files, expected in (
        ((plain, tmp_path / "gone.gguf"), "gone.gguf: "),
        ((plain, tmp_path), f"{tmp_path}: "),
        ((plain, broken), "broken.gguf: "),
        ((plain, other, plain), f"{plain}: is given twice; give each file once"),
    ):
        ran = tinyq("eval", *files, "--suite", suite, "--json", tmp_path / "out.json")
        assert expected in refused(ran, tmp_path)


@pytest.mark.usefixtures("no_llama")
def test_outputs_that_cannot_be_written_are_refused_at_once(tinyq: Tinyq, plain: Path, tmp_path: Path) -> None:
    before = plain.read_bytes()
    out = tmp_path / "out.x"
    for outputs, expected in (
        (("--json", plain), f"{plain}: is also an input of this command; give --json another path"),
        (("--markdown", tmp_path), f"{tmp_path}: is a folder; expected a file; give the path of the file to write"),
        (("--csv", tmp_path / "gone" / "x"), f"the folder {tmp_path / 'gone'} does not exist; create it first"),
        (("--json", out, "--csv", out), f"{out}: is also the output of --json; give --csv another path"),
    ):
        assert expected in refused(tinyq("eval", plain, *CARD, *outputs), tmp_path)
    assert plain.read_bytes() == before


@pytest.mark.usefixtures("no_llama")
def test_a_model_is_needed(tinyq: Tinyq, tmp_path: Path) -> None:
    assert "MODEL" in refused(tinyq("eval", "--suite", "card"), tmp_path)


@pytest.mark.usefixtures("no_llama")
def test_a_broken_line_of_questions_is_named(tinyq: Tinyq, plain: Path, question: Path, tmp_path: Path) -> None:
    with question.open("a") as stream:
        stream.write('\n{"question": "3?", "accept": "three"}\n')
    ran = tinyq("eval", plain, *CARD, "--questions", question, "--json", tmp_path / "out.json")
    assert f"{question}:3: accept is 'three'; expected a list of accepted answers" in refused(ran, tmp_path)


def test_a_context_too_short_for_any_question(tinyq: Tinyq, tmp_path: Path) -> None:
    path = tmp_path / "f16.gguf"
    assert tinyq("convert", bundled_model("hybrid"), path, "--type", "f16", "-q").code == 0
    for context in (1, 24):
        ran = tinyq("eval", path, *CARD, "--context", context, "--json", tmp_path / "out.json")
        assert f"{path}: no question fits into the context of {context} tokens; give a longer" in refused(ran, tmp_path)


def test_a_model_without_a_thinking_mode(tinyq: Tinyq, plain: Path, tmp_path: Path) -> None:
    ran = tinyq("eval", plain, *CARD, "--thinking", "--json", tmp_path / "out.json")
    assert f"{plain}: thinking was requested, but the model's chat template has no" in refused(ran, tmp_path)


def test_a_reference_of_another_vocabulary(tinyq: Tinyq, plain: Path, tmp_path: Path) -> None:
    ran = tinyq("eval", plain, "--reference", bundled_model("hybrid"))
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "has a vocabulary of 260 tokens, but the reference" in ran.err
    assert "has 1024; give the checkpoint" in ran.err


@pytest.mark.usefixtures("no_llama")
def test_a_second_file_that_is_cut_short_is_found_first(tinyq: Tinyq, plain: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(plain.read_bytes()[:-100])
    ran = tinyq("eval", plain, cut, "--suite", "card")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert ran.err.startswith(f"tinyq: {cut}: ")


def test_a_split_file_has_the_size_of_all_parts(tinyq: Tinyq, plain: Path, tmp_path: Path) -> None:
    assert tinyq("quantize", plain, tmp_path / "split.gguf", "f16", "--split-max-size", "20K", "-q").code == 0
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 2
    assert tinyq("eval", parts[0], "--suite", "card", "--json", tmp_path / "out.json", "-q").code == 0
    model = json.loads((tmp_path / "out.json").read_text("utf-8"))["model"]
    assert model["bytes"] == sum(part.stat().st_size for part in parts)


def test_a_pipe_is_no_file(tinyq: Tinyq, plain: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    for args in (("eval", fifo, "--suite", "card"), ("card", plain, fifo)):
        ran = tinyq(*args)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert "is not a regular file" in ran.err
