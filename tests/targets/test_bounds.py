"""Single architectures: sizes and keys at the bounds of what each expresses, and what files may say or leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.model.rope import FactorScaling, LinearScaling, Rope
from gguf_tools.model.spec import Attention, Mamba2, ModelSpec, MoE, Norm
from gguf_tools.targets import gemma2
from gguf_tools.targets.qwen35 import rope_sections
from gguf_tools.targets.registry import target_named
from gguf_tools.tensors.base import Filled, InMemory, Tensor
from tests.random_model import CONTEXT, HIDDEN
from tests.targets import forms
from tests.targets.forms import FORMS
from tests.targets.test_lifting import changed, made, read


def mixer(spec: ModelSpec, n: int = 0) -> Attention:
    """The n-th attention of the spec."""
    return [one.mixer for one in spec.layers if isinstance(one.mixer, Attention)][n]


def spec_of(
    name: str, keys: Mapping[str, Any], form: int = 0, tensors: Mapping[str, Tensor | None] | None = None
) -> ModelSpec:
    """What is read from the file of a target's model with other keys and tensors."""
    return read(changed(made(name, form), keys, tensors)).spec


def rows(tensor: Tensor, count: int) -> Tensor:
    """A tensor of the same name with another number of rows."""
    return InMemory(np.zeros((count, *tensor.shape[1:]), np.float32), tensor.sources)


# Windows

WINDOWED = ("cohere2", "gemma2", "gemma3", "gpt-oss", "olmo2", "step35")


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(("stated", "window"), [(1, 1), (CONTEXT - 1, CONTEXT - 1), (CONTEXT, None), (1 << 23, None)])
def test_a_window_as_long_as_the_context_is_none(name: str, stated: int, window: int | None) -> None:
    spec = spec_of(name, {"attention.sliding_window": stated})
    assert [mixer(spec, n).window for n in (0, 1)] == [window, None]


@pytest.mark.parametrize("pattern", [(True,), (), True, None])
def test_step35_has_a_window_for_each_layer(pattern: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"sliding_window_pattern (does not have one value for each of the 2|is missing)"
    ):
        spec_of("step35", {"attention.sliding_window_pattern": pattern})


def test_a_longer_pattern_of_windows_does_no_harm() -> None:
    spec = spec_of("step35", {"attention.sliding_window_pattern": (False, True, True)})
    assert [mixer(spec, n).window for n in (0, 1)] == [None, 5]
    # Layers without a window turn half of what the key says.
    assert [rope and rope.dims for rope in (mixer(spec, n).rope for n in (0, 1))] == [4, 4]
    assert mixer(spec_of("step35", {"rope.dimension_count": 4}), 1).rope == replace(forms.PARTIAL, dims=2)


def test_step35_has_another_base_in_windows() -> None:
    for stated, base in ((None, 1e4), (77.0, 77.0)):
        spec = spec_of("step35", {"rope.freq_base_swa": stated, "rope.freq_base": 5.0, "rope.scaling.factor": 2.0})
        assert mixer(spec).rope == Rope(base, 4)
        assert mixer(spec, 1).rope == Rope(5.0, 4, scaling=LinearScaling(2.0))


def test_step35_has_no_gate_per_head() -> None:
    with pytest.raises(UnsupportedError, match="one gate per head"):
        spec_of("step35", {}, 0, {"blk.0.attn_gate.weight": Filled((4, HIDDEN))})


@pytest.mark.parametrize(("value", "fine"), [(0.0, True), (1.0, True), (2.0, False), (0.5, False)])
@pytest.mark.parametrize("scale", ["embedding_scale", "residual_scale", "attention.scale", "logit_scale"])
def test_granite_swa_has_no_scales(scale: str, value: float, fine: bool) -> None:
    if fine:
        assert spec_of("granite_swa", {scale: value}) == FORMS["granite_swa"][0].spec
        return
    with pytest.raises(UnsupportedError, match=f"{scale} is {value:g}; expected 1"):
        spec_of("granite_swa", {scale: value})


# Keys that a file may lack


@pytest.mark.parametrize(
    ("name", "key", "field", "value"),
    [
        ("gemma2", "final_logit_softcapping", "logit_softcap", 30.0),
        ("gemma3", "final_logit_softcapping", "logit_softcap", None),
        ("command-r", "logit_scale", "logit_scale", 1.0),
        ("granite", "logit_scale", "logit_scale", 1.0),
        ("granite", "embedding_scale", "embedding_scale", 1.0),
        ("granitehybrid", "embedding_scale", "embedding_scale", 1.0),
    ],
)
def test_keys_outside_the_layers(name: str, key: str, field: str, value: Any) -> None:
    assert getattr(spec_of(name, {key: None}), field) == value
    if value == 1.0:
        assert getattr(spec_of(name, {key: 0.0}), field) == value


def test_keys_of_mixers() -> None:
    assert mixer(spec_of("gemma2", {"attn_logit_softcapping": None})).softcap == 50.0
    assert mixer(spec_of("granite", {"attention.scale": None})).scale is None
    assert mixer(spec_of("granite", {"attention.scale": 0.0})).scale is None
    assert mixer(spec_of("granite", {"rope.scaling.finetuned": None}, 1)).rope is not None
    assert mixer(spec_of("granite", {"rope.scaling.finetuned": True}, 1)).rope is not None
    assert spec_of("granite", {"residual_scale": None}).layers[0].residual_scale == 1.0
    assert mixer(spec_of("olmo", {"attention.clamp_kqv": None})).clip is None
    assert mixer(spec_of("olmo", {"attention.clamp_kqv": 0.0})).clip is None
    assert mixer(spec_of("gemma3", {"rope.freq_base_swa": None})).rope == Rope(1e4, 8)
    assert mixer(spec_of("gemma3", {"attention.sliding_window": 0})).window is None
    assert spec_of("cohere2", {"logit_scale": 0.0}).logit_scale == 1.0


@pytest.mark.parametrize("name", ["ernie4_5-moe", "glm4moe", "lfm2moe"])
def test_without_a_count_no_layer_is_dense(name: str) -> None:
    file = made(name)
    dense = [n for n, one in enumerate(FORMS[name][0].spec.layers) if not isinstance(one.feed_forward, MoE)]
    last = len(FORMS[name][0].spec.layers) - 1
    experts = {
        key.removeprefix(f"blk.{last}."): tensor
        for key, tensor in file.tensors.items()
        if key.startswith(f"blk.{last}.ffn")
    }
    more = {
        f"blk.{n}.{key}": tensor for n in dense for key, tensor in experts.items() if not key.startswith("ffn_norm")
    }
    none = {key: None for n in dense for key in file.tensors if key.startswith(f"blk.{n}.ffn_") and "norm" not in key}
    bias = {f"blk.{n}.exp_probs_b.bias": file.tensors[f"blk.{last}.exp_probs_b.bias"] for n in dense}
    spec = read(changed(file, {"leading_dense_block_count": None}, {**none, **more, **bias})).spec
    assert all(isinstance(one.feed_forward, MoE) for one in spec.layers)


# Numbers of layers with another attention scale, or other norms


@pytest.mark.parametrize(("name", "large"), [("gemma2", 46), ("gemma3", 62)])
def test_one_depth_has_another_attention_scale(name: str, large: int) -> None:
    base = FORMS[name][0].spec
    first = base.layers[1]
    for count in (large - 1, large, large + 1):
        spec = replace(base, layers=(first,) * count)
        size = HIDDEN // 4 if count == large else 8
        assert gemma2.graph_scale(spec, mixer(base), large) == size**-0.5
        deep = forms.gemma([first] * count, logit_softcap=16.0)
        lifted = target_named(name).lift(forms.stored(target_named(name).lower(deep)))
        assert mixer(lifted.spec).scale == size**-0.5
        same = lifted.layers[0].tensors["attn.q"].array() / deep.layers[0].tensors["attn.q"].array()
        if name == "gemma2":
            np.testing.assert_allclose(same, size**0.5 * 8**-0.5, rtol=1e-6)


@pytest.mark.parametrize(("count", "fine"), [(63, True), (64, False), (65, False)])
def test_command_r_has_norms_of_heads_from_64_layers_on(count: int, fine: bool) -> None:
    spec = FORMS["command-r"][0].spec
    lacks = target_named("command-r").lacks(replace(spec, layers=spec.layers * count))
    assert lacks == ([] if fine else ["a model of 64 layers or more"])


@pytest.mark.parametrize("turned", range(8))
def test_smollm3_turns_all_but_every_fourth_layer(turned: int) -> None:
    spec = FORMS["smollm3"][0].spec
    rope = mixer(spec).rope
    layers = [replace(spec.layers[0], mixer=replace(mixer(spec), rope=None if n % 4 == 3 else rope)) for n in range(8)]
    assert target_named("smollm3").lacks(replace(spec, layers=tuple(layers))) == []
    other = replace(layers[turned], mixer=replace(mixer(spec), rope=rope if turned % 4 == 3 else None))
    layers[turned] = other
    (lack,) = target_named("smollm3").lacks(replace(spec, layers=tuple(layers)))
    assert "it has rope in all but every fourth" in lack


@pytest.mark.parametrize(
    ("dims", "sections"),
    [(2, [1, 0, 0, 0]), (4, [1, 1, 0, 0]), (6, [1, 1, 1, 0]), (8, [2, 1, 1, 0]), (64, [11, 11, 10, 0])],
)
def test_sections_cover_every_pair(dims: int, sections: list[int]) -> None:
    assert rope_sections(dims) == sections
    assert sum(sections) == dims // 2


# State spaces


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ssm.time_step_rank": 0}, "48 channels .* do not divide into 0 heads in 2 groups"),
        ({"ssm.group_count": 0}, "do not divide into 6 heads in 0 groups"),
        ({"ssm.inner_size": 0}, "0 channels"),
        ({"ssm.time_step_rank": 5}, "do not divide into 5 heads"),
        ({"ssm.group_count": 4}, "do not divide into 6 heads in 4 groups"),
        ({"ssm.inner_size": 54}, "does not have the size that the ssm"),
        ({"ssm.state_size": 4}, r"blk\.0\.ssm_in\.weight does not have the size"),
        ({"ssm.time_step_rank": 12}, "does not have the size"),
    ],
)
def test_sizes_of_state_spaces_that_contradict_each_other(keys: dict[str, int], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        spec_of("mamba2", keys)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_groups_that_divide_the_heads(groups: int) -> None:
    file = made("mamba2")
    widths = 2 * 48 + 2 * groups * 5 + 6
    tensors = {f"blk.{n}.ssm_in.weight": rows(file.tensors[f"blk.{n}.ssm_in.weight"], widths) for n in (0, 1)}
    tensors |= {
        f"blk.{n}.ssm_conv1d.weight": rows(file.tensors[f"blk.{n}.ssm_conv1d.weight"], 48 + 10 * groups) for n in (0, 1)
    }
    tensors |= {f"blk.{n}.ssm_conv1d.bias": Filled((48 + 10 * groups,)) for n in (0, 1)}
    space = read(changed(file, {"ssm.group_count": groups}, tensors)).spec.layers[0].mixer
    assert isinstance(space, Mamba2)
    assert (space.groups, space.head_dim) == (groups, 8)


@pytest.mark.parametrize("name", ["ssm_a", "ssm_d", "ssm_norm.weight", "ssm_in.weight"])
def test_tensors_of_state_spaces_of_another_size(name: str) -> None:
    file = made("mamba2")
    wrong = rows(file.tensors[f"blk.1.{name}"], 7)
    with pytest.raises(CheckpointError, match=f"tensor blk.1.{name} does not have the size"):
        read(changed(file, tensors={f"blk.1.{name}": wrong}))


@pytest.mark.parametrize(
    ("name", "form", "tensor"), [("qwen35", 0, "attn_q.weight"), ("qwen3next", 0, "ssm_ba.weight")]
)
@pytest.mark.parametrize("surplus", [-2, 2])
def test_joined_rows_are_counted(name: str, form: int, tensor: str, surplus: int) -> None:
    file = made(name, form)
    full = next(key for key in file.tensors if key.endswith(tensor))
    count = file.tensors[full].shape[0]
    with pytest.raises(CheckpointError, match=f"has shape .*; expected {count} rows"):
        read(changed(file, tensors={full: rows(file.tensors[full], count + surplus)}))


# Others


@pytest.mark.parametrize("value", [(1.0,), (), True, "1", None, (1.0, True)])
def test_apertus_has_numbers_for_each_layer(value: Any) -> None:
    file = made("apertus")
    fields = {key: field for key, field in file.header.metadata.items() if key != "xielu.beta"}
    if value is not None:
        fields["xielu.beta"] = replace(file.header.metadata["xielu.beta"], value=value)
    wrong = replace(file, header=replace(file.header, metadata=fields))
    with pytest.raises(CheckpointError, match=r"xielu\.beta has no number for layer [01]"):
        read(wrong)


@pytest.mark.parametrize("value", [2, 0.5])
def test_apertus_may_have_one_number_for_all_layers(value: float) -> None:
    file = made("apertus")
    one = replace(file.header.metadata["xielu.beta"], value=value)
    same = replace(file, header=replace(file.header, metadata={**file.header.metadata, "xielu.beta": one}))
    assert [layer.tensors["ffn.beta"].array().tolist() for layer in read(same).layers] == [[value]] * 2


@pytest.mark.parametrize("name", ["rope_factors_short.weight", "rope_factors_long.weight"])
@pytest.mark.parametrize("count", [1, 3])
def test_phi3_has_a_factor_for_each_pair(name: str, count: int) -> None:
    with pytest.raises(CheckpointError, match=f"{name} has shape .*one factor for each pair"):
        spec_of("phi3", {}, 0, {name: Filled((count,), 1.0)})


def test_phi3_without_keys_of_its_factors() -> None:
    none = {"rope.scaling.original_context_length": None, "rope.scaling.attn_factor": None}
    scaling = forms.LONG
    rope = mixer(spec_of("phi3", none)).rope
    assert rope
    assert rope.scaling == replace(scaling, original_context=CONTEXT, attention_factor=1.0)


def test_llama_has_yarn_or_factors() -> None:
    factors: dict[str, Tensor] = {"rope_freqs.weight": InMemory(np.asarray([1.0, 2.0, 0.5, 8.0], np.float32))}
    rope = mixer(spec_of("llama", {}, 2, factors)).rope
    assert rope
    assert rope.scaling == FactorScaling((2.5, 5.0, 1.25, 20.0))
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    with pytest.raises(UnsupportedError, match=r"both YaRN and rope_freqs\.weight"):
        spec_of("llama", yarn, 2, factors)


def test_stablelm_has_no_norms_of_heads() -> None:
    with pytest.raises(UnsupportedError, match="q/k norms with weights per head"):
        spec_of("stablelm", {}, 0, {"blk.0.attn_q_norm.weight": Filled((3, 8))})


@pytest.mark.parametrize("values", [[0.0] * HIDDEN, [0.0] * 23 + [1e-30]])
def test_qwen2moe_needs_a_gate_that_is_not_zero(values: list[float]) -> None:
    """The graph computes sigmoid(z) as SiLU(z) / z."""
    model = FORMS["qwen2moe"][0]
    gate = InMemory(np.asarray(values, np.float32), ("gate",))
    first, *others = model.layers
    zero = model.with_layers([*others, replace(first, tensors={**first.tensors, "shared.sigmoid": gate})])
    if any(values):
        assert target_named("qwen2moe").lower(zero).architecture == "qwen2moe"
        return
    with pytest.raises(UnsupportedError, match="tensor gate is all zeros"):
        target_named("qwen2moe").lower(zero)


def test_granite_swa_writes_sinks_without_effect_and_reads_none() -> None:
    model = FORMS["granite_swa"][1]
    file = made("granite_swa", 1)
    sinks = file.tensors["blk.0.attn_sinks.weight"].array()
    assert set(sinks) == {np.float32(-1e30)}
    assert read(file).spec == model.spec
    one = changed(file, tensors={"blk.0.attn_sinks.weight": InMemory(np.asarray([*sinks[:3], -1e29], np.float32))})
    assert mixer(read(one).spec).sinks


@pytest.mark.parametrize("n", [-1, 0, 1])
def test_gpt2_has_a_position_for_each_token_of_the_context(n: int) -> None:
    spec = replace(FORMS["gpt2"][0].spec, positions=CONTEXT + n)
    lacks = target_named("gpt2").lacks(spec)
    assert lacks == ([f"a context of {CONTEXT} with {CONTEXT - 1} learned positions"] if n < 0 else [])
    assert target_named("gpt2").lacks(replace(spec, positions=0)) == ["a model without learned positions"]


@pytest.mark.parametrize(("eps", "fine"), [(0.0, True), (1e-6, True), (1.1e-6, False)])
def test_lfm2moe_has_a_little_added_to_the_sum(eps: float, fine: bool) -> None:
    spec = FORMS["lfm2moe"][0].spec
    layers = tuple(
        replace(one, feed_forward=replace(one.feed_forward, router=replace(one.feed_forward.router, sum_eps=eps)))
        if isinstance(one.feed_forward, MoE)
        else one
        for one in spec.layers
    )
    lacks = target_named("lfm2moe").lacks(replace(spec, layers=layers))
    assert lacks == ([] if fine else ["router weights divided by their sum plus 1.1e-06"])
    bound = target_named("lfm2moe").bound(replace(spec, layers=layers))
    assert bound == (1e-10 if eps else 0.0)


def test_norms_of_heads_have_the_files_epsilon() -> None:
    for name in ("qwen3", "gemma3", "hunyuan-dense", "olmo2", "olmoe", "apertus"):
        assert mixer(FORMS[name][0].spec).qk_norm == mixer(read(made(name)).spec).qk_norm == Norm(forms.EPS)
