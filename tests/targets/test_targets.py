"""Targets: what they refuse and how they say it, the metadata that they write, and the quantized files against llama.cpp."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf_tools import inspect
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.errors import UnsupportedError
from gguf_tools.families.registry import family_named, load_model
from gguf_tools.formats.gguf.header import GGUFHeader, ValueType, read_header
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.rope import Llama3Scaling, Rope, Scaling, YarnScaling
from gguf_tools.model.spec import LayerSpec, Norm, SharedExpert
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.planner import plan
from gguf_tools.targets.registry import all_targets, lift, target_named
from tests.conftest import Ran
from tests.oracle import PROMPTS, convert, nmse, reference, source_reference
from tests.random_model import ATTENTION, DELTA, EXPERTS, MLP, layer, random_model
from tests.surgery import tiny_architectures
from tests.tiny_models import CONTEXT, VOCAB, checkpoint, dense, hybrid, moe

Tinyq = Callable[..., Ran]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1e6}


def scaled(scaling: Scaling) -> LayerSpec:
    return layer(replace(ATTENTION, rope=Rope(1e4, 8, scaling=scaling)))


# Refusals


def test_targets_have_names_of_their_own() -> None:
    names = [target.name for target in all_targets()]
    assert names == sorted(set(names))
    assert {"qwen3", "qwen3moe", "qwen3next"} <= set(names)


def test_an_unknown_target_is_named_with_those_there_are() -> None:
    with pytest.raises(
        UnsupportedError, match=r"target wobble is not known; the known targets are .*qwen3, .*qwen3moe, .*qwen3next"
    ):
        target_named("wobble")


BY_QWEN3: dict[str, tuple[list[LayerSpec], str]] = {
    "linear attention": ([layer(DELTA)], "linear attention layers"),
    "experts": ([layer(feed_forward=EXPERTS)], "experts"),
    "widths": (
        [layer(), layer(feed_forward=replace(MLP, width=7))],
        "layers that differ in feed-forward width (20, 7)",
    ),
    "heads": (
        [layer(), layer(replace(ATTENTION, heads=2))],
        "layers that differ in head counts and sizes",
    ),
    "ropes": ([layer(), layer(replace(ATTENTION, rope=Rope(5.0, 8)))], "layers that differ in rope"),
    "no norm": ([layer(replace(ATTENTION, qk_norm=None))], "attention without q/k norm"),
    "gate": ([layer(replace(ATTENTION, gated=True))], "an attention gate"),
    "output bias": ([layer(replace(ATTENTION, bias=frozenset("o")))], "a bias on the attention output"),
    "norm of each head": ([layer(replace(ATTENTION, norm_per_head=True))], "different q/k norm weights per head"),
    "gain": ([layer(replace(ATTENTION, norm_gain=True))], "a gain after the q/k norm"),
    "value scale": ([layer(replace(ATTENTION, value_scale=True))], "a scale per value head"),
    "window": ([layer(replace(ATTENTION, window=9))], "a sliding window of 9 tokens in a context of 64"),
    "partial rope": ([layer(replace(ATTENTION, rope=Rope(1e4, 4)))], "rope on 4 of 8 dimensions"),
    "interleaved": ([layer(replace(ATTENTION, rope=Rope(1e4, 8, "interleaved")))], "rope in interleaved pairs"),
    "betas": (
        [scaled(YarnScaling(factor=2.0, original_context=16, beta_fast=16.0, beta_slow=2.0))],
        "YaRN with beta_fast 16 and beta_slow 2",
    ),
    "truncation": (
        [scaled(YarnScaling(factor=2.0, original_context=16, truncate=False))],
        "YaRN without truncation of the correction range",
    ),
    "empty range": (
        [scaled(YarnScaling(factor=2.0, original_context=10**12))],
        "YaRN with a correction range from pair 9 back to 7",
    ),
    "llama3": ([scaled(Llama3Scaling(8.0, 1.0, 4.0, 32))], "llama3 rope scaling"),
    "epsilons": (
        [replace(layer(), ffn_norm=Norm(1e-5))],
        "layers that differ in norm epsilon (1e-06, 1e-05)",
    ),
}


@pytest.mark.parametrize(("layers", "lack"), BY_QWEN3.values(), ids=list(BY_QWEN3))
def test_qwen3_names_what_it_lacks(layers: list[LayerSpec], lack: str) -> None:
    assert any(lack in found for found in target_named("qwen3").lacks(random_model(layers).spec))


def test_scales_are_lacking_where_they_are_not_one() -> None:
    spec = random_model([layer()], embedding_scale=2.0, logit_scale=0.5).spec
    assert target_named("qwen3").lacks(spec) == ["embeddings multiplied by 2", "logits multiplied by 0.5"]


BY_QWEN3MOE: dict[str, tuple[list[LayerSpec], str]] = {
    "dense layers": ([layer(feed_forward=EXPERTS), layer()], "layers without experts"),
    "shared expert": ([layer(feed_forward=replace(EXPERTS, shared=SharedExpert(8, True)))], "a shared expert"),
    "counts": (
        [layer(feed_forward=EXPERTS), layer(feed_forward=replace(EXPERTS, experts=6))],
        "layers that differ in the number and width of experts ((4, 12), (6, 12))",
    ),
    "routers": (
        [layer(feed_forward=EXPERTS), layer(feed_forward=replace(EXPERTS, router=replace(EXPERTS.router, top_k=1)))],
        "layers that differ in router",
    ),
    "not normalised": (
        [layer(feed_forward=replace(EXPERTS, router=replace(EXPERTS.router, normalised=False)))],
        "router weights that are not renormalised (norm_topk_prob false)",
    ),
    "sigmoid": (
        [layer(feed_forward=replace(EXPERTS, router=replace(EXPERTS.router, score="sigmoid")))],
        "a sigmoid router",
    ),
}


@pytest.mark.parametrize(("layers", "lack"), BY_QWEN3MOE.values(), ids=list(BY_QWEN3MOE))
def test_qwen3moe_names_what_it_lacks(layers: list[LayerSpec], lack: str) -> None:
    assert any(lack in found for found in target_named("qwen3moe").lacks(random_model(layers).spec))


def test_dense_layers_among_experts_are_refused_by_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mixed", moe(mlp_only_layers=[1]))
    model = load_model(folder)
    assert model.spec.pattern == "AaA"
    with pytest.raises(
        UnsupportedError, match="qwen3-moe model exactly: qwen3moe does not support layers without experts"
    ):
        plan(model, "qwen3moe")


def test_another_norm_epsilon_than_that_of_linear_attention_is_refused(tmp_path: Path) -> None:
    model = load_model(checkpoint(tmp_path / "eps", hybrid(rms_norm_eps=1e-5)))
    with pytest.raises(UnsupportedError, match=r"layers that differ in norm epsilon \(1e-05, 1e-06\)"):
        plan(model, "qwen3next")


def test_heads_of_one_dimension_are_refused_since_llama_cpp_aborts(tmp_path: Path) -> None:
    write = family_named("gpt2").tiny
    assert write
    write(tmp_path, "plain", 1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_head": config["n_embd"]}))
    with pytest.raises(UnsupportedError, match="gpt2 does not support attention with values of one dimension per head"):
        plan(load_model(tmp_path))


def test_a_refusal_names_the_nearest_target_first(tmp_path: Path) -> None:
    model = load_model(checkpoint(tmp_path / "eps", hybrid(rms_norm_eps=1e-5)))
    with pytest.raises(UnsupportedError) as raised:
        plan(model)
    message = str(raised.value)
    assert "\n" not in message
    said = re.findall(r"(?:: |; )([\w-]+) does not support ", message)
    others = re.search(r"(\d+) other architectures lack as much or more", message)
    assert others
    assert set(said) <= {target.name for target in all_targets()}
    assert len(said) + int(others[1]) == len(all_targets())
    assert "qwen3next" in said[:2]


def test_a_target_that_is_asked_for_is_taken_though_another_is_cheaper(hybrid_folder: Path, qwen3_folder: Path) -> None:
    assert plan(load_model(hybrid_folder), "qwen3next").target.name == "qwen3next"
    with pytest.raises(UnsupportedError, match=r"exactly: qwen3moe does not support layers without experts$"):
        plan(load_model(qwen3_folder), "qwen3moe")


def test_a_file_of_another_architecture_cannot_be_lifted(qwen3_folder: Path, tmp_path: Path) -> None:
    path = convert(qwen3_folder, tmp_path / "out.gguf")
    data = (
        path.read_bytes()
        .replace(b"qwen3\x15", b"orion\x15")
        .replace(b"\x05\0\0\0\0\0\0\0qwen3", b"\x05\0\0\0\0\0\0\0orion", 1)
    )
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="no torch reference for the architecture orion"):
        lift(open_gguf(path))


# Metadata


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GGUFHeader]:
    """The header of the file that a config becomes, without the trouble of writing the weights twice."""

    def make(config: Any) -> GGUFHeader:
        folder = tmp_path_factory.mktemp("metadata")
        return read_header(convert(checkpoint(folder / "source", config), folder / "out.gguf"))

    return make


def keys(header: GGUFHeader) -> dict[str, Any]:
    """The architecture's own metadata, without its prefix."""
    prefix = header.architecture + "."
    return {key.removeprefix(prefix): field.value for key, field in header.metadata.items() if key.startswith(prefix)}


def f32(value: float) -> float:
    """As float32 holds it."""
    return float(torch.tensor(value, dtype=torch.float32))


def test_metadata_of_a_dense_model(header: Callable[..., GGUFHeader]) -> None:
    found = header(dense(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    assert found.architecture == "qwen3"
    assert keys(found) == {
        "context_length": CONTEXT,
        "embedding_length": 48,
        "block_count": 3,
        "vocab_size": VOCAB,
        "feed_forward_length": 56,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": f32(1e-5),
        "rope.dimension_count": 16,
        "rope.freq_base": 5e5,
    }
    counts = [key for key, field in found.metadata.items() if key.startswith("qwen3.") and isinstance(field.value, int)]
    assert all(found.metadata[key].type is ValueType.UINT32 for key in counts)


def test_metadata_of_experts(header: Callable[..., GGUFHeader]) -> None:
    found = header(moe())
    assert found.architecture == "qwen3moe"
    assert (
        keys(found).items()
        >= {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 40,
        }.items()
    )
    assert not {"expert_shared_feed_forward_length", "attention.recurrent_layers"} & keys(found).keys()


def test_metadata_of_a_hybrid(header: Callable[..., GGUFHeader]) -> None:
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    found = header(hybrid(layer_types=kinds, linear_num_value_heads=6))
    assert found.architecture == "qwen3next"
    assert (
        keys(found).items()
        >= {
            "attention.recurrent_layers": (False, True, True, False),
            "block_count": 4,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 16,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 6,
            "ssm.inner_size": 96,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 40,
            "expert_shared_feed_forward_length": 24,
            "rope.dimension_count": 4,
            "attention.layer_norm_rms_epsilon": f32(1e-6),
        }.items()
    )
    assert found.metadata["qwen3next.attention.recurrent_layers"].element is ValueType.BOOL


ROPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({"rope_type": "default", "rope_theta": 1e4}, {}),
    "linear": (
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5},
    ),
    "yarn": (
        YARN,
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 24},
    ),
    # llama.cpp multiplies 0.1 · ln(factor) + 1 itself.
    "yarn with a factor": (
        {**YARN, "attention_factor": 1.0},
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 24,
            "rope.scaling.attn_factor": f32(1 / 1.1386294361119891),
        },
    ),
}


@pytest.mark.parametrize(("parameters", "expected"), ROPES.values(), ids=list(ROPES))
def test_metadata_of_rope(
    header: Callable[..., GGUFHeader], parameters: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = keys(header(dense(rope_parameters=parameters)))
    assert {key: value for key, value in found.items() if key.startswith("rope.scaling")} == expected


def test_tensors_come_in_the_order_of_the_layers(header: Callable[..., GGUFHeader]) -> None:
    names = [entry.name for entry in header(hybrid(tie_word_embeddings=True)).tensors]
    assert names[0] == "token_embd.weight"
    assert names[-1] == "output_norm.weight"
    numbers = [int(name.split(".")[1]) for name in names if name.startswith("blk.")]
    assert numbers == sorted(numbers)


# Types


TYPES: dict[str, tuple[str, float]] = {
    # What llama.cpp's rounding of activations costs, beside which that of the weights must not show: F16's steps are 2^-11
    # of a number, Q8's 1/254 of the largest of 32 numbers, and each layer passes several products of them.
    "f16": ("f16", 1e-5),
    "bf16": ("bf16", 5e-3),
    "q8_0": ("q8_0", 5e-3),
    "q4_k_m": ("q4_k_m", 1e-2),
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose rows fit the blocks of 256 of K-quants, in part."""
    base = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 256, "num_hidden_layers": 2}
    return {
        "dense": checkpoint(base / "dense", dense(intermediate_size=256, **sizes), dtype=torch.bfloat16),
        "hybrid": checkpoint(
            base / "hybrid",
            hybrid(layer_types=["linear_attention", "full_attention"], **sizes),
            dtype=torch.bfloat16,
        ),
    }


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
@pytest.mark.parametrize(("type_name", "bound"), TYPES.values(), ids=list(TYPES))
def test_llama_cpp_computes_with_the_weights_of_the_file(
    wide: dict[str, Path], tmp_path: Path, kind: str, type_name: str, bound: float
) -> None:
    """Against the reference on the file's own decoded weights only the rounding of activations is left."""
    path = convert(wide[kind], tmp_path / "out.gguf", type_name)
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        computed = runtime.logits(PROMPTS)
    own = reference(lift(open_gguf(path)))
    engine, whole = nmse(computed, own), nmse(computed, source_reference(wide[kind]))
    assert engine <= bound
    if type_name.startswith("q"):
        # What is left is less than what the rounding of the weights changed.
        assert whole > {"q8_0": 1.3, "q4_k_m": 5.0}[type_name] * engine


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_halves_hold_bf16_weights_exactly(wide: dict[str, Path], tmp_path: Path, kind: str) -> None:
    path = convert(wide[kind], tmp_path / "out.gguf", "bf16")
    assert nmse(reference(lift(open_gguf(path))), source_reference(wide[kind])) <= 1e-12


def test_rows_that_fit_no_block_fall_back_and_are_reported(wide: dict[str, Path], tmp_path: Path) -> None:
    conversion = prepare(Request(source=wide["hybrid"], type="q4_k_m"))
    falls = {name: (fall.wanted, fall.type) for fall in conversion.report.fall_backs for name in fall.tensors}
    # 40 weights a row are no block of 32; 64 are two, but none of 256.
    assert falls["blk.0.ffn_down_exps.weight"][1] == "f16"
    assert falls["blk.0.ssm_out.weight"] == ("q4_K", "q5_0")
    assert conversion.report.fallen_back == len(falls)
    entries = {
        entry.name: entry.type.name
        for entry in read_header(convert(wide["hybrid"], tmp_path / "o.gguf", "q4_k_m")).tensors
    }
    assert {name: kind for name, (_, kind) in falls.items()}.items() <= entries.items()
    assert entries["blk.0.attn_qkv.weight"] in ("q4_K", "q5_K", "q6_K")
    assert entries["blk.0.ffn_gate_inp.weight"] == "f32"
    bits = 8 * sum(entry.nbytes for entry in conversion.layout.entries) / sum(t.size for t in conversion.tensors)
    assert conversion.report.bits_per_weight == pytest.approx(bits)


def test_an_architecture_without_a_target_is_no_problem(tinyq: Tinyq, tmp_path: Path) -> None:
    """llama.cpp runs the file: inspect describes it, and eval says what can be done without a torch reference."""
    path = tiny_architectures.gemma4().write(tmp_path / "gemma4.gguf")
    found = inspect(path)
    assert (found.architecture, found.layers, found.problems) == ("gemma4", 6, ())
    assert any("no torch reference for the architecture gemma4" in note for note in found.notes)
    ran = tinyq("eval", path, "--tokens", "2", "--no-speed")
    assert ran.code == 2
    assert "--suite card" in ran.err
    assert "--reference FOLDER" in ran.err
    assert ran.err.count("\n") == 1
