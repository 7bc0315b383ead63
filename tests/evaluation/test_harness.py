"""lm-evaluation-harness on GGUF files: the same numbers and texts as the harness's own `hf` model on the same weights."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_tools import convert
from gguf_tools.commands.lm_eval import in_repository, saved
from gguf_tools.errors import InputError, OutputError
from tests.conftest import Ran
from tests.tiny_gguf import write_dense

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from gguf_tools.evaluation.harness import TinyqLM

BUNDLED = Path(__file__).resolve().parents[2] / "gguf_tools" / "bundled" / "dense"
WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "her",
    "dog",
    "ran",
    "in",
    "park",
    "sun",
    "friend",
    "blue",
    "tree",
)
TASKS = ("small_choice", "small_text", "small_answer")
NEAR = 2e-6
"""Relative difference of a log-likelihood; llama.cpp computes in float32, the reference in float64. 1.1e-6 at most was seen."""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness") / "dense.gguf"
    convert(BUNDLED, path, type="f32")
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small tasks, one of each kind of request, whose data are local."""
    folder = tmp_path_factory.mktemp("tasks")
    chance = random.Random(0)

    def text(count: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(count))

    rows: dict[str, list[dict[str, Any]]] = {
        "small_choice": [
            {"question": text(6), "choices": [text(1 + n % 3) for n in range(4)], "answer": i % 4} for i in range(8)
        ],
        "small_text": [{"text": text(40 * (i + 1))} for i in range(2)] + [{"text": text(700)}],
        "small_answer": [{"question": text(5), "answer": text(1)} for i in range(3)],
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    kinds: dict[str, dict[str, Any]] = {
        "small_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "Q: {{question}}\nA:",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "num_fewshot": 2,
            "fewshot_split": "train",
            "metric_list": [{"metric": "acc", **mean}],
        },
        "small_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        },
        "small_answer": {
            "output_type": "generate_until",
            "doc_to_text": "Once {{question}}. ",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match", **mean}],
        },
    }
    for name, kind in kinds.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(data)}, "test_split": "train"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **source, **kind}))
    return folder


@pytest.fixture(autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets' cache, out of the user's home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command does not list the thousands of tasks that come with the harness, which takes seconds."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


@pytest.fixture(scope="module")
def model(gguf: Path) -> Iterator[TinyqLM]:
    found = TinyqLM(gguf, add_bos_token=False, threads=1)
    yield found
    found.close()


def evaluated(model: Any, tasks: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
        **options,
    )
    return found


@pytest.fixture(scope="module")
def reference() -> Any:
    """The harness's own model class on the folder, in float64."""
    network = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float64)
    network.generation_config.max_new_tokens = None  # of the folder; it would override the task's
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    return HFLM(pretrained=network, tokenizer=tokenizer, softmax_dtype="float64", device="cpu", batch_size=8)


def test_equal_to_transformers_on_the_same_weights(model: TinyqLM, reference: Any, tasks: Path) -> None:
    ours, theirs = evaluated(model, tasks)["samples"], evaluated(reference, tasks)["samples"]
    for task in TASKS:
        assert [s["arguments"] for s in ours[task]] == [s["arguments"] for s in theirs[task]]
        assert [s["doc_hash"] for s in ours[task]] == [s["doc_hash"] for s in theirs[task]]

    def answers(samples: dict[str, Any], task: str) -> list[Any]:
        return [response[0] for sample in samples[task] for response in sample["resps"]]

    assert answers(ours, "small_answer") == answers(theirs, "small_answer")
    assert any(answers(ours, "small_answer"))
    choices, expected = answers(ours, "small_choice"), answers(theirs, "small_choice")
    assert [greedy for _, greedy in choices] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([v for v, _ in choices], [v for v, _ in expected], rtol=NEAR)
    # The last text is longer than the context, so that it is scored in windows.
    assert len(model.tok_encode(json.loads((tasks / "small_text.jsonl").read_text().splitlines()[-1])["text"])) > 512
    np.testing.assert_allclose(answers(ours, "small_text"), answers(theirs, "small_text"), rtol=NEAR)


def test_chat_templates_and_system_messages(model: TinyqLM, reference: Any, tasks: Path) -> None:
    options: dict[str, Any] = {"apply_chat_template": True, "system_instruction": "Be kind.", "limit": 2}
    ours, theirs = evaluated(model, tasks, **options), evaluated(reference, tasks, **options)
    for task in ("small_choice", "small_answer"):
        one, other = ours["samples"][task], theirs["samples"][task]
        assert [s["arguments"] for s in one] == [s["arguments"] for s in other]
        assert "Be kind." in str(one[0]["arguments"])
        for a, b in zip(one, other, strict=True):
            if task == "small_answer":
                assert a["resps"] == b["resps"]
            else:
                np.testing.assert_allclose([r[0][0] for r in a["resps"]], [r[0][0] for r in b["resps"]], rtol=NEAR)
    assert model.chat_template(True) == reference.chat_template(True)
    open_ended = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    rendered = reference.apply_chat_template(open_ended, add_generation_prompt=False)
    assert model.apply_chat_template(open_ended, add_generation_prompt=False) == rendered


def test_what_was_measured_is_recorded(model: TinyqLM, tasks: Path) -> None:
    config = evaluated(model, tasks, limit=1)["config"]
    assert config["tinyq"]["kv_type"] == "f32"
    assert config["tinyq"]["add_bos_token"] is False
    assert config["model_num_parameters"] == model.runtime.info.n_params


def test_bos_comes_first_once(gguf: Path, model: TinyqLM) -> None:
    bos = model.runtime.info.bos
    with_bos = TinyqLM(gguf, threads=1)  # as the file says
    text = with_bos.runtime.detokenize([bos or 0], special=True)
    assert with_bos.tok_encode("Once") == [bos, *model.tok_encode("Once")]
    assert with_bos.tok_encode(f"{text}Once") == with_bos.tok_encode("Once")
    assert with_bos.tok_encode("Once", add_special_tokens=False) == model.tok_encode("Once")
    assert model.prefix_token_id == bos
    with_bos.close()


def test_what_cannot_be_done_is_refused(tmp_path: Path, model: TinyqLM, tasks: Path) -> None:
    for options, said in (
        ({"do_sample": True, "temperature": 0.7}, "greedily"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"max_gen_toks": 512}, "no room for a prompt"),
        ({"no_repeat_ngram_size": 2}, "does not have"),
    ):
        with pytest.raises(InputError, match=said):
            evaluated(model, tasks, gen_kwargs=options, limit=1)
    plain = TinyqLM(write_dense(tmp_path / "plain.gguf"), threads=1)
    with pytest.raises(InputError, match="has no chat template"):
        plain.chat_template(True)
    plain.close()


@pytest.mark.usefixtures("only_ours")
def test_the_command_writes_what_the_harness_writes(
    tinyq: Callable[..., Ran], gguf: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "inner")
    line = [
        "lm-eval",
        str(gguf),
        "--tasks",
        "small_choice",
        "--include_path",
        str(tasks),
        "--limit",
        "3",
        "--threads",
        "1",
    ]
    ran = tinyq(*line, "--output_path", "..", "--log_samples")
    assert ran.code == 0, ran.err
    assert "small_choice" in ran.out
    files = sorted(path.name.partition("_2")[0] for path in (tmp_path / "out").rglob("*.json*"))
    assert files == ["results", "samples_small_choice"]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["model_args"]["pretrained"] == str(gguf)
    again = tinyq(*line, "--output_path", str(tmp_path / "out" / "named.json"))
    assert again.code == 0, again.err
    assert len(list((tmp_path / "out").glob("named_*.json"))) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "no_such_task"], "no_such_task"),
        (["--limit", "3"], "--tasks"),
        (["--tasks", "small_choice", "--model", "hf"], "--model cannot be given"),
        (["--tasks", "small_choice", "--no_such_option"], "--no_such_option"),
        (["--tasks", "small_choice", "--output_path", "{file}"], "is a file"),
        (["--tasks", "small_choice", "--model_args", "kv_type=f17"], "f17"),
        (["--tasks", "small_choice", "--model_args", "colour=red"], "colour"),
        (["--tasks", "small_choice", "--model_args", "pretrained=other.gguf"], "--model_args cannot have pretrained"),
    ],
)
@pytest.mark.usefixtures("only_ours")
def test_a_mistake_is_one_line(
    tinyq: Callable[..., Ran], gguf: Path, tasks: Path, options: list[str], said: str
) -> None:
    ran = tinyq("lm-eval", str(gguf), "--include_path", str(tasks), *(part.format(file=gguf) for part in options))
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_what_is_no_gguf_is_refused_before_the_tasks_are_read(tinyq: Callable[..., Ran], tmp_path: Path) -> None:
    ran = tinyq("lm-eval", tmp_path / "none.gguf", "--tasks", "small_choice")
    assert (ran.code, "does not exist; give a GGUF file" in ran.err) == (2, True)


@pytest.mark.usefixtures("only_ours")
def test_a_truncated_file_is_one_line(tinyq: Callable[..., Ran], gguf: Path, tasks: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(gguf.read_bytes()[:100_000])
    ran = tinyq("lm-eval", path, "--tasks", "small_choice", "--include_path", tasks, "--output_path", tmp_path / "out")
    assert ran.code == 2
    assert "truncated" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_harness_lists_its_own_options(tinyq: Callable[..., Ran]) -> None:
    ran = tinyq("lm-eval", "--harness-help")
    assert ran.code == 0
    assert "--num_fewshot" in ran.out


def test_results_that_the_harness_could_not_write_are_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It only logs so, and goes on."""

    def harness() -> None:
        logger = logging.getLogger("lm_eval.loggers.evaluation_tracker")
        with saved(tmp_path / "out"):
            logger.warning("Could not save sample results")
            logger.warning("Could not gate the repository")

    with pytest.raises(OutputError, match=r"could not write all of its results \(Could not save sample results\)"):
        harness()
    assert [record.getMessage() for record in caplog.records] == ["Could not gate the repository"]


def test_git_is_only_asked_in_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it prints an error, which the harness passes over and the user sees."""
    monkeypatch.chdir(tmp_path)
    assert not in_repository()
    (tmp_path / ".git").mkdir()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert in_repository()
    (tmp_path / "below").rmdir()
    assert not in_repository()


def test_without_the_harness_one_line_says_how(
    tinyq: Callable[..., Ran], gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("gguf_tools.evaluation.harness_installed.find_spec", lambda _: None)
    ran = tinyq("lm-eval", str(gguf), "--tasks", "small_choice")
    assert ran.code == 2
    assert "pip install 'lm_eval>=0.4.13'" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_the_class_is_registered_by_the_public_name_which_stays_the_function() -> None:
    """In a process of its own: `gguf_tools.evaluate` is a package from then on, and still evaluates."""
    code = (
        "import gguf_tools.evaluate.harness, gguf_tools\n"
        "from lm_eval.api.registry import get_model\n"
        "assert get_model('tinyq') is gguf_tools.evaluate.harness.TinyqLM\n"
        "from gguf_tools import evaluate\n"
        "try:\n"
        "    evaluate('none.gguf')\n"
        "except gguf_tools.errors.InputError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert ran.stdout.startswith("none.gguf: ")
