"""Decoders of invented code are described by the command, solved from their logits, and proved on tokens not seen."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gguf_tools import describe
from gguf_tools.description.build import build
from gguf_tools.description.toml import read_description
from gguf_tools.errors import ThresholdError, TinyqError
from gguf_tools.families.tiny.writing import write_tiny_tokenizer
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, MoE
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.checkpoint import open_checkpoint
from tests.conftest import Ran
from tests.description import unusual
from tests.description.decoders import CONTEXT, DECODERS, DIM, HIDDEN, LAYERS, VOCAB, golden
from tests.description.scrambled import write_weights


def prepared(folder: Path, name: str, *, other: int = 0, shuffled: bool = False) -> tuple[Path, Path]:
    """A decoder's weights and golden logits as files; the logits are those of the weights with seed `other`.

    With `shuffled` the tensors are written in random order, among tables that the model computes, under longer names.
    """
    decoder = DECODERS[name]
    weights = {key: value.numpy() for key, value in decoder.weights().items()}
    if shuffled:
        tables = {f"st.{n}.mu": np.tril(np.ones((HIDDEN, HIDDEN), np.float32)) for n in range(LAYERS)}
        tables["po"] = np.cos(np.outer(np.arange(CONTEXT), 1e6 ** (-np.arange(0, DIM, 2) / DIM))).astype(np.float32)
        weights |= tables
        names = list(weights)
        random.Random(2).shuffle(names)
        weights = {f"module._orig_mod.{key}": weights[key] for key in names}
    source = write_weights(folder / "weights.safetensors", weights)
    sequences, logits = golden(decoder, decoder.weights(other))
    save(folder / "golden.npz", sequences, logits)
    return source, folder / "golden.npz"


def save(path: Path, sequences: list[list[int]], logits: list[NDArray[np.float32]]) -> None:
    """Write golden logits."""
    arrays: dict[str, Any] = {f"tokens_{n}": np.array(tokens) for n, tokens in enumerate(sequences)}
    arrays |= {f"logits_{n}": array for n, array in enumerate(logits)}
    np.savez(path, **arrays)


ROPES = {
    "fused": Rope(123456.0, 12, "interleaved"),
    "parallel": Rope(10000.0, 6),
    "sandwich": Rope(10000.0, 12),
    "experts": Rope(1e6, 12),
    "stacked": Rope(50000.0, 12),
    "positions": None,
    "bare": Rope(10000.0, 12, backwards=True),
    "scaled": Rope(1e7, 12),
}
GELU = ("parallel", "sandwich", "positions")
"""Decoders whose GELU llama.cpp looks up in a table of 16 bits."""
ROUTERS = {"experts": (2, "softmax", True, 1.0), "stacked": (3, "sigmoid", False, 2.5)}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_of_invented_code_is_solved(name: str, tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    source, evidence = prepared(tmp_path, name)
    out, report = tmp_path / "model.toml", tmp_path / "report.json"
    ran = tinyq("describe", source, "-o", out, "--golden", evidence, "--context-length", CONTEXT, "--json", report)
    assert ran.code == 0, ran.err
    found = json.loads(report.read_text("utf-8"))
    assert found["solved"] is True
    assert found["nmse"] <= 1e-11
    model = build(read_description(out), open_checkpoint(source, described=True))
    tokens = np.random.default_rng(99).integers(0, VOCAB, 150).tolist()
    wanted = DECODERS[name].logits(DECODERS[name].weights(), tokens).astype(np.float64)
    (ours,) = Reference(model, torch.float64).logits([tokens])
    assert np.square(ours - wanted).sum() / np.square(wanted).sum() <= 1e-11
    assert tinyq("describe", source, "--check", out).code == 0
    write_tiny_tokenizer(tmp_path / "tokenizer", VOCAB)
    made = tinyq("convert", source, tmp_path / "out.gguf", "--describe", out, "--tokenizer", tmp_path / "tokenizer")
    assert made.code == 0, made.err
    with Runtime(tmp_path / "out.gguf", RuntimeOptions(threads=1)) as runtime:
        (theirs,) = runtime.logits([tokens])
    assert np.square(theirs - wanted).sum() / np.square(wanted).sum() <= (1e-6 if name in GELU else 1e-11)
    mixer, feed_forward = model.spec.layers[0].mixer, model.spec.layers[0].feed_forward
    assert isinstance(mixer, Attention)
    assert mixer.rope == ROPES[name]
    if isinstance(feed_forward, MoE):
        router = feed_forward.router
        assert (router.top_k, router.score, router.normalised, router.scale) == ROUTERS[name]


def test_the_order_of_the_tensors_does_not_matter_nor_what_is_computed(tmp_path: Path) -> None:
    source, evidence = prepared(tmp_path, "experts", shuffled=True)
    found = describe(source, golden=evidence)
    assert found.solved, found.as_dict()["reason"]


def test_logits_of_other_weights_are_refused_by_the_head(tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    source, evidence = prepared(tmp_path, "experts", other=1)
    out = tmp_path / "model.toml"
    ran = tinyq("describe", source, "-o", out, "--golden", evidence)
    assert ran.code == 1
    assert "no choice explains these logits; stage head: " in ran.err
    assert "other weights" in ran.err
    assert not out.exists()


def changed(evidence: Path, change: Callable[[dict[str, Any]], None]) -> None:
    arrays: dict[str, Any] = dict(np.load(evidence))
    change(arrays)
    np.savez(evidence, **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.log_softmax(-1), "stage head: these are log-probabilities: give the raw logits"),
        (lambda x: x.softmax(-1), "stage head: these are probabilities: give the raw logits"),
        (lambda x: x * 0, "logits_0 are the same for every token of the vocabulary"),
        (lambda x: x.double(), ""),
        (lambda x: x / 0.7, ""),
    ],
    ids=["log-probabilities", "probabilities", "zeros", "float64", "temperature"],
)
def test_what_is_made_of_logits_is_named_or_solved(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    source, evidence = prepared(tmp_path, "parallel")

    def made(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if name.startswith("logits")]:
            arrays[name] = change(torch.from_numpy(arrays[name])).numpy()

    changed(evidence, made)
    if message:
        with pytest.raises(TinyqError, match=message):
            describe(source, golden=evidence).require()
    else:
        assert describe(source, golden=evidence).solved


def test_another_step_of_the_training_is_refused_by_the_head(tmp_path: Path) -> None:
    source, evidence = prepared(tmp_path, "scaled")
    weights = DECODERS["scaled"].weights()
    noisy = {
        name: value * (1 + 1e-3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        for name, value in weights.items()
    }
    sequences, logits = golden(DECODERS["scaled"], noisy)
    save(evidence, sequences, logits)
    with pytest.raises(ThresholdError, match=r"stage head: .*another step of the training"):
        describe(source, golden=evidence).require()


def test_a_missing_layer_fails_on_single_tokens(tmp_path: Path) -> None:
    source, evidence = prepared(tmp_path, "scaled")
    decoder, weights = DECODERS["scaled"], DECODERS["scaled"].weights()
    skipped = {name: value * (0 if name in ("layer_1.ou.w", "layer_1.dn.w") else 1) for name, value in weights.items()}
    save(evidence, *golden(decoder, skipped))
    with pytest.raises(ThresholdError, match="no choice explains these logits; stage one token"):
        describe(source, tmp_path / "model.toml", golden=evidence).require()
    assert not (tmp_path / "model.toml").exists()


def test_token_ids_off_by_one_fail_on_single_tokens(tmp_path: Path) -> None:
    source, evidence = prepared(tmp_path, "bare")

    def shift(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if name.startswith("tokens")]:
            arrays[name] = (arrays[name] + 1) % VOCAB

    changed(evidence, shift)
    with pytest.raises(ThresholdError, match="no choice explains these logits; stage one token"):
        describe(source, golden=evidence).require()


def test_logits_in_bfloat16_settle_the_structure_and_the_report_says_what_they_do_not(tmp_path: Path) -> None:
    source, evidence = prepared(tmp_path, "fused")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = golden(DECODERS["fused"], DECODERS["fused"].weights())
    save(evidence, *rounded)  # as float32, whose values are numbers of bfloat16
    found = describe(source, golden=evidence)
    assert found.solved, found.as_dict()["reason"]
    choices = found.as_dict()["choices"]
    assert choices["qkv"] == [["attn.k", "attn.q", "attn.v"], "whole"]
    assert choices["gate_up"] == [["up", "gate"], "whole"]
    assert (choices["activation"], choices["pairs"], choices["head_dim"]) == ("silu", "interleaved", DIM)
    assert choices["embedding_scale"] == pytest.approx(0.25, rel=0.05)
    assert choices["theta"] == pytest.approx(123456.0, rel=0.2)
    assert "the logits are bfloat16: epsilon is a usual value, not a solved one" in found.text.replace(
        "The logits", "the logits"
    )
    assert "eps" in {entry["choice"].split()[0] for entry in found.as_dict()["not_told_apart"]}


def test_a_batch_serves_as_evidence(tmp_path: Path) -> None:
    source, _ = prepared(tmp_path, "experts")
    decoder = DECODERS["experts"]
    tokens = np.random.default_rng(5).integers(0, VOCAB, (10, 24))
    logits = np.stack([decoder.logits(decoder.weights(), row.tolist()) for row in tokens])
    np.savez(tmp_path / "batch.npz", tokens=tokens, logits=logits)
    assert describe(source, golden=tmp_path / "batch.npz").solved


def test_without_evidence_the_candidates_are_given(tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    source, _ = prepared(tmp_path, "fused")
    ran = tinyq("describe", source)
    assert ran.code == 0
    assert 'pairs = "half"' in ran.out
    assert '# or "interleaved"' in ran.out
    text = tmp_path / "model.toml"
    text.write_text(ran.out, "utf-8")
    assert tinyq("describe", source, "--check", text).code == 0
    text.write_text(ran.out.replace('"fi.g"', '"fi.h"'), "utf-8")
    checked = tinyq("describe", source, "--check", text)
    assert checked.code == 1
    assert "tensor fi.h is missing" in checked.out
    assert "tensor fi.g (48) has no role" in checked.out


def test_the_models_own_code_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = prepared(tmp_path, "bare")
    found = describe(source, oracle="tests.description.decoders:bare_logits")
    assert found.solved


@pytest.mark.parametrize("kind", [unusual.Listed, unusual.Axes])
def test_unusual_layouts_are_solved(tmp_path: Path, kind: type[unusual.Listed | unusual.Axes]) -> None:
    model = kind()
    weights = model.w if isinstance(model, unusual.Axes) else dict(model.state_dict())
    with torch.no_grad():
        unusual.filled({name: weight for name, weight in weights.items() if not name.endswith("seen")})
        sequences, _ = golden(DECODERS["positions"], DECODERS["positions"].weights())
        save(tmp_path / "golden.npz", sequences, [model(torch.tensor(tokens)).numpy() for tokens in sequences])
    stored = {f"_orig_mod.{name}": weight.detach().clone() for name, weight in weights.items()}
    torch.save(
        {"model": stored, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "step": 7}, tmp_path / "w.pt"
    )
    found = describe(tmp_path / "w.pt", tmp_path / "model.toml", golden=tmp_path / "golden.npz")
    assert found.solved, found.as_dict()["reason"]
    assert found.as_dict()["nmse_held_out"] <= 1e-11


def test_single_tokens_alone_do_not_solve(tmp_path: Path) -> None:
    source, evidence = prepared(tmp_path, "experts")
    decoder = DECODERS["experts"]
    sequences = [[token] for token in range(8)]
    save(evidence, sequences, [decoder.logits(decoder.weights(), tokens) for tokens in sequences])
    with pytest.raises(ThresholdError, match="stage attention pattern: single tokens show neither rope"):
        describe(source, tmp_path / "model.toml", golden=evidence).require()
    assert not (tmp_path / "model.toml").exists()
