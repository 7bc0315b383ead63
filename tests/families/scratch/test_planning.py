"""What is planned, refused, forced and approximated, through the library and the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.header import read_header, u32
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.rope import LinearScaling
from gguf_tools.model.spec import Attention, Layer, MoE, SharedExpert
from gguf_tools.rewrites.approximations import fitted_slope
from gguf_tools.rewrites.base import map_layers
from gguf_tools.targets.planner import plan
from gguf_tools.targets.registry import all_targets, lift, target_named
from gguf_tools.tensors.base import InMemory
from tests.conftest import Ran
from tests.made_checkpoints import Made
from tests.oracle import convert, lifted_reference, llama, nmse, reference

Tinyq = Callable[..., Ran]


def refusal(source: Path, **options: object) -> str:
    with pytest.raises(UnsupportedError) as error:
        open_source(replace(Request(source=source), **options))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_router_bias_is_refused_by_name(made: Made) -> None:
    message = refusal(made("moe-model", "nonzero bias"))
    assert "no llama.cpp architecture expresses this moe-model model exactly" in message
    # The nearest comes first; others follow.
    named = sum(f"{target.name} does not support " in message for target in all_targets())
    assert 1 < named < len(all_targets())
    assert (
        f"; {len(all_targets()) - named} other architectures lack as much or more (--target NAME says what)" in message
    )
    assert (
        "exactly: step35 does not support a router bias added before the score function, for the selection alone"
        in message
    )
    assert "; --allow-approximate accepts step35 with a softmax router" in message


def test_a_forced_target_says_what_it_lacks(made: Made) -> None:
    message = refusal(made("moe-model", "stacked"), target="qwen3")
    assert "qwen3 does not support rope on 8 of 16 dimensions, different q/k norm weights per head, experts" in message
    assert "step35" not in message
    assert "allow-approximate" not in message


def test_an_unknown_target(made: Made) -> None:
    assert "target wobble is not known; the known targets are" in refusal(made("moe-model", "stacked"), target="wobble")


def test_approximation(made: Made, tmp_path: Path) -> None:
    folder = made("moe-model", "nonzero bias")
    out = convert(folder, tmp_path / "out.gguf", allow_approximate=True)
    wanted = reference(load_model(folder))
    logits, _ = llama(out)
    # The file is what was planned, and that is near to the source and not equal to it.
    assert nmse(logits, lifted_reference(out)) < 1e-9
    assert 1e-6 < nmse(logits, wanted) < 0.03
    header = read_header(out)
    assert header.get("tinyq.approximate") == ("softmax router for a sigmoid router with a selection bias",)
    assert header.get("tinyq.approximate.layers") == (1, 2)
    agreement = header.get("tinyq.approximate.routing_agreement")
    # The first MoE layer sees what it saw in the source, and chooses by the same order.
    assert agreement[0] == 1.0
    assert 0.9 < agreement[1] <= 1.0
    assert all(0 < error < 0.15 for error in header.get("tinyq.approximate.weight_error"))
    assert all(0 < slope < 1 for slope in header.get("tinyq.approximate.slope"))


def test_exact_ways_need_no_approximation(made: Made) -> None:
    for variant in ("uniform bias", "one expert", "stacked"):
        made_plan = open_source(Request(source=made("moe-model", variant), allow_approximate=True)).plan
        assert made_plan.approximation is None


def test_the_fit_is_better_than_none() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((500, 2)) * 2 + 1
    slope, error = fitted_slope(logits)
    shares = 1 / (1 + np.exp(-logits))
    shares /= shares.sum(1, keepdims=True)
    unfitted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert 0 < slope < 1
    assert error < 0.5 * np.sqrt(np.square(unfitted - shares).mean())
    assert fitted_slope(np.ones((4, 2))) == (1.0, 0.0)


def test_command_line_approximates_on_request(made: Made, tmp_path: Path, tinyq: Tinyq) -> None:
    source, out, text = made("moe-model", "nonzero bias"), tmp_path / "o.gguf", tmp_path / "text.txt"
    text.write_text("1 2 3 the thing in the ring 12 12 12\n" * 20, "utf-8")
    refused = tinyq("convert", source, out, "--type", "f32")
    assert (refused.code, out.exists(), refused.err.count("\n")) == (2, False, 1)
    ran = tinyq(
        "convert",
        source,
        out,
        "--type",
        "f32",
        "--allow-approximate",
        "--calibration",
        text,
        "--json",
        tmp_path / "r.json",
    )
    assert ran.code == 0, ran.err
    assert "NOT EXACT softmax router for a sigmoid router with a selection bias" in ran.out
    assert "of the calibration tokens select the same experts" in ran.out
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert report["approximate"] == ["softmax router for a sigmoid router with a selection bias"]
    assert [fit["layer"] for fit in report["fits"]] == [1, 2]


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "is empty"), (b"\xff\xfe\x00", "is not UTF-8"), (None, "cannot be read")]
)
def test_broken_calibration_files(made: Made, tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    request = Request(source=made("moe-model", "nonzero bias"), allow_approximate=True, calibration=path)
    with pytest.raises(InputError, match=what):
        open_source(request)


def test_a_bare_state_dict(made: Made, tmp_path: Path, tinyq: Tinyq) -> None:
    folder = made("qwen3-from-scratch", "bf16")
    source = tmp_path / "weights" / "best_model_params.pt"
    tokenizer = tmp_path / "tokenizer"
    for target in (source.parent, tokenizer):
        target.mkdir()
    shutil.copy(folder / source.name, source)
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, tokenizer)
    out = tmp_path / "out.gguf"
    assert tinyq("convert", source, out).code == 2
    ran = tinyq("convert", source, out, "--tokenizer", tokenizer, "--context-length", 64)
    assert ran.code == 0, ran.err
    assert "is assumed" not in ran.out
    header = read_header(out)
    assert header.get("qwen3.context_length") == 64
    assert header.get("tinyq.source.path") == "weights/best_model_params.pt"
    assert header.get("tinyq.tokenizer.path") == "tokenizer"
    assert header.get("general.name") == "weights"
    longest = open_source(Request(source=source, tokenizer=tokenizer))
    assert longest.model.spec.context_length == 32768
    assert any("--context-length" in note for note in longest.model.notes)


def test_context_length_overrides_the_config(made: Made) -> None:
    for family, variant in (("moe-model", "pt"), ("qwen-moe-simplified", "plain")):
        assert open_source(Request(source=made(family, variant), context_length=48)).model.spec.context_length == 48


def test_an_untied_model_with_equal_heads_costs_nothing(made: Made) -> None:
    model = load_model(made("moe-model", "untied"))

    def equal_heads(layer: Layer) -> Layer:
        own = {role: t for role, t in layer.tensors.items() if re.fullmatch(r"attn\.[qk]_(norm|gain)", role)}
        equal = {role: InMemory(np.broadcast_to(t.array()[:1], t.shape).copy()) for role, t in own.items()}
        return Layer(layer.spec, {**layer.tensors, **equal})

    alike = map_layers(model, equal_heads)
    # Gains, scales and zero biases are folded away: the file has fewer weights than the source.
    assert plan(alike).extra_parameters == 0
    assert plan(alike).model.parameters < alike.parameters


def test_windows_layer_by_layer(made: Made) -> None:
    model = load_model(made("qwen-moe-simplified", "plain"))
    first, *rest = model.spec.layers
    assert isinstance(first.mixer, Attention)
    local = replace(first, mixer=replace(first.mixer, window=5))
    windowed = replace(model, spec=replace(model.spec, layers=(local, *rest)))
    assert target_named("step35").lacks(windowed.spec) == []
    metadata = target_named("step35").lower(windowed).metadata
    assert metadata["step35.attention.sliding_window"].value == 5
    assert list(metadata["step35.attention.sliding_window_pattern"].value) == [True, False, False]


def test_step35_lacks_by_name(made: Made) -> None:
    lacks = target_named("step35").lacks
    spec = load_model(made("qwen-moe-simplified", "plain")).spec
    mixer, moe = spec.layers[0].mixer, spec.layers[0].feed_forward
    assert isinstance(mixer, Attention)
    assert isinstance(moe, MoE)
    assert mixer.rope
    scaled = replace(mixer, rope=replace(mixer.rope, scaling=LinearScaling(2.0)))
    gated = replace(moe, shared=SharedExpert(24, gated=True))

    def all_with(**parts: Attention | MoE) -> list[str]:
        return lacks(replace(spec, layers=tuple(replace(layer, **parts) for layer in spec.layers)))  # type: ignore[arg-type]

    assert lacks(spec) == []
    assert all_with(mixer=scaled) == ["linear rope scaling"]
    assert all_with(feed_forward=gated) == ["a gate on the shared expert"]
    assert all_with(feed_forward=replace(moe, shared=None)) == ["experts without a shared expert"]
    assert "embeddings multiplied by 2" in lacks(replace(spec, embedding_scale=2.0))
    assert "logits multiplied by 2" in lacks(replace(spec, logit_scale=2.0))


@pytest.mark.parametrize(
    ("key", "what"), [("tensors", "is missing"), ("heads", "do not divide into equal groups"), ("top_k", "top_k is 9")]
)
def test_broken_checkpoints_name_what_is_wrong(made: Made, tmp_path: Path, key: str, what: str) -> None:
    import torch

    folder = shutil.copytree(made("moe-model", "pt"), tmp_path / "broken")
    loaded = torch.load(folder / "final.pt", weights_only=True)
    if key == "tensors":
        del loaded["model"]["blocks.1.ffn.router.w"]
    elif key == "heads":
        loaded["model"]["blocks.0.attn.k_norm.weight"] = torch.ones(3, 16)
    else:
        loaded["cfg"]["top_k"] = 9
    torch.save(loaded, folder / "final.pt")
    with pytest.raises(CheckpointError, match=what) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_lifting_refuses_what_step35_has_and_tinyq_does_not(made: Made, tmp_path: Path) -> None:
    source = open_gguf(convert(made("moe-model", "stacked"), tmp_path / "out.gguf"))
    gate = {"blk.0.attn_gate.weight": InMemory(np.zeros(4, np.float32))}
    with pytest.raises(UnsupportedError, match="one gate per head"):
        lift(replace(source, tensors={**source.tensors, **gate}))
    with pytest.raises(UnsupportedError, match="expert_gating_func is 4"):
        lift(
            replace(
                source,
                header=replace(source.header, metadata={**source.header.metadata, "step35.expert_gating_func": u32(4)}),
            )
        )


def test_cost_is_planned(made: Made) -> None:
    plan = open_source(Request(source=made("moe-model", "stacked"))).plan
    names = [rewrite.name for rewrite in plan.rewrites]
    assert "q/k heads widened for a shared norm" in names
    # 3 layers of 6 heads take 16 rows of 48 more each, less the gains and scales that were folded; and the embedding again.
    assert 3 * 6 * 16 * 48 + 288 * 48 - 300 < plan.extra_parameters < 3 * 6 * 16 * 48 + 288 * 48
    # The keys of 2 heads in 3 layers are 16 numbers wider, the values are not.
    assert plan.extra_cache == 3 * 2 * 16


def test_equal_heads_are_not_widened(made: Made) -> None:
    plan = open_source(Request(source=made("moe-model", "equal heads"))).plan
    assert plan.extra_cache == 0
    assert "one q/k norm for all heads" in [rewrite.name for rewrite in plan.rewrites]


def test_scaled_embeddings_cost_nothing(made: Made) -> None:
    plan = open_source(Request(source=made("qwen3-from-scratch", "plain"))).plan
    assert (plan.target.name, plan.extra_parameters) == ("qwen3", 0)
    assert [rewrite.name for rewrite in plan.rewrites] == ["embedding scale folded into the embeddings"]
