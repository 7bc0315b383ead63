"""Ops that measure: what is measured is what transformers computes, and the indices that follow are recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.runtime.interface import LayerStatistics
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.auto import is_auto, resolved
from surgery.recipe import parse_text, read_file
from tests.conftest import Ran
from tests.oracle import PROMPTS, convert
from tests.surgery.surgery_files import operated
from tests.tiny_models import checkpoint, hybrid, in_float64, moe, network

Tinyq = Callable[..., Ran]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A mixture of four layers, two of four experts a token, and its conversion to F32."""
    folder = tmp_path_factory.mktemp("experts")
    source = checkpoint(folder / "hf", moe(num_hidden_layers=4))
    return source, convert(source, folder / "moe.gguf")


def streams(made: Any) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """The residual stream (tokens of all prompts) around each layer, and what enters each layer's feed-forward."""
    around: list[list[torch.Tensor]] = [[] for _ in range(len(made.model.layers) + 1)]
    entering: list[list[torch.Tensor]] = [[] for _ in made.model.layers]
    for n, layer in enumerate(made.model.layers):
        layer.register_forward_pre_hook(lambda _, given, n=n: around[n].append(given[0][0]))
        layer.mlp.register_forward_pre_hook(lambda _, given, n=n: entering[n].append(given[0].reshape(-1, 48)))
    made.model.norm.register_forward_pre_hook(lambda _, given: around[-1].append(given[0][0]))
    with torch.inference_mode():
        for prompt in PROMPTS:
            made(torch.tensor([list(prompt)]))
    return around, entering


def test_what_is_measured_is_what_transformers_computes(experts: tuple[Path, Path]) -> None:
    with Runtime(experts[1], RuntimeOptions(threads=1)) as runtime:
        found = runtime.layer_changes(PROMPTS)
    with in_float64():
        made = network(moe(num_hidden_layers=4))
        around, entering = streams(made)
    state = made.state_dict()
    for n in range(4):
        before, after = torch.cat(around[n]), torch.cat(around[n + 1])
        change = (after - before).norm(dim=1) / before.norm(dim=1)
        assert found.update_norm[n] == pytest.approx(float(change.mean()), rel=1e-5)
        cosine = functional.cosine_similarity(before, after, dim=1)
        assert found.influence[n] == pytest.approx(float(1 - cosine.mean()), rel=1e-4)
        hidden, prefix = torch.cat(entering[n]), f"model.layers.{n}.mlp."
        weights = functional.linear(hidden, state[f"{prefix}gate.weight"]).softmax(-1)
        chosen = weights.topk(2, dim=-1)
        shares = chosen.values / chosen.values.sum(-1, keepdim=True)
        for e in range(4):
            gate, up = state[f"{prefix}experts.gate_up_proj"][e].chunk(2)
            down = state[f"{prefix}experts.down_proj"][e]
            given = functional.linear(functional.silu(hidden @ gate.T) * (hidden @ up.T), down)
            mine = chosen.indices == e
            routed = mine.any(-1)
            saliency = ((shares * mine).sum(-1) * given.norm(dim=-1))[routed].mean()
            assert found.routed[n][e] == int(routed.sum())
            assert found.saliency[n][e] == pytest.approx(float(saliency), rel=1e-5)


def test_a_hybrid_is_measured_too(tmp_path: Path) -> None:
    file = convert(checkpoint(tmp_path / "hf", hybrid()), tmp_path / "hybrid.gguf")
    with Runtime(file, RuntimeOptions(threads=1)) as runtime:
        found = runtime.layer_changes(PROMPTS)
    assert len(found.update_norm) == len(found.influence) == len(found.saliency) == 3
    assert all(sum(counts) == 2 * sum(map(len, PROMPTS)) for counts in found.routed.values())


def statistics(**changes: Any) -> LayerStatistics:
    values: dict[str, Any] = {
        "update_norm": (0.5, 0.1, 0.3, 0.2, 0.4),
        "influence": (0.01, 0.05, 0.04, 0.03, 0.02),
        "saliency": {1: (3.0, 1.0, 2.0, 0.0), 3: (1.0, 1.0, 5.0, 9.0)},
        "routed": {1: (1, 1, 1, 0), 3: (1, 1, 1, 1)},
    }
    return LayerStatistics(**{**values, **changes})


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("delete(auto:1)", "delete(1)"),
        ("delete(auto:3)", "delete(1..3)"),
        ("delete(auto:4, by=norm)", "delete(1..4)"),
        ("delete(auto:2, by=influence)", "delete(0, 4)"),
        ("drop-experts(auto:25%)", "drop-experts(1:3) + drop-experts(3:0)"),
        ("drop-experts(auto:2)", "drop-experts(1:1, 3) + drop-experts(3:0, 1)"),
        ("drop-experts(auto:74.9%)", "drop-experts(1:1, 3) + drop-experts(3:0, 1)"),
    ],
)
def test_the_smallest_go(text: str, made: str) -> None:
    (op,) = parse_text(text).ops
    assert op.measures
    assert " + ".join(map(str, resolved(op, statistics()))) == made
    assert parse_text(str(op)).ops == (op,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("delete(auto:5)", "5 of 5 layers would go; leave at least one"),
        ("drop-experts(auto:10%)", "0 of the 4 experts of layer 1 would go; 1 to 3 can"),
        ("drop-experts(auto:4)", "4 of the 4 experts"),
    ],
)
def test_too_many_or_none_are_refused(text: str, said: str) -> None:
    (op,) = parse_text(text).ops
    with pytest.raises(InputError, match=said):
        resolved(op, statistics())
    with pytest.raises(InputError, match="no routed experts"):
        resolved(parse_text("drop-experts(auto:1)").ops[0], statistics(saliency={}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("delete(auto:0)", "N is 0"),
        ("delete(auto:x)", "write delete as"),
        ("delete(auto:1, by=depth)", "by=depth is not known; expected norm or influence"),
        ("delete(1, by=norm)", "by says how auto:N is measured"),
        ("swap(1:2, by=norm)", "'by' is not"),
        ("drop-experts(auto:0%)", "no number of experts, nor a share"),
        ("drop-experts(auto:100%)", "no number of experts, nor a share"),
        ("drop-experts(auto:many)", "write drop-experts as"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_text(text)


def test_measuring_comes_first(experts: tuple[Path, Path], tmp_path: Path) -> None:
    assert is_auto(parse_text("delete(auto:1) + swap(0:1)"))
    assert not is_auto(parse_text("delete(1) + swap(0:1)"))
    with pytest.raises(InputError, match="it has to be the first op"):
        is_auto(parse_text("swap(0:1) + delete(auto:1)"))
    with pytest.raises(InputError, match="the indices have to be measured first, which tinyq surgery does"):
        operated(experts[1], tmp_path / "no.gguf", "delete(auto:1)")


def test_the_indices_are_shown_recorded_and_saved(tinyq: Tinyq, experts: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the other one in the end, a 12 on the internet and then another\n" * 4)
    saved = tmp_path / "r.toml"
    given = ["--drop-experts", "auto:25%", "--swap", "0:1"]
    ran = tinyq(
        "surgery", experts[1], tmp_path / "a.gguf", *given, "--text", text, "--save-recipe", saved, "--json", "-"
    )
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    with Runtime(experts[1], RuntimeOptions(threads=1)) as runtime:
        tokens = runtime.tokenize(text.read_text(), add_special=True)
        want = runtime.layer_changes([tokens[n : n + 96] for n in range(0, len(tokens), 96)])
    drops = [f"drop-experts({n}:{int(np.argmin(want.saliency[n]))})" for n in range(4)]
    assert report["recipe"] == " + ".join([*drops, "swap(0:1)"])
    assert report["measured"]["op"] == "drop-experts(auto:25%)"
    assert report["measured"]["update_norm"] == list(want.update_norm)
    assert read_header(tmp_path / "a.gguf").get("tinyq.surgery") == report["recipe"]
    assert read_header(tmp_path / "a.gguf").get("qwen3moe.expert_count") == 3
    assert str(read_file(saved)) == report["recipe"]
    again = tinyq("surgery", experts[1], tmp_path / "b.gguf", "--recipe", saved, "-q")
    assert again.code == 0, again.err
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    # A checkpoint is measured by its conversion.
    folder = tinyq("surgery", experts[0], *given, "--text", text, "--dry-run", "--json", "-")
    assert folder.code == 0, folder.err
    assert json.loads(folder.out)["recipe"] == report["recipe"]


def test_the_built_in_text_is_the_default(tinyq: Tinyq, experts: tuple[Path, Path], tmp_path: Path) -> None:
    ran = tinyq("surgery", experts[1], "--delete", "auto:1,by=influence", "--dry-run")
    assert ran.code == 0, ran.err
    assert "delete(auto:1, by=influence) on the built-in text" in ran.out
    assert "4 → 3" in ran.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--swap", "0:1", "--text", "TEXT"], "--text: no op measures"),
        (["--delete", "auto:1", "--text", "none.txt"], "none.txt"),
        (["--swap", "0:1", "--delete", "auto:1"], "has to be the first op"),
    ],
)
def test_wrong_options_are_one_line(
    tinyq: Tinyq, experts: tuple[Path, Path], tmp_path: Path, given: list[str], said: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the end")
    ran = tinyq("surgery", experts[1], tmp_path / "o.gguf", *(str(text) if word == "TEXT" else word for word in given))
    assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
    assert said in ran.err


def test_a_conversion_does_not_measure(tinyq: Tinyq, experts: tuple[Path, Path], tmp_path: Path) -> None:
    ran = tinyq("convert", experts[0], tmp_path / "o.gguf", "--delete", "auto:1")
    assert ran.code == 2
    assert "which tinyq surgery does (--dry-run shows them, --save-recipe writes them)" in ran.err
