"""Scores without a file are those of the torch reference on the operated model, and of llama.cpp on its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gguf_tools.evaluation.metrics import next_token_nll
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import lift
from surgery.algebra import identity
from surgery.gguf.layers import open_layered
from surgery.gguf.rewrite import plan_gguf, write_plan
from surgery.model import operate_text
from surgery.recipe import parse_text
from surgery.search.engine import Engine
from tests.oracle import PROMPTS, convert
from tests.tiny_models import checkpoint, hybrid, moe

TEXTS = [tuple(prompt) for prompt in PROMPTS if len(prompt) > 1]
RECIPES = (
    "swap(0:1)",
    "delete(2)",
    "repeat(0..1x2)",
    "duplicate(0) + move(2:0)",
    "scale(1@0.5)",
)


@pytest.fixture(scope="module", params=[moe, hybrid], ids=["moe", "hybrid"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Callable[..., object] = request.param
    folder = tmp_path_factory.mktemp("engine")
    return convert(checkpoint(folder / "hf", made(num_hidden_layers=4)), folder / "model.gguf")  # type: ignore[arg-type]


def count(path: Path) -> int:
    return len(open_layered(path).layers)


def nats(path: Path) -> list[float]:
    """The negative log-likelihood of each text by llama.cpp."""
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        found = zip(TEXTS, runtime.iter_logits(TEXTS), strict=True)
        return [float(next_token_nll(logits, np.asarray(ids), "").sum()) for ids, logits in found]


@pytest.mark.parametrize("text", RECIPES)
def test_a_variant_scores_as_its_file_does_in_llama_cpp(file: Path, text: str, tmp_path: Path) -> None:
    engine = Engine(lift(open_gguf(file)), TEXTS, kl_texts=len(TEXTS))
    found = engine.score(parse_text(text).apply(count(file)))
    out = tmp_path / "variant.gguf"
    write_plan(plan_gguf(open_layered(file), parse_text(text)), out)
    assert found.bits * np.log(2) == pytest.approx(nats(out), rel=1e-5)


def test_kl_is_that_of_the_logits(file: Path) -> None:
    model = lift(open_gguf(file))
    engine = Engine(model, TEXTS, kl_texts=2)
    found = engine.score(parse_text("swap(1:2)").apply(count(file)))
    assert len(found.kl) == 2
    operated = operate_text(model, "swap(1:2)")
    one, two = (Reference(given, torch.float64).logits(TEXTS[:2]) for given in (model, operated))
    for measured, before, after in zip(found.kl, one, two, strict=True):
        p, q = (torch.tensor(logits[:-1]).log_softmax(-1) for logits in (before, after))
        assert measured == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_the_base_has_no_divergence_from_itself_and_has_it_from_a_teacher(file: Path) -> None:
    model = lift(open_gguf(file))
    stack = identity(count(file))
    assert Engine(model, TEXTS, kl_texts=1).score(stack).kl == pytest.approx([0.0], abs=1e-12)
    teacher = operate_text(model, "delete(1)")
    assert Engine(model, TEXTS, kl_texts=1, teacher=teacher).score(stack).kl[0] > 1e-3


def test_another_model_scores_as_the_variant_that_it_is(file: Path) -> None:
    model = lift(open_gguf(file))
    engine = Engine(model, TEXTS, kl_texts=1)
    other = engine.score_model(operate_text(model, "delete(2)"))
    own = engine.score(parse_text("delete(2)").apply(count(file)))
    assert other.bits == pytest.approx(own.bits, rel=1e-6)
    assert other.kl == pytest.approx(own.kl, rel=1e-4)


def test_the_profile_is_what_llama_cpp_measures(file: Path) -> None:
    engine = Engine(lift(open_gguf(file)), TEXTS, kl_texts=1)
    with Runtime(file, RuntimeOptions(threads=1)) as runtime:
        found = runtime.layer_changes(TEXTS)
    profile = engine.profile()
    assert [layer.update_norm for layer in profile] == pytest.approx(found.update_norm, rel=1e-4)
    assert [layer.influence for layer in profile] == pytest.approx(found.influence, rel=1e-3, abs=1e-6)
    assert all(0 < layer.angle < 1 for layer in profile)
