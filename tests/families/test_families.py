"""Families: recognised by tensors, contradictions said, and every name, shape and config value that is wrong refused.

That a right checkpoint becomes the right model is proved in tests/targets/test_core_conformance.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_tools.conversion.general_metadata import general_metadata
from gguf_tools.errors import CheckpointError, TinyqError, UnsupportedError
from gguf_tools.families.registry import all_families, build_model, load_model, recognise
from gguf_tools.formats.gguf.header import DEFAULT_ALIGNMENT, pack_header
from gguf_tools.model.spec import Attention, DeltaNet, GatedMLP, MoE
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.targets.planner import plan
from gguf_tools.tensors.base import Filled
from tests.tiny_models import (
    Tensors,
    change_config,
    change_tensors,
    checkpoint,
    dense,
    fuse_experts,
    hybrid,
    moe,
)

Copy = Callable[[Path], Path]
FAMILIES = {"qwen3": dense, "qwen3-moe": moe, "qwen3-next": hybrid}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family, not to be changed, and one with fused experts and biases."""
    base = tmp_path_factory.mktemp("families")
    made = {name: checkpoint(base / name, config()) for name, config in FAMILIES.items()}
    fused = checkpoint(base / "fused", hybrid(attention_bias=True, tie_word_embeddings=True))
    return {**made, "fused": change_tensors(fused, fuse_experts)}


# Recognition


def test_a_missing_output_projection_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "untied", dense())
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing"):
        load_model(folder)


def test_families_have_names_of_their_own() -> None:
    names = [family.name for family in all_families()]
    assert names == sorted(set(names))
    assert set(FAMILIES) <= set(names)


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_decide_whatever_the_config_claims(folders: dict[str, Path], name: str) -> None:
    opened = open_checkpoint(folders[name])
    for kind in ("llama", "qwen3", "qwen3_moe", "qwen3_next", 7, None):
        assert recognise(replace(opened, config={**opened.config, "model_type": kind})).name == name


def test_what_no_family_knows_is_refused_with_its_first_names(folders: dict[str, Path]) -> None:
    opened = replace(
        open_checkpoint(folders["qwen3"]), tensors={f"transformer.h.{n}.w": Filled((2, 2)) for n in range(9)}
    )
    with pytest.raises(
        UnsupportedError, match=r"no family has tensors like transformer\.h\.0\.w, .*the known families are .*qwen3"
    ):
        recognise(opened)
    with pytest.raises(UnsupportedError, match="no tensors"):
        recognise(replace(opened, tensors={}))


# What the config says and the tensors do not


NOTES: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers": ("qwen3", {"num_hidden_layers": 5}, "config.json says num_hidden_layers 5, but the tensors have 3"),
    "width": ("qwen3", {"hidden_size": 64}, "config.json says hidden_size 64, but the tensors have 48"),
    "vocabulary": ("qwen3", {"vocab_size": 1000}, "config.json says vocab_size 1000, but the tensors have 288"),
    "heads": ("qwen3", {"num_attention_heads": 8}, "config.json says num_attention_heads 8, but the tensors have 4"),
    "kv heads": ("qwen3", {"num_key_value_heads": 4}, "config.json says num_key_value_heads 4, but the tensors have 2"),
    "head size": ("qwen3", {"head_dim": 12}, "config.json says head_dim 12, but the tensors have 16"),
    "feed-forward": (
        "qwen3",
        {"intermediate_size": 9},
        "config.json says intermediate_size 9, but the tensors have 56",
    ),
    "tied": (
        "qwen3",
        {"tie_word_embeddings": True},
        "config.json says tie_word_embeddings True, but by the tensors it is False",
    ),
    "experts": ("qwen3-moe", {"num_experts": 8}, "config.json says num_experts 8, but the tensors have 4"),
    "expert size": (
        "qwen3-moe",
        {"moe_intermediate_size": 8},
        "config.json says moe_intermediate_size 8, but the tensors have 40",
    ),
    "shared expert": (
        "qwen3-moe",
        {"shared_expert_intermediate_size": 8},
        "config.json states a shared expert, but the tensors have none",
    ),
    "linear layers": (
        "qwen3-moe",
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        "config.json says layer 1 is linear_attention, but its tensors are full_attention",
    ),
    "full layers": (
        "qwen3-next",
        {"layer_types": ["full_attention", "full_attention", "linear_attention"]},
        "config.json says layer 0 is full_attention, but its tensors are linear_attention",
    ),
    "shared size": (
        "qwen3-next",
        {"shared_expert_intermediate_size": 8},
        "config.json says shared_expert_intermediate_size 8, but the tensors have 24",
    ),
    "value heads": (
        "qwen3-next",
        {"linear_num_value_heads": 8},
        "config.json says linear_num_value_heads 8, but the tensors have 4",
    ),
    "value size": (
        "qwen3-next",
        {"linear_value_head_dim": 8},
        "config.json says linear_value_head_dim 8, but the tensors have 16",
    ),
    "kernel": (
        "qwen3-next",
        {"linear_conv_kernel_dim": 2},
        "config.json says linear_conv_kernel_dim 2, but the tensors have 4",
    ),
}


@pytest.mark.parametrize(("name", "changes", "note"), NOTES.values(), ids=list(NOTES))
def test_a_contradiction_is_noted_and_the_tensors_are_believed(
    folders: dict[str, Path], name: str, changes: dict[str, Any], note: str
) -> None:
    opened = open_checkpoint(folders[name])
    model = build_model(opened)
    assert model.notes == ()
    contradicted = build_model(replace(opened, config={**opened.config, **changes}))
    assert contradicted.notes == (note,)
    assert contradicted.spec == model.spec


def test_an_output_that_repeats_the_embedding_is_tied_where_the_config_ties(
    folders: dict[str, Path], copied: Copy
) -> None:
    def repeat(found: Tensors) -> None:
        found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()

    folder = change_tensors(copied(folders["qwen3"]), repeat)
    assert not load_model(folder).spec.tied
    model = load_model(change_config(folder, {"tie_word_embeddings": True}))
    assert model.spec.tied
    assert model.notes == ("lm_head.weight repeats the embedding; it is stored once",)
    assert "output" not in model.tensors


def test_a_prediction_block_is_left_out_and_said(folders: dict[str, Path], copied: Copy) -> None:
    def add(found: Tensors) -> None:
        found["mtp.fc.weight"] = torch.ones(2, 2)

    model = load_model(change_tensors(copied(folders["qwen3-next"]), add))
    assert any("mtp" in note for note in model.notes)
    assert model.spec == load_model(folders["qwen3-next"]).spec


def test_specs_hold_what_the_tensors_are(folders: dict[str, Path]) -> None:
    model = load_model(folders["fused"])
    assert model.spec.pattern == "DAD"
    assert model.spec.tied
    first, second = model.spec.layers[:2]
    assert isinstance(first.mixer, DeltaNet)
    assert (first.mixer.key_heads, first.mixer.value_heads, first.mixer.kernel) == (2, 4, 4)
    assert isinstance(second.mixer, Attention)
    assert second.mixer.gated
    assert second.mixer.bias == frozenset("qkvo")
    assert second.mixer.rope
    assert second.mixer.rope.dims == 4
    assert isinstance(second.feed_forward, MoE)
    assert second.feed_forward.shared is not None
    assert second.feed_forward.shared.gated
    assert second.mixer_norm
    assert second.mixer_norm.offset == 1.0
    assert first.mixer.norm.offset == 0.0
    assert load_model(folders["qwen3"]).spec.pattern == "aaa"
    assert isinstance(load_model(folders["qwen3"]).spec.layers[0].feed_forward, GatedMLP)


def test_parameters_are_counted(folders: dict[str, Path]) -> None:
    opened = open_checkpoint(folders["qwen3-moe"])
    model = build_model(opened)
    assert model.parameters == sum(tensor.size for tensor in opened.tensors.values())
    assert model.active_parameters == model.parameters - 3 * 3 * 2 * 40 * 48


# Windows


def test_windows_are_part_of_the_model(folders: dict[str, Path]) -> None:
    """A config that limits attention to a window is not computed without one."""
    opened = open_checkpoint(folders["qwen3"])
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "layer_types": kinds}
    model = build_model(replace(opened, config={**opened.config, **windows}))
    assert [layer.mixer.window for layer in model.spec.layers if isinstance(layer.mixer, Attention)] == [None, None, 8]
    with pytest.raises(UnsupportedError, match="qwen3 does not support a sliding window of 8 tokens"):
        plan(model, "qwen3")
    without_kinds = {**opened.config, **windows, "max_window_layers": 0, "layer_types": None}
    model = build_model(replace(opened, config=without_kinds))
    assert [layer.mixer.window for layer in model.spec.layers if isinstance(layer.mixer, Attention)] == [8, 8, 8]
    unused = build_model(replace(opened, config={**opened.config, "sliding_window": 8, "max_window_layers": 0}))
    assert unused.spec == build_model(opened).spec


# Names and shapes


def other_shapes(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Shapes that a tensor may have by mistake."""
    more = {
        (),
        (1,),
        (*shape, 1),
        (1, *shape),
        shape[::-1],
        (0,) * len(shape),
        (*shape[:-1], 0),
        (0, *shape[1:]),
        (*shape[:-1], shape[-1] + 1),
        (shape[0] + 1, *shape[1:]),
        (shape[0] * 2, *shape[1:]),
        (1,) * len(shape),
        shape[:1],
        shape[-1:],
    }
    return more - {shape}


def mentioned(message: str, name: str) -> bool:
    """Whether a message names a tensor, or one that its shape is compared with."""
    layer = ".".join(name.split(".")[:3])
    return name in message or layer in message or "embed_tokens" in name or "lm_head" in name


@pytest.mark.parametrize("kind", [*FAMILIES, "fused"])
def test_a_wrong_shape_anywhere_is_refused_and_named(folders: dict[str, Path], kind: str) -> None:
    opened = open_checkpoint(folders[kind])
    for name, tensor in opened.tensors.items():
        for shape in other_shapes(tensor.shape):
            changed = replace(opened, tensors={**opened.tensors, name: Filled(shape)})
            try:
                model = build_model(changed)
                plan(model)
            except CheckpointError as error:
                message = str(error)
            except UnsupportedError:
                # A query projection twice as tall holds a gate, a kernel may have another length: other models.
                assert name.endswith(("q_proj.weight", "conv1d.weight"))
                continue
            else:
                # A tied embedding of more rows is a larger vocabulary.
                assert name == "model.embed_tokens.weight"
                assert any("vocab_size" in note for note in model.notes)
                continue
            assert mentioned(message, name), message
            assert "\n" not in message


@pytest.mark.parametrize("kind", [*FAMILIES, "fused"])
def test_a_missing_tensor_is_refused_and_named(folders: dict[str, Path], kind: str) -> None:
    opened = open_checkpoint(folders[kind])
    optional = (".bias", "lm_head.weight", "shared_expert_gate.weight")  # without them it is another model
    for name in opened.tensors:
        if name.endswith(optional):
            continue
        left = {other: tensor for other, tensor in opened.tensors.items() if other != name}
        with pytest.raises(CheckpointError) as raised:
            build_model(replace(opened, tensors=left))
        message = str(raised.value)
        assert "missing" in message or "is not part of the model" in message
        assert mentioned(message, name), (name, message)


def test_a_missing_layer_is_refused_and_named(folders: dict[str, Path]) -> None:
    opened = open_checkpoint(folders["qwen3"])
    left = {name: tensor for name, tensor in opened.tensors.items() if ".layers.1." not in name}
    with pytest.raises(CheckpointError, match=r"tensors of layer 1 are missing \(model\.layers\.1\.…\)"):
        build_model(replace(opened, tensors=left))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.sinks",
        "model.layers.1.mlp.experts.4.up_proj.weight",
        "model.norm.bias",
        "extra",
        "model.layers.9.x",
    ],
)
def test_an_extra_tensor_is_refused_and_named(folders: dict[str, Path], kind: str, name: str) -> None:
    opened = open_checkpoint(folders[kind])
    with pytest.raises(TinyqError) as raised:
        build_model(replace(opened, tensors={**opened.tensors, name: Filled((40, 48))}))
    message = str(raised.value)
    assert name in message or "model.layers." in message
    assert "is not part of the model" in message or "missing" in message


def test_several_extra_tensors_are_counted(folders: dict[str, Path]) -> None:
    opened = open_checkpoint(folders["qwen3"])
    extra = {f"model.layers.0.adapter.{n}": Filled((2,)) for n in range(3)}
    with pytest.raises(
        CheckpointError, match=r"tensor model\.layers\.0\.adapter\.0 \(and 2 more\) is not part of the model"
    ):
        build_model(replace(opened, tensors={**opened.tensors, **extra}))


# Config values


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 24,
        "attention_factor": 1.2,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": True,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "x", "", "\ud800", -1, 0, 1, 3, 0.3, 1.5, -0.5, 1e300, 1e-320),
    *(1 << 31, 1 << 32, 1 << 64, 10**400, float("inf"), float("-inf"), float("nan")),
    *([], [1], ["x"], [{}], {}, {"a": 1}, {"full_attention": {"rope_theta": 1e4}}),
)


def keys_of(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Paths to every value, and to some that old configs have."""
    yield from ((key,) for key in config)
    yield from (("rope_parameters", key) for key in config["rope_parameters"])
    yield from ((key,) for key in ("rope_scaling", "rope_theta", "partial_rotary_factor", "quantization_config"))


def with_value(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(config))
    node = changed
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        node.pop(path[-1], None)
    else:
        node[path[-1]] = value
    return changed


def written(opened: Checkpoint, target: str) -> None:
    """The model that a config describes, as far as a header can be packed."""
    model = build_model(opened)
    lowered = plan(model, target).lower()
    pack_header(lowered.metadata | general_metadata(model, opened.path, "x"), (), DEFAULT_ALIGNMENT)


@pytest.mark.parametrize(
    ("name", "rope"), [("qwen3", rope) for rope in ROPES] + [("qwen3-moe", "yarn"), ("qwen3-next", "linear")]
)
def test_config_values_of_any_kind_are_refused_or_taken(folders: dict[str, Path], name: str, rope: str) -> None:
    """Each value of the config in turn is missing or odd: one line that names the key, or a model; never a traceback."""
    opened = open_checkpoint(folders[name])
    config = {**opened.config, "rope_parameters": ROPES[rope]}
    refused = 0
    for path in keys_of(config):
        for value in (*ODD_VALUES, ...):
            try:
                written(replace(opened, config=with_value(config, path, value)), name.replace("-", ""))
            except TinyqError as error:
                message = str(error)
            else:
                continue
            refused += 1
            assert "\n" not in message
            assert len(message) < 1000
            assert message.isprintable()
    assert refused > 100


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rms_norm_eps": "small"}, "config.json: rms_norm_eps is 'small'; expected a number of at least 0"),
        ({"rms_norm_eps": None}, "config.json: rms_norm_eps is missing"),
        ({"rms_norm_eps": float("nan")}, "config.json: rms_norm_eps is nan"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads is 0; expected a whole number above 0"),
        ({"num_attention_heads": True}, "config.json: num_attention_heads is True"),
        ({"max_position_embeddings": 10**30}, "config.json: max_position_embeddings is 1000"),
        ({"max_position_embeddings": "x" * 500}, "xxx…; expected a whole number above 0"),
        ({"hidden_act": "gelu"}, "config.json: hidden_act is 'gelu'; expected silu"),
        ({"tie_word_embeddings": "yes"}, "config.json: tie_word_embeddings is 'yes'; expected true or false"),
        ({"rope_parameters": [1]}, "config.json: rope_parameters is [1]; expected an object"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope scaling 'dynamic' is not supported; default, linear",
        ),
        ({"rope_parameters": {"rope_theta": -1}}, "config.json: rope_theta is -1; expected a number above 0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "config.json: rope_scaling.factor is missing"),
        ({"rope_parameters": {**ROPES["yarn"], "attention_factor": "x"}}, "rope_scaling.attention_factor is 'x'"),
        (
            {"rope_parameters": {**ROPES["yarn"], "truncate": "no"}},
            "rope_scaling.truncate is 'no'; expected true or false",
        ),
        ({"rope_parameters": {"a": {"rope_theta": 1e4}}}, "rope_parameters differ between layer types"),
    ],
)
def test_a_wrong_value_is_named(folders: dict[str, Path], changes: dict[str, Any], expected: str) -> None:
    opened = open_checkpoint(folders["qwen3"])
    with pytest.raises(TinyqError) as raised:
        build_model(replace(opened, config={**opened.config, **changes}))
    assert expected in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but the router has 4 experts"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is missing"),
        ({"norm_topk_prob": 1}, "norm_topk_prob is 1; expected true or false"),
    ],
)
def test_a_wrong_router_is_named(folders: dict[str, Path], changes: dict[str, Any], expected: str) -> None:
    opened = open_checkpoint(folders["qwen3-moe"])
    with pytest.raises(CheckpointError, match=expected):
        build_model(replace(opened, config={**opened.config, **changes}))


@pytest.mark.parametrize("heads", [3, 5, 1000, None])
def test_key_heads_that_do_not_fit_are_named(folders: dict[str, Path], heads: int | None) -> None:
    opened = open_checkpoint(folders["qwen3-next"])
    with pytest.raises(CheckpointError, match="linear_num_key_heads"):
        build_model(replace(opened, config={**opened.config, "linear_num_key_heads": heads}))


def test_key_heads_of_another_size_are_named(folders: dict[str, Path]) -> None:
    """The tensors tell the product of number and size alone."""
    opened = open_checkpoint(folders["qwen3-next"])
    with pytest.raises(CheckpointError, match="linear_num_key_heads 2 and linear_key_head_dim 8 do not fit"):
        build_model(replace(opened, config={**opened.config, "linear_key_head_dim": 8}))


def test_old_and_new_keys_of_rope_say_the_same(folders: dict[str, Path]) -> None:
    opened = open_checkpoint(folders["qwen3"])
    rest = {key: value for key, value in opened.config.items() if key != "rope_parameters"}
    yarn = {"factor": 4.0, "original_max_position_embeddings": 24}
    new = build_model(
        replace(opened, config={**rest, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **yarn}})
    )
    for old in (
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **yarn}},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **yarn}, "rope_parameters": None},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                **yarn,
                "beta_fast": None,
                "attention_factor": None,
            }
        },
    ):
        assert build_model(replace(opened, config={**rest, **old})).spec == new.spec
