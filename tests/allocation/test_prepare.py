"""Types chosen for a size: the allocation against exhaustive search, the measurement, and both commands."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.allocation.choose import free_to_choose, measure
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import InputError
from gguf_tools.evaluation.metrics import kl_divergence
from gguf_tools.evaluation.sensitivity import errors, overwrite
from gguf_tools.formats.gguf.header import read_header, u32
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.quantization.plan import QuantizeRequest
from gguf_tools.quantization.plan import prepare as prepare_quantize
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tensors.base import Filled, InMemory
from quant.allocate import Option, allocate, undominated
from quant.encode import decode_rows, encode_rows
from quant.recipes import TypeChoice
from quant.types import F16, Q3_K, Q4_0, Q4_K, Q6_K, Q8_0
from tests.conftest import Ran
from tests.surgery.surgery_files import with_metadata
from tests.tiny_models import checkpoint, dense

KINDS = (Q4_0, Q4_K, Q6_K, Q8_0)
options = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0, 1, allow_nan=False)).map(lambda pair: Option(Q4_0, *pair)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(options, min_size=1, max_size=5), st.floats(0, 1))
def test_allocation_against_all_there_are(tensors: list[list[Option]], share: float) -> None:
    least, most = (sum(pick(o.bytes for o in found) for found in tensors) for pick in (min, max))
    budget = least + int(share * (most - least))
    fitting = [one for one in product(*tensors) if sum(o.bytes for o in one) <= budget]
    best = min(sum(o.loss for o in one) for one in fitting)
    found = allocate(tensors, budget)
    assert found.bytes == sum(o.bytes for o in found.options) <= budget
    assert found.loss == pytest.approx(sum(o.loss for o in found.options))
    assert found.bound <= best + 1e-9
    assert best <= found.loss + 1e-9
    # Never worse than the bound by more than one tensor's step.
    assert (
        found.loss - found.bound <= max(max(o.loss for o in one) - min(o.loss for o in one) for one in tensors) + 1e-9
    )


def test_allocation_is_near_the_optimum() -> None:
    """With as many tensors as a model has, the step that does not fit is a small part of all."""
    rng = np.random.default_rng(0)
    sizes = (2.625, 3.4375, 4.5, 5.5, 6.5625, 8.5)
    tensors = [
        [Option(Q4_0, int(weights * bits), float(harm) * 4.0 ** -(bits + rng.normal() * 0.1)) for bits in sizes]
        for weights, harm in zip(rng.integers(100, 10_000, 100), rng.lognormal(0, 2, 100), strict=True)
    ]
    for bits in (3.0, 4.0, 5.0, 7.0):
        found = allocate(tensors, int(bits * sum(options[0].bytes for options in tensors) / sizes[0]))
        assert found.bound <= found.loss <= 1.01 * found.bound


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(InputError, match="smallest types take 12 bytes, more than 11"):
        allocate([[Option(Q4_0, 12, 1.0), Option(Q8_0, 20, 0.0)]], 11)
    assert allocate([], 0).loss == 0.0
    kept = undominated([Option(Q8_0, 3, 0.1), Option(Q4_0, 2, 0.1), Option(Q6_K, 1, 0.5)])
    assert [option.type for option in kept] == [Q6_K, Q4_0]


def test_errors_weigh_by_activations() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 3, 256)).astype(np.float32)
    activations = rng.exponential(size=(2, 256)).astype(np.float32)
    found = errors(InMemory(rows), (Q4_K, Q8_0), activations, None, "w")
    for kind, error in found.items():
        changes = [decode_rows(encode_rows(matrix, kind), kind, 256) - matrix for matrix in rows]
        expected = sum((change**2 @ weights).sum() for change, weights in zip(changes, activations, strict=True)) / 6
        assert error == pytest.approx(expected, rel=1e-5)
    rows[0, 0, 0] = 1e6
    assert set(errors(InMemory(rows), (Q4_K, F16), None, None, "w")) == {Q4_K}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dense(hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64)
    return checkpoint(tmp_path_factory.mktemp("target") / "model", config, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    execute(prepare(Request(source=folder, type="f32")), folder.parent / "f32.gguf")
    return folder.parent / "f32.gguf"


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    path = folder.parent / "text.txt"
    path.write_text("The clocks were striking thirteen. " * 8)
    return path


def test_measurement_leaves_the_file_as_it_was(source: Path, text: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch.gguf"
    scratch.write_bytes(source.read_bytes())
    sources = open_gguf(source).tensors
    free = free_to_choose(prepare_quantize(QuantizeRequest(source=source, type="q4_k_m")).choices, sources)
    measured = measure(scratch, sources, free, {}, text, threads=1)
    assert scratch.read_bytes() == source.read_bytes()
    assert measured.losses.keys() == free
    assert all(kl > 0 for kl in measured.divergences.values())
    for losses in measured.losses.values():
        assert losses[Q3_K] > losses[Q4_K] > losses[Q6_K] > losses[Q8_0] > losses[F16]


def test_a_large_model_is_measured_in_groups(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the divergence of a file in which a whole group is rounded, which each tensor of it has its share of."""
    config = dense(hidden_size=256, intermediate_size=256, num_hidden_layers=4, head_dim=64)
    folder = checkpoint(tmp_path / "model", config, dtype=torch.bfloat16)
    source, scratch = tmp_path / "f32.gguf", tmp_path / "scratch.gguf"
    execute(prepare(Request(source=folder, type="f32")), source)
    scratch.write_bytes(source.read_bytes())
    sources = open_gguf(source).tensors
    free = free_to_choose(prepare_quantize(QuantizeRequest(source=source, type="q4_k_m")).choices, sources)
    monkeypatch.setattr("gguf_tools.evaluation.effort.WORK", 0.0)
    stages: list[tuple[str, int, int]] = []
    found = measure(scratch, sources, free, {}, text, 1, lambda *stage: stages.append(stage))
    roles = {name.split(".", 2)[2] for name in free if name.startswith("blk.")}
    assert found.runs == len(free) - len(roles)  # of four layers, the two in the middle together
    assert [stage for stage in stages if stage[0] == "measuring"] == [
        ("measuring", done, found.runs + 1) for done in range(found.runs + 2)
    ]
    assert scratch.read_bytes() == source.read_bytes()
    assert found.as_dict()["runs"] == found.runs
    pair = ("blk.1.ffn_down.weight", "blk.2.ffn_down.weight")
    overwrite(open_gguf(scratch), {name: sources[name] for name in pair}, dict.fromkeys(pair, Q3_K))
    logits = []
    for path in (source, scratch):
        with Runtime(path, RuntimeOptions(threads=1)) as runtime:
            tokens = runtime.tokenize(text.read_text(), add_special=True)
            size = runtime.context_limit
            chunks = [tokens[start : start + size] for start in range(0, len(tokens), size)]
            logits.append(np.concatenate(runtime.logits(chunks)))
    assert len(logits[0]) == found.tokens
    assert sum(found.divergences[name] for name in pair) == pytest.approx(kl_divergence(*logits).mean(), rel=1e-4)
    assert found.divergences[pair[0]] != found.divergences[pair[1]]


def test_a_type_that_the_user_asked_for_is_kept_even_where_it_fell_back() -> None:
    fell = TypeChoice(name="a", type=Q8_0, wanted=Q4_K, reason="rows of 96 are not a multiple of 256")
    asked = replace(fell, name="b", asked_for=True)
    assert free_to_choose((fell, asked), {"a": Filled((4, 96)), "b": Filled((4, 96))}) == {"a"}


def test_both_commands(folder: Path, source: Path, text: Path, tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    ours, theirs, report = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "r.json"
    more = ("--tensor-type", "attn_v=q8_0", "--calibration", text, "--threads", 1)
    ran = tinyq("quantize", source, ours, "--target-bpw", 4.6, *more, "--json", report)
    assert ran.code == 0, ran.err
    found = json.loads(report.read_text())
    assert 4.4 < found["bits_per_weight"] <= 4.6
    assert found["allocation"]["predicted_kl"] >= found["allocation"]["bound_kl"] > 0
    assert "blk.0.attn_v.weight" not in found["allocation"]["tensors"]
    assert {t["type"] for t in found["tensors"] if "attn_v" in t["name"]} == {"q8_0"}
    assert read_header(ours).get("tinyq.type") == "4.6 bpw"
    ran = tinyq("convert", folder, theirs, "--target-bpw", 4.6, *more)
    assert ran.code == 0, ran.err
    first, second = open_gguf(ours).tensors, open_gguf(theirs).tensors
    assert {n: t.dtype for n, t in first.items()} == {n: t.dtype for n, t in second.items()}
    assert all(np.array_equal(first[n].raw(0, t.size), t.raw(0, t.size)) for n, t in second.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "r.json"]


def test_an_earlier_measurement(
    folder: Path, source: Path, text: Path, tmp_path: Path, tinyq: Callable[..., Ran]
) -> None:
    """Its report gives the same file for the same size, without a run; trace's budget is another such report."""
    first, again, report = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "r.json"
    ran = tinyq("quantize", source, first, "--target-bpw", 4.6, "--calibration", text, "--threads", 1, "--json", report)
    assert ran.code == 0, ran.err
    ran = tinyq("convert", folder, again, "--target-bpw", 4.6, "--sensitivity", report, "--json", tmp_path / "s.json")
    assert ran.code == 0, ran.err
    one, other = open_gguf(first).tensors, open_gguf(again).tensors
    assert {n: t.dtype for n, t in one.items()} == {n: t.dtype for n, t in other.items()}
    both = [json.loads((tmp_path / name).read_text())["allocation"] for name in ("r.json", "s.json")]
    assert both[0]["sensitivity"] == both[1]["sensitivity"]
    assert both[0]["predicted_kl"] == both[1]["predicted_kl"]
    small, budget = tmp_path / "small.gguf", tmp_path / "budget.json"
    execute(prepare(Request(source=folder, type="q3_k_m")), small)
    ran = tinyq("trace", small, "--reference", folder, "--budget", "--tokens", 9, "--threads", 1, "--json", budget)
    assert ran.code == 0, ran.err
    ran = tinyq("quantize", source, tmp_path / "c.gguf", "--target-bpw", 4.6, "--sensitivity", budget, "--json", "-")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["allocation"]["calibration_tokens"] == 9
    assert 4.4 < found["bits_per_weight"] <= 4.6


def test_a_measurement_that_does_not_fit(source: Path, text: Path, tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    report = tmp_path / "r.json"
    options = ("--target-bpw", 4.6, "--calibration", text, "--threads", 1)
    assert tinyq("quantize", source, tmp_path / "a.gguf", *options, "--dry-run", "--json", report).code == 0
    good = json.loads(report.read_text())

    def refused(changed: object) -> str:
        report.write_text(json.dumps(changed))
        ran = tinyq("quantize", source, tmp_path / "a.gguf", "--target-bpw", 4.6, "--sensitivity", report)
        assert ran.code == 2
        assert ran.err.count("\n") == 1
        assert not (tmp_path / "a.gguf").exists()
        return ran.err

    def changed(**values: object) -> dict[str, object]:
        made = copy.deepcopy(good)
        tensors = made["allocation"]["sensitivity"]["tensors"]
        next(iter(tensors.values())).update(values)
        return {"allocation": made["allocation"]}

    name = next(iter(good["allocation"]["sensitivity"]["tensors"]))
    assert f"the root mean square of {name}" in refused(changed(rms=1.5))
    for values in ({"kl": None}, {"kl": -1}, {"losses": {"q4_0": "x"}}, {"rms": float("nan")}, {"kl": 10**400}):
        assert f"a broken measurement of {name}" in refused(changed(**values))
    assert "was measured in 'q9_9'" in refused(changed(probe="q9_9"))
    assert "because it was measured in a type that does not change it" in refused(changed(kl=0.0, losses={"q8_0": 0.0}))
    unfit: tuple[object, ...] = (
        [],
        {},
        {"budget": None},
        {"allocation": {"sensitivity": {"tokens": 3, "tensors": {}}}},
    )
    for broken in unfit:
        assert "has no measured sensitivity" in refused(broken)
    assert "none of this source's tensors" in refused({"budget": {"sensitivity": {"tokens": 3, "tensors": {"a": {}}}}})
    ran = tinyq("quantize", source, tmp_path / "a.gguf", "q4_0", "--sensitivity", report)
    assert ran.code == 2
    assert "--sensitivity needs --target-bpw" in ran.err


def test_dry_run(source: Path, text: Path, tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    common = ("--target-size", "350K", "--calibration", text, "--threads", 1)
    ran = tinyq("quantize", source, tmp_path / "out.gguf", *common, "--dry-run", "--json", "-")
    assert 340_000 < json.loads(ran.out)["size"] <= 350_000
    assert not list(tmp_path.iterdir())
    ran = tinyq("quantize", source, tmp_path / "none" / "out.gguf", *common, "--dry-run")
    assert (ran.code, "does not exist; create it first" in ran.err) == (2, True)


def test_sizes_in_bytes(folder: Path, source: Path, text: Path, tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    for command, given_source in (("quantize", source), ("convert", folder)):
        out = tmp_path / f"{command}.gguf"
        ran = tinyq(command, given_source, out, "--target-size", "350K", "--calibration", text, "--threads", 1)
        assert ran.code == 0, ran.err
        assert 340_000 < out.stat().st_size <= 350_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "exactly one of TYPE"),
        (["q4_0", "--target-bpw", "4"], "exactly one of TYPE"),
        (["--target-bpw", "4", "--target-size", "1M"], "exclude each other"),
        (["--target-bpw", "1"], "target 1 bpw is too small: with the smallest types the file is"),
        (["--target-size", "10K"], "target 10000 bytes is too small"),
        (["--target-bpw", "4", "--pure"], "cannot be combined with --pure"),
    ],
)
def test_bad_sizes(source: Path, tmp_path: Path, tinyq: Callable[..., Ran], arguments: list[str], says: str) -> None:
    ran = tinyq("quantize", source, tmp_path / "out.gguf", *arguments)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert says in ran.err
    assert not list(tmp_path.iterdir())


def test_a_source_that_does_not_run_is_named_and_not_the_file_to_measure_on(
    source: Path, text: Path, tmp_path: Path, tinyq: Callable[..., Ran]
) -> None:
    broken = with_metadata(source, tmp_path / "broken.gguf", {"qwen3.attention.head_count_kv": u32(4)})
    ran = tinyq("quantize", broken, tmp_path / "out.gguf", "--target-bpw", 7, "--calibration", text)
    assert ran.code == 3
    said = f"tinyq: {broken}: its F32 form, on which the types are measured, does not run: llama.cpp failed (load): "
    assert ran.err.startswith(said)
    assert "scratch" not in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf"]
