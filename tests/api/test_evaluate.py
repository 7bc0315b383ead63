"""`gguf_tools.evaluate`: `tinyq eval` as a function."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools import EvaluateResult, convert, evaluate, quantize
from gguf_tools.errors import CheckpointError, InputError, ThresholdError, TinyqError
from tests.api.conftest import Told
from tests.conftest import Ran

Tinyq = Callable[..., Ran]
QUICK: dict[str, Any] = {"tokens": 4, "speed": False, "threads": 1}
QUICK_OPTIONS = ("--tokens", 4, "--no-speed", "--threads", 1)


@pytest.fixture(scope="module")
def two(exact_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file in q4_0, and the F32 file that it was made from."""
    rough = tmp_path_factory.mktemp("two") / "rough.gguf"
    quantize(exact_file, rough, "q4_0")
    return rough, exact_file


@pytest.fixture(scope="module")
def scored(two: tuple[Path, Path], qwen3_folder: Path) -> EvaluateResult:
    return evaluate(two, reference=qwen3_folder, **QUICK)


def test_it_measures_what_the_command_measures(
    tinyq: Tinyq, two: tuple[Path, Path], qwen3_folder: Path, scored: EvaluateResult, tmp_path: Path
) -> None:
    report, lines, page = tmp_path / "a.json", tmp_path / "a.csv", tmp_path / "a.md"
    written = ("--json", report, "--csv", lines, "--markdown", page)
    ran = tinyq("eval", *two, "--reference", qwen3_folder, *QUICK_OPTIONS, *written)
    assert ran.code == 0, ran.err
    assert scored.as_dict() == json.loads(report.read_text("utf-8"))
    assert scored.as_csv() == lines.read_text("utf-8")
    assert scored.as_markdown() == page.read_text("utf-8")
    assert f"{scored}\n" == ran.out


def test_the_best_comes_first(two: tuple[Path, Path], scored: EvaluateResult) -> None:
    rough, exact = two
    assert [one.model.path for one in scored.scores] == [str(exact), str(rough)]
    assert scored.fidelity
    assert scored.fidelity.metrics.nmse < 1e-9
    assert (scored.speed, scored.card) == (None, None)
    html = scored._repr_html_()
    assert html.count("<tr>") == 3
    assert "<pre>" in html


def test_one_file_by_its_name(exact_file: Path, told: Told) -> None:
    """The source that the file records is found."""
    result = evaluate(str(exact_file), progress=told, **QUICK)
    assert result.as_dict()["reference"]["origin"] == "recorded"
    assert told.stages == ["greedy", "compare"]
    assert told.ended("compare")
    assert result.require(min_top1=0.99, max_nmse=1e-9, max_kl=1e-6, min_greedy=0.5) is result


def test_thresholds(two: tuple[Path, Path], scored: EvaluateResult) -> None:
    with pytest.raises(ThresholdError) as raised:
        scored.require(max_nmse=1e-9)
    assert str(raised.value).startswith(f"{two[0]}: NMSE is ")
    assert str(two[1]) not in str(raised.value)
    with pytest.raises(InputError, match="min_score needs suite card or all"):
        scored.require(min_score=50)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"min_top1": 97}, "min_top1 is 97; expected a share from 0 to 1, such as 0.97 for 97%"),
        ({"min_greedy": 1.01}, "min_greedy is 1.01; expected a share"),
        ({"max_nmse": math.nan}, "max_nmse is nan; expected a number of at least 0"),
        ({"max_kl": -1}, "max_kl is -1; expected a number of at least 0"),
        ({"min_score": 101}, "min_score is 101; expected a score from 0 to 100"),
    ],
)
def test_a_threshold_out_of_its_range_is_refused(scored: EvaluateResult, bounds: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        scored.require(**bounds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"suite": "all of it"}, "--suite is 'all of it'; expected one of fidelity, card, all"),
        ({"kv_type": "f8"}, "--kv-type is 'f8'"),
        ({"dtype": "f16"}, "--dtype is 'f16'"),
        ({"tokens": 0}, "--tokens is 0"),
        ({"context": 0}, "--context is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"prompts": "gone.txt"}, "gone.txt"),
        ({"text": "gone.txt"}, "gone.txt"),
        ({"reference": "gone"}, "gone"),
        ({"questions": "bundled"}, "--questions needs --suite card or all"),
        ({"weights": {"facts": 3}}, "--weight needs --suite card or all"),
        ({"suite": "card", "prompts": "p.txt"}, "--prompts needs --suite fidelity or all"),
        ({"suite": "card", "speed": False}, "--no-speed needs --suite fidelity or all"),
        ({"suite": "card", "weights": {"charm": 3}}, "part 'charm' is not known"),
        ({"suite": "card", "questions": "gone.jsonl"}, "gone.jsonl"),
        ({"suite": "card", "repeat_set": 0}, "--repeat-set is 0"),
        ({"suite": "all", "answer_tokens": 0}, "--answer-tokens is 0"),
    ],
)
def test_what_does_not_fit_is_an_input_error(exact_file: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        evaluate(exact_file, **options)
    assert said in str(raised.value)


def test_files_that_are_not_there_or_not_alone(exact_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is given twice"):
        evaluate([exact_file, str(exact_file)])
    with pytest.raises(InputError, match="no file to score"):
        evaluate([])
    (tmp_path / "cut.gguf").write_bytes(exact_file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.gguf"):
        evaluate([exact_file, tmp_path / "cut.gguf"])
    with pytest.raises(TinyqError, match=r"gone\.gguf"):
        evaluate(tmp_path / "gone.gguf")


def test_a_hostile_name_is_escaped(qwen3_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x>\x1b[2J.gguf"
    convert(qwen3_folder, file, type="f32")
    result = evaluate(file, **QUICK)
    assert "<img src=x>\\x1b[2J.gguf" in " ".join(repr(result).split()), "over the end of a line too"
    html = result._repr_html_()
    assert html.count("&lt;img src=x&gt;\\x1b[2J.gguf") == 2
    assert "<img" not in html
    assert "\x1b" not in html + repr(result)
