"""Reading files as models: defaults of keys that files lack, and values at the bounds of what is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.header import Field, GGUFHeader, ValueType
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.rope import LinearScaling, Rope, YarnScaling
from gguf_tools.model.spec import Attention, GatedMLP, Model, ModelSpec, Norm, Router, SharedExpert
from gguf_tools.targets import lifting, lowering
from gguf_tools.targets.names import rename
from gguf_tools.targets.registry import NoTargetError, lift, target_named
from gguf_tools.tensors.base import InMemory, Tensor
from tests.random_model import CONTEXT, HIDDEN, named
from tests.targets.forms import FORMS, PLAIN_SHARED, SQUARE, stored

ARCH = "llama"


def source(keys: Mapping[str, Any] | None = None, tensors: Mapping[str, tuple[int, ...]] | None = None) -> GGUFSource:
    """A file with these keys (without prefix) and tensors of these shapes."""
    given = {"context_length": 32, "embedding_length": 24, **(keys or {})}
    metadata = {f"{ARCH}.{key}": Field(ValueType.UINT32, value) for key, value in given.items() if value is not None}
    metadata["general.architecture"] = Field(ValueType.STRING, ARCH)
    header = GGUFHeader(
        path=Path("made.gguf"), metadata=metadata, tensors=(), data_offset=0, alignment=32, head=bytearray()
    )
    rng = np.random.default_rng(0)
    made = {n: InMemory(rng.standard_normal(s).astype(np.float32), (n,)) for n, s in (tensors or {}).items()}
    return GGUFSource(header, made)


def changed(
    file: GGUFSource, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor | None] | None = None
) -> GGUFSource:
    """The file with other keys and tensors; those that become None are left out."""
    prefixed = {f"{file.architecture}.{key}": value for key, value in (keys or {}).items()}
    fields = {key: Field(ValueType.UINT32, value) for key, value in prefixed.items() if value is not None}
    kept = {key: field for key, field in file.header.metadata.items() if key not in prefixed}
    both = {**file.tensors, **(tensors or {})}
    metadata = {**kept, **fields}
    return GGUFSource(
        replace(file.header, metadata=metadata), {name: tensor for name, tensor in both.items() if tensor is not None}
    )


def made(name: str, n: int = 0) -> GGUFSource:
    """The file of one of a target's models."""
    return stored(target_named(name).lower(FORMS[name][n]))


def read(file: GGUFSource) -> Model:
    return target_named(file.architecture).lift(file)


# Rope


def test_rope_without_keys() -> None:
    assert lifting.lift_rope(source(), 8) == Rope(10000.0, 8, "half", None)


@pytest.mark.parametrize("dims", [2, 6, 8])
@pytest.mark.parametrize("stated", [True, False])
def test_rotated_dimensions_up_to_a_head(dims: int, stated: bool) -> None:
    found = (
        lifting.lift_rope(source({"rope.dimension_count": dims}), 8) if stated else lifting.lift_rope(source(), 8, dims)
    )
    assert found.dims == dims


def test_dimensions_that_are_given_override_those_that_are_stated() -> None:
    assert lifting.lift_rope(source({"rope.dimension_count": 8}), 8, 4).dims == 4


@pytest.mark.parametrize("dims", [0, 1, 7, 9, 10])
def test_dimensions_that_cannot_be_rotated(dims: int) -> None:
    with pytest.raises(CheckpointError, match=f"rope rotates {dims} of 8 dimensions"):
        lifting.lift_rope(source({"rope.dimension_count": dims}), 8)


@pytest.mark.parametrize(("base", "fine"), [(0.0, False), (-1.0, False), (0.5, True), (1.0, True), (1e6, True)])
def test_the_base_of_rope(base: float, fine: bool) -> None:
    file = source({"rope.freq_base": base})
    if fine:
        assert lifting.lift_rope(file, 8).theta == base
        return
    with pytest.raises(CheckpointError, match="expected a base above 0"):
        lifting.lift_rope(file, 8)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"rope.scaling.factor": 2.5}, LinearScaling(2.5)),
        ({"rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, LinearScaling(1.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.5}, None),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0},
            YarnScaling(factor=1.0, original_context=32, attention_factor=1.0),
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 0.5,
                "rope.scaling.original_context_length": 16,
                "rope.scaling.attn_factor": 1.5,
            },
            YarnScaling(factor=0.5, original_context=16, attention_factor=1.5),
        ),
    ],
)
def test_scaling(keys: dict[str, Any], scaling: Any) -> None:
    assert lifting.lift_rope(source(keys), 8).scaling == scaling


@pytest.mark.parametrize(("factor", "base"), [(0.0, 1e4), (-1.0, 1e4), (4.0, 1.0), (4.0, 0.5)])
def test_yarn_needs_a_factor_and_a_base_above_one(factor: float, base: float) -> None:
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor, "rope.freq_base": base}
    with pytest.raises(CheckpointError, match="YaRN needs a factor above 0 and a base above 1"):
        lifting.lift_rope(source(keys), 8)
    assert lifting.lift_rope(source({**keys, "rope.scaling.factor": 0.1, "rope.freq_base": 1.1}), 8).scaling


# Attention


def test_attention_without_lengths() -> None:
    """Heads share the embedding's length, and values are as wide as keys."""
    shapes = {f"blk.1.attn_{name}.weight": (8, 24) for name in ("q", "k", "v", "output")}
    keys = {"attention.head_count": 3, "attention.head_count_kv": 1}
    mixer, part = lifting.lift_attention(source(keys, {**shapes, "blk.1.attn_k.bias": (8,)}), 1, Norm(1e-5))
    assert mixer == replace(SQUARE, bias=frozenset("k"))
    assert part.keys() == {"attn.q", "attn.k", "attn.k_bias", "attn.v", "attn.o"}


@pytest.mark.parametrize(("value_length", "value_dim"), [(8, None), (6, 6), (None, None)])
def test_values_of_another_width(value_length: int | None, value_dim: int | None) -> None:
    keys = {
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": value_length,
    }
    mixer, _ = lifting.lift_attention(source(keys), 0, Norm(1e-5))
    assert (mixer.heads, mixer.kv_heads, mixer.head_dim, mixer.value_dim) == (4, 2, 8, value_dim)
    assert lifting.lift_attention(source(keys), 0, Norm(1e-5), kv_heads=4)[0].kv_heads == 4
    assert lifting.lift_attention(source(keys), 0, Norm(1e-5), 4)[0].rope == Rope(10000.0, 4)
    assert lifting.lift_attention(source(keys), 0, Norm(1e-5), with_rope=False)[0].rope is None


@pytest.mark.parametrize("listed", [None, 2, (), (1,), (1, -1), (1, True), (1, 2.0), ("1", "2")])
def test_key_heads_of_each_layer_are_needed(listed: Any) -> None:
    with pytest.raises(CheckpointError, match=r"head_count_kv (has no number of heads for layer 1|is missing)"):
        lifting.kv_heads(source({"attention.head_count_kv": listed}), 1)


def test_key_heads_of_each_layer() -> None:
    assert [lifting.kv_heads(source({"attention.head_count_kv": (0, 2, 5)}), n) for n in range(3)] == [0, 2, 5]


@pytest.mark.parametrize("suffix", ["weight", "bias"])
@pytest.mark.parametrize("surplus", [-1, 1])
def test_queries_keys_and_values_in_one_matrix_have_its_rows(suffix: str, surplus: int) -> None:
    file = made("gpt2")
    name = f"blk.1.attn_qkv.{suffix}"
    shape = file.tensors[name].shape
    wrong = InMemory(np.zeros((shape[0] + surplus, *shape[1:]), np.float32), (name,))
    with pytest.raises(CheckpointError, match=f"{name} has {40 + surplus} rows; expected 40"):
        read(changed(file, tensors={name: wrong}))


# Experts


@pytest.mark.parametrize(("used", "fine"), [(0, False), (1, True), (4, True), (5, False)])
def test_experts_that_are_used(used: int, fine: bool) -> None:
    file = changed(made("qwen3moe"), {"expert_used_count": used})
    if fine:
        ffn = read(file).spec.layers[0].feed_forward
        assert ffn
        assert ffn == replace(FORMS["qwen3moe"][0].spec.layers[0].feed_forward, router=Router(top_k=used))  # type: ignore[type-var]
        return
    with pytest.raises(CheckpointError, match=f"expert_used_count is {used}, but layer 0 has 4 experts"):
        read(file)


@pytest.mark.parametrize(("scale", "read_as"), [(None, 1.0), (0.0, 1.0), (1.0, 1.0), (2.5, 2.5)])
def test_the_scale_of_expert_weights(scale: float | None, read_as: float) -> None:
    """Of architectures that read it; llama.cpp ignores the key for the others."""
    file = changed(made("glm4moe"), {"expert_weights_scale": scale})
    assert lifting.lift_scored_moe(file, 1)[0].router.scale == read_as
    file = changed(made("qwen3moe"), {"expert_weights_scale": scale})
    assert lifting.lift_moe(file, 0)[0].router == Router(top_k=2)


def test_a_gate_of_a_shared_expert_may_be_a_matrix_of_one_row() -> None:
    file, name = made("qwen2moe"), "blk.0.ffn_gate_inp_shexp.weight"
    values = file.tensors[name].array()
    matrix = changed(file, tensors={name: InMemory(values[None], (name,))})
    assert read(matrix).spec == read(file).spec
    assert np.array_equal(named(read(matrix))["layers.0.shared.sigmoid"].array(), values)


@pytest.mark.parametrize(
    ("keys", "router"),
    [
        ({}, Router(top_k=2, score="sigmoid", score_bias=True, normalised=False)),
        ({"expert_gating_func": 1}, Router(top_k=2, score_bias=True, normalised=False)),
        ({"expert_gating_func": 2}, Router(top_k=2, score="sigmoid", score_bias=True, normalised=False)),
        ({"expert_weights_norm": True}, Router(top_k=2, score="sigmoid", score_bias=True)),
        ({"expert_weights_norm": False}, Router(top_k=2, score="sigmoid", score_bias=True, normalised=False)),
    ],
)
def test_routers(keys: dict[str, Any], router: Router) -> None:
    none = {"expert_gating_func": None, "expert_weights_norm": None, "expert_weights_scale": None}
    file = changed(made("glm4moe"), {**none, **keys})
    moe, _ = lifting.lift_scored_moe(file, 1)
    assert moe.router == router
    assert moe.shared == PLAIN_SHARED
    without = changed(file, tensors={"blk.1.exp_probs_b.bias": None})
    assert lifting.lift_scored_moe(without, 1)[0].router == replace(router, score_bias=False)


def test_the_score_where_none_is_stated_is_the_architectures() -> None:
    file = changed(made("glm4moe"), {"expert_gating_func": None})
    assert lifting.lift_scored_moe(file, 1, lowering.SOFTMAX)[0].router.score == "softmax"


@pytest.mark.parametrize("function", [0, 3, 4])
def test_other_functions_of_routers(function: int) -> None:
    with pytest.raises(UnsupportedError, match=f"expert_gating_func is {function}"):
        lifting.lift_scored_moe(changed(made("glm4moe"), {"expert_gating_func": function}), 1)


def test_a_shared_expert_without_a_gate() -> None:
    file = changed(made("qwen2moe"), tensors={"blk.0.ffn_gate_inp_shexp.weight": None})
    assert lifting.lift_moe(file, 0)[0].shared == SharedExpert(28, gated=False)


# The whole file


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo"])
def test_a_file_has_a_layer_at_least(name: str) -> None:
    with pytest.raises(CheckpointError, match="block_count is 0; expected 1 to 512"):
        lift(changed(made(name), {"block_count": 0}))
    assert len(read(changed(made(name), {"block_count": 1})).spec.layers) == 1


def test_a_file_has_a_norm_before_the_output() -> None:
    with pytest.raises(CheckpointError, match=r"tensor output_norm\.weight is missing"):
        read(changed(made("llama"), tensors={"output_norm.weight": None}))


def test_where_metadata_and_tensors_contradict_each_other_the_file_is_named() -> None:
    wrong = InMemory(np.zeros((1, 2, 3), np.float32), ("output_norm.weight",))
    file = changed(made("llama"), tensors={"token_embd.weight": wrong})
    with pytest.raises(CheckpointError, match=r"made\.gguf: is not a valid llama model .*; write the file again"):
        lift(file)


def test_an_architecture_without_a_target_is_named_with_the_file() -> None:
    file = made("llama")
    other = replace(file.header.metadata["general.architecture"], value="orion")
    header = replace(file.header, metadata={**file.header.metadata, "general.architecture": other})
    with pytest.raises(NoTargetError, match=r"made\.gguf: tinyq has no torch reference for the architecture orion"):
        lift(replace(file, header=header))


@pytest.mark.parametrize("name", ["llama", "qwen35", "gpt2"])
def test_the_context_and_the_width_are_the_files(name: str) -> None:
    spec = read(changed(made(name), {"context_length": 17})).spec
    assert (spec.context_length, spec.hidden) == (17, HIDDEN)
    assert read(made(name)).spec.context_length == CONTEXT


def test_biases_of_a_dense_feed_forward() -> None:
    file = made("llama")
    assert lifting.lift_mlp(file, 0)[0] == GatedMLP(20, frozenset({"gate", "up", "down"}))
    without = changed(file, tensors={"blk.0.ffn_gate.bias": None, "blk.0.ffn_down.bias": None})
    assert lifting.lift_mlp(without, 0)[0] == GatedMLP(20, frozenset({"up"}))


def test_a_role_without_a_name_is_an_error_of_the_program() -> None:
    tensor = InMemory(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"no GGUF name for \['other'\]"):
        rename({"attn.q": tensor, "other": tensor}, {"attn.q": "attn_q.weight"})
    assert rename({"b": tensor, "a": tensor}, {"a": "first", "b": "second", "c": "third"}) == {
        "first": tensor,
        "second": tensor,
    }


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_layers_with_a_window_have_the_rope_base_that_the_file_states_for_them(name: str) -> None:
    """llama.cpp: rope_freq_base_train_swa; without the key it is the base of the others."""
    plain = read(made(name)).spec
    found = [(mixer.window is not None, rope.theta) for mixer, rope in turned(plain)]
    assert {windowed for windowed, _ in found} == {True, False}
    wanted = [77.0 if windowed else theta for windowed, theta in found]
    assert [rope.theta for _, rope in turned(read(changed(made(name), {"rope.freq_base_swa": 77})).spec)] == wanted


def turned(spec: ModelSpec) -> list[tuple[Attention, Rope]]:
    """The attention of each layer, with its rope."""
    mixers = [layer.mixer for layer in spec.layers]
    return [(mixer, mixer.rope) for mixer in mixers if isinstance(mixer, Attention) and mixer.rope]


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"rope.scale_linear": 2.0}, LinearScaling(2.0)),
        ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, LinearScaling(4.0)),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, LinearScaling(2.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, None),
    ],
)
def test_the_factor_under_its_old_name_and_beside_each_type(keys: Mapping[str, Any], scaling: object) -> None:
    assert lifting.lift_rope(source(keys), 8) == Rope(10000.0, 8, "half", scaling)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1,), (4, 2), (64,)])
def test_divisors_of_frequencies_of_another_number(shape: tuple[int, ...]) -> None:
    factors = InMemory(np.ones(shape, np.float32), ("rope_freqs.weight",))
    with pytest.raises(
        CheckpointError, match=r"tensor rope_freqs.weight has shape \(.*; expected \(\d+,\), one factor for each"
    ):
        lift(changed(made("llama"), tensors={"rope_freqs.weight": factors}))


def test_layers_without_rope_by_the_keys_that_each_graph_reads() -> None:
    swa = lift(changed(made("granite_swa"), {"attention.rope_pattern": (True, False)}))
    assert [_attention(swa, n).rope is None for n in range(2)] == [False, True]
    moe = changed(made("granitemoe"), {"rope.scaling.finetuned": False})
    assert lift(moe).spec == lift(made("granitemoe")).spec
    plain = lift(changed(made("granite"), {"rope.scaling.finetuned": False}))
    assert _attention(plain, 0).rope is None


def _attention(model: Model, n: int) -> Attention:
    mixer = model.spec.layers[n].mixer
    assert isinstance(mixer, Attention)
    return mixer


def test_experts_in_every_so_many_layers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="interleave_moe_layer_step is 2; expected 1"):
        lift(changed(made("ernie4_5-moe"), {"interleave_moe_layer_step": 2}))


def test_the_width_of_linear_attention_is_that_of_its_heads() -> None:
    with pytest.raises(CheckpointError, match=r"qwen3next.ssm.inner_size is 1; expected \d+, ssm.time_step_rank"):
        lift(changed(made("qwen3next"), {"ssm.inner_size": 1}))


def test_a_tensor_of_another_shape_is_named_with_its_file() -> None:
    wrong = InMemory(np.ones((3, 3), np.float32), ("blk.0.attn_q.weight",))
    with pytest.raises(
        CheckpointError, match=r"^made.gguf: tensor blk.0.attn_q.weight has shape \(3, 3\); expected .*; write the"
    ):
        lift(changed(made("llama"), tensors={"blk.0.attn_q.weight": wrong}))


def test_yarn_with_an_original_context_of_one_token() -> None:
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 1}
    scaling = lifting.lift_rope(changed(made("llama"), keys), 8).scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.original_context == 1


def test_a_base_of_rope_of_one() -> None:
    assert lifting.lift_rope(changed(made("llama"), {"rope.freq_base": 1.0}), 8, 8).theta == 1.0
