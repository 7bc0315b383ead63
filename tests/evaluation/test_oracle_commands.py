"""`tinyq eval` and `tinyq convert --prove` with an oracle, and on files of families that tinyq does not know."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from docs.misreadings import make, planted
from docs.planted import MISREADINGS
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation import transformers_model
from gguf_tools.evaluation.conformance import SEED
from gguf_tools.families import registry
from gguf_tools.families.registry import family_named
from gguf_tools.runtime.process import Runtime
from gguf_tools.sources.checkpoint import open_checkpoint
from tests.conftest import Ran
from tests.evaluation.foreign import write_foreign

Tinyq = Callable[..., Ran]
QUICK = ("--no-speed", "--tokens", 2, "--threads", 1)


# tinyq eval


def test_eval_says_so_in_its_first_line(tinyq: Tinyq, work: Path) -> None:
    ran = tinyq("eval", work / "out.gguf", "--prompts", work / "prompts.txt", *QUICK)
    assert ran.code == 0, ran.err
    first, second, *_ = ran.out.splitlines()
    assert first.startswith("transformers 5.")
    assert " agrees: NMSE " in first
    assert "(16 tokens, float64); llama.cpp " in first
    assert second.startswith(str(work / "out.gguf"))
    hushed = tinyq("eval", work / "out.gguf", "--prompts", work / "prompts.txt", *QUICK, "--oracle", "none")
    assert hushed.out.splitlines() == ran.out.splitlines()[1:]


def test_eval_json(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    args = ("--prompts", work / "prompts.txt", *QUICK, "--json", tmp_path / "out.json", "-q")
    assert tinyq("eval", work / "out.gguf", *args, "--oracle", "transformers").code == 0
    found = json.loads((tmp_path / "out.json").read_text())["fidelity"]["oracle"]
    assert found["name"].startswith("transformers 5.")
    assert found["nmse"] <= 1e-24
    assert 1e-16 < found["nmse_model"] <= 1e-10
    assert (found["n_sequences"], found["agrees"], found["bound"]) == (2, True, 1e-18)
    assert tinyq("eval", work / "out.gguf", *args, "--oracle", "none", "--force").code == 0
    assert json.loads((tmp_path / "out.json").read_text())["fidelity"]["oracle"] is None


def test_eval_of_a_source_that_transformers_does_not_know(tinyq: Tinyq, tmp_path: Path) -> None:
    tiny = family_named("moe-model").tiny
    assert tiny is not None
    tiny(tmp_path / "source", "pt", SEED)
    execute(prepare(Request(source=tmp_path / "source", type="f32", threads=1)), tmp_path / "out.gguf")
    (tmp_path / "prompts.txt").write_text("Once\n")
    args = ("eval", tmp_path / "out.gguf", "--prompts", tmp_path / "prompts.txt", *QUICK)
    ran = tinyq(*args)
    assert ran.code == 0
    assert "note: the reference is not compared with other code: " in ran.out
    ran = tinyq(*args, "--oracle", "transformers")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "transformers reads only folders with config.json" in ran.err


def test_the_files_own_weights_have_no_oracle(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.gguf"
    alone.write_bytes((work / "out.gguf").read_bytes())
    args = ("eval", alone, "--prompts", work / "prompts.txt", *QUICK)
    ran = tinyq(*args)
    assert ran.code == 0
    assert "other code" not in ran.out
    assert "transformers" not in ran.out
    ran = tinyq(*args, "--oracle", "transformers")
    assert ran.code == 2
    assert "transformers needs the checkpoint that the file was made from; give it with --reference" in ran.err


def test_surgery_is_held_against_the_source_before_it(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "swapped.gguf"
    assert tinyq("convert", work / "source", out, "--type", "f32", "--swap", "0:1", "--prove", "-q").code == 0
    ran = tinyq(
        "eval", out, "--prompts", work / "prompts.txt", *QUICK, "--json", tmp_path / "out.json", "--max-nmse", 1e-10
    )
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "out.json").read_text())["fidelity"]
    assert found["oracle"]["agrees"]
    assert found["oracle"]["nmse_model"] is None
    assert "llama.cpp" not in ran.out.splitlines()[0]


def test_several_files_ask_once(tinyq: Tinyq, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = work / "twin.gguf"
    twin.write_bytes((work / "out.gguf").read_bytes())
    asked = []
    load = transformers_model.TransformersModel.__init__

    def counted(self: Any, *args: Any) -> None:
        asked.append(args)
        load(self, *args)

    monkeypatch.setattr(transformers_model.TransformersModel, "__init__", counted)
    ran = tinyq("eval", work / "out.gguf", twin, "--prompts", work / "prompts.txt", *QUICK)
    assert ran.code == 0
    assert len(asked) == 1
    assert [line.split(" ")[:2] for line in sorted(ran.out.splitlines()[:2])] == [
        ["out.gguf:", "transformers"],
        ["twin.gguf:", "transformers"],
    ]


def test_an_option_of_the_fidelity_suite(tinyq: Tinyq, work: Path) -> None:
    ran = tinyq("eval", work / "out.gguf", "--suite", "card", "--oracle", "none")
    assert ran.code == 2
    assert "--oracle needs --suite fidelity or all" in ran.err


# A misreading from end to end


def test_a_planted_misreading(tinyq: Tinyq, tmp_path: Path, work: Path) -> None:
    misreading = next(one for one in MISREADINGS if one.name == "q/k norm left out")
    source, out = make(misreading, tmp_path)
    args = ("eval", out, "--prompts", work / "prompts.txt", *QUICK, "--max-nmse", 1e-10)
    with planted(misreading):
        alone = tinyq(*args, "--oracle", "none")
        unasked = tinyq(*args)
        proved = tinyq("convert", source, tmp_path / "proved.gguf", "--prove")
        hushed = tinyq("convert", source, tmp_path / "hushed.gguf", "--prove", "--oracle", "none", "-q")
    assert alone.code == 0
    assert unasked.code == 1
    assert " disagrees: NMSE 0." in unasked.out.splitlines()[0]
    assert unasked.err.count("\n") == 1
    assert "disagrees with the reference (NMSE 0." in unasked.err
    assert (proved.code, proved.err.count("\n"), proved.out) == (2, 1, "")
    assert " disagrees: NMSE 0." in proved.err
    assert "nothing is written" in proved.err
    assert hushed.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hushed.gguf", "out.gguf", "source"]


def test_convert_proves(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    ran = tinyq("convert", work / "source", tmp_path / "out.gguf", "--type", "f32", "--prove")
    assert ran.code == 0, ran.err
    first, second, *_ = ran.out.splitlines()
    assert " agrees: NMSE " in first
    assert second.startswith("proved    llama.cpp's logits of 16 tokens: NMSE ")
    ran = tinyq(
        "convert", work / "source", tmp_path / "q8.gguf", "--type", "q8_0", "--prove", "--json", tmp_path / "q8.json"
    )
    assert ran.code == 0
    proof = json.loads((tmp_path / "q8.json").read_text())["proof"]
    assert proof["oracle"]["agrees"]
    assert 1e-8 < proof["nmse"] < 1e-2
    assert tinyq("convert", work / "source", tmp_path / "no.gguf", "--oracle", "none").code == 2


def test_convert_proves_the_file_too(tinyq: Tinyq, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = Runtime.logits

    def off(runtime: Runtime, sequences: list[list[int]]) -> list[Any]:
        return [logits * 1.001 for logits in computed(runtime, sequences)]

    monkeypatch.setattr(Runtime, "logits", off)
    ran = tinyq("convert", work / "source", tmp_path / "out.gguf", "--type", "f32", "--prove")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "llama.cpp's logits for the converted file differ from the torch reference's (NMSE 1e-06;" in ran.err
    assert not (tmp_path / "out.gguf").exists()


# Families that tinyq does not know


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the families of the foreign files, so that they stand for what tinyq does not know."""
    left = tuple(family for family in registry.own_families() if family.name not in ("gemma2", "olmo2"))
    monkeypatch.setattr(registry, "own_families", lambda: left)


FLOAT32, GELU = 1e-11, 1e-7
"""What llama.cpp's float32 makes, and its GELU, which reads a table in F16."""


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(("kind", "most"), [("olmo2", FLOAT32), ("gemma2", GELU)])
def test_a_family_that_tinyq_does_not_know(tinyq: Tinyq, work: Path, tmp_path: Path, kind: str, most: float) -> None:
    out = write_foreign(tmp_path, kind)
    args = ("--reference", tmp_path / "source", "--prompts", work / "prompts.txt", *QUICK)
    ran = tinyq("eval", out, *args, "--json", tmp_path / "out.json")
    assert ran.code == 0, ran.err
    first, _, third, *_ = ran.out.splitlines()
    assert first.startswith("transformers 5.")
    assert " is the reference: llama.cpp NMSE " in first
    assert third.startswith(f"tinyq has no family for it ({kind}): compared with transformers 5.")
    found = json.loads((tmp_path / "out.json").read_text())["fidelity"]
    assert 0 < found["nmse"] <= most
    assert found["tokens_equal"] == found["greedy_exact_match"] == 1.0
    assert found["oracle"]["name"].startswith("transformers 5.")
    assert found["oracle"]["nmse_model"] == found["nmse"]


@pytest.mark.usefixtures("unknown")
def test_a_foreign_file_with_a_wrong_weight(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    out = write_foreign(tmp_path, "olmo2")
    offset = next(tensor for tensor in GGUFReader(out).tensors if tensor.name == "output_norm.weight").data_offset
    data = bytearray(out.read_bytes())
    data[offset + 2] ^= 0x40
    out.write_bytes(data)
    args = ("--reference", tmp_path / "source", "--prompts", work / "prompts.txt", *QUICK)
    ran = tinyq("eval", out, *args, "--max-nmse", 1e-9)
    assert ran.code == 1
    assert "NMSE is 0.0" in ran.err


@pytest.mark.usefixtures("unknown")
def test_a_foreign_tokenizer(tinyq: Tinyq, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_foreign(tmp_path, "olmo2")
    args = ("eval", out, "--reference", tmp_path / "source", "--prompts", work / "prompts.txt", *QUICK)
    # Where tinyq does not read the tokenizer, transformers does.
    monkeypatch.setattr("gguf_tools.evaluation.reference_source._tokenizer", lambda *_: None)
    ran = tinyq(*args)
    assert ran.code == 0
    assert "tokenizer      100% of prompts encoded alike" in ran.out
    (tmp_path / "source" / "tokenizer.json").unlink()
    ran = tinyq(*args)
    assert ran.code == 0
    assert "encoded alike" not in ran.out
    assert f"; tokens are not compared ({tmp_path / 'source'}: has no tokenizer files)" in ran.out


@pytest.mark.usefixtures("unknown")
def test_a_foreign_file_held_against_golden_logits(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    out = write_foreign(tmp_path, "olmo2")
    tokens = (5, 70, 33, 101)
    (logits,) = transformers_model.TransformersModel(open_checkpoint(tmp_path / "source")).logits([tokens])
    np.savez(tmp_path / "g.npz", tokens_0=np.array(tokens), logits_0=logits)
    args = ("--reference", tmp_path / "source", "--prompts", work / "prompts.txt", *QUICK)
    ran = tinyq("eval", out, *args, "--oracle", tmp_path / "g.npz")
    assert ran.code == 0
    assert ran.out.startswith("g.npz agrees: NMSE 0 (4 tokens, stored as float64); llama.cpp ")


@pytest.mark.usefixtures("unknown")
def test_a_family_that_nobody_knows(tinyq: Tinyq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_foreign(tmp_path, "olmo2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    ran = tinyq("eval", out, "--reference", tmp_path / "source")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "; transformers cannot be the reference either: transformers is not installed" in ran.err
