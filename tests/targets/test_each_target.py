"""Each target by itself: `lift` undoes `lower`, what is expressed survives the file, and names and keys are gguf-py's.

No file is written and llama.cpp does not run: what it computes with such files is tested for families and architectures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_tools.formats.gguf.header import Field, ValueType
from gguf_tools.model.rope import LinearScaling, LongRopeScaling, YarnScaling
from gguf_tools.model.spec import Attention, DeltaNet, GatedMLP, Layer, Mamba2, Model, ModelSpec, MoE, Router, ShortConv
from gguf_tools.rewrites.router import FOLDED_ROUTER_SCALE
from gguf_tools.targets.planner import plan
from gguf_tools.targets.registry import all_targets, target_named
from tests.oracle import nmse, reference
from tests.random_model import CONTEXT, HIDDEN, VOCAB, named, random_model
from tests.targets.changes import CHANGES
from tests.targets.expressed import EXPRESSED
from tests.targets.forms import CASES, EPS, FORMS, stored

PROMPTS = ((3, 17, 30, 5, 5, 9, 21, 11, 2),)
ROUNDED = 1e-12
"""Norm weights with offset and decay rates are rounded to float32 in the file."""
OUTSIDE = [f.name for f in fields(ModelSpec) if f.name not in ("vocab_size", "hidden", "context_length", "layers")]


def file_of(model: Model, name: str) -> Model:
    """The model that is read from the model's file of this architecture."""
    target = target_named(name)
    return target.lift(stored(target.lower(model)))


def is_same(one: Model, other: Model) -> bool:
    """Whether two models have the same spec and the same numbers."""
    first, second = named(one), named(other)
    return (
        one.spec == other.spec
        and first.keys() == second.keys()
        and all(np.array_equal(tensor.array(), second[role].array()) for role, tensor in first.items())
    )


def test_every_target_has_models_and_a_table() -> None:
    names = {target.name for target in all_targets()}
    assert FORMS.keys() == EXPRESSED.keys() == names
    assert {change for expressed in EXPRESSED.values() for change in expressed} <= CHANGES.keys()


@pytest.mark.parametrize(("name", "n"), CASES)
def test_lift_undoes_lower(name: str, n: int) -> None:
    model = FORMS[name][n]
    assert target_named(name).lacks(model.spec) == []
    lifted = file_of(model, name)
    assert lifted.spec == model.spec
    assert is_same(lifted, model)
    assert lifted.family == f"GGUF {name}"


@pytest.mark.parametrize("name", EXPRESSED)
def test_what_is_expressed_is_in_the_file(name: str) -> None:
    """Each change is refused, or the file computes the same."""
    target, base = target_named(name), FORMS[name][0].spec
    changed = {what: change(base) for what, change in CHANGES.items()}
    expressed = {what: spec for what, spec in changed.items() if spec != base and not target.lacks(spec)}
    assert expressed.keys() == EXPRESSED[name]
    for what, spec in expressed.items():
        model = random_model(spec.layers, seed=1, **{field: getattr(spec, field) for field in OUTSIDE})
        lifted = file_of(model, name)
        if not is_same(lifted, model):
            assert nmse(reference(lifted, PROMPTS), reference(model, PROMPTS)) <= max(ROUNDED, target.bound(spec)), what


# Names and keys

ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
WITHOUT_TABLE = {"granite_swa"}
"""gguf-py has no list of tensors for this one."""
BEYOND = {
    "granite": {"ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "rope_freqs"},
    "lfm2moe": {"output"},
}
"""Tensors that llama.cpp's loader takes (`src/models/granite.cpp`, `src/models/lfm2moe.cpp`), which gguf-py does not list."""
KEYS_BEYOND = {"{arch}.attention.recurrent_layers"}
"""`LLM_KV_ATTENTION_RECURRENT_LAYERS` of `src/llama-arch.cpp`, which gguf-py does not have."""


def keys_of_gguf_py() -> set[str]:
    """Every metadata key that gguf-py knows, with `{arch}` for the architecture's name."""
    groups = [group for group in vars(gguf.Keys).values() if isinstance(group, type)]
    return {key for group in groups for key in vars(group).values() if isinstance(key, str)}


@pytest.mark.parametrize(("name", "n"), CASES)
def test_names_and_keys_are_those_of_gguf_py(name: str, n: int) -> None:
    lowered = target_named(name).lower(FORMS[name][n])
    assert lowered.architecture == name
    keys = {re.sub(f"^{name}\\.", "{arch}.", key) for key in lowered.metadata}
    assert keys <= keys_of_gguf_py() | KEYS_BEYOND
    names = [tensor.name for tensor in lowered.tensors]
    assert len(names) == len(set(names))
    if name in WITHOUT_TABLE:
        return
    listed = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[ARCHITECTURES[name]]}
    plain = {re.sub(r"\.(weight|bias)$", "", re.sub(r"^blk\.\d+\.", "blk.{bid}.", one)) for one in names}
    assert {one.removeprefix("blk.{bid}.") for one in plain - listed} <= BEYOND.get(name, set())


def test_what_is_beyond_gguf_py_is_used() -> None:
    """The exceptions above are taken back when gguf-py has them."""
    assert WITHOUT_TABLE.isdisjoint(ARCHITECTURES)
    assert KEYS_BEYOND.isdisjoint(keys_of_gguf_py())
    for name, beyond in BEYOND.items():
        listed = {
            gguf.TENSOR_NAMES[tensor].removeprefix("blk.{bid}.") for tensor in gguf.MODEL_TENSORS[ARCHITECTURES[name]]
        }
        assert beyond.isdisjoint(listed)


# Values


def mixers(spec: ModelSpec, kind: type) -> list[Any]:
    """The mixers of this class, and the state spaces beside mixers."""
    found = [layer.mixer for layer in spec.layers] + [layer.beside for layer in spec.layers]
    return [mixer for mixer in found if isinstance(mixer, kind)]


def feed_forwards(spec: ModelSpec, kind: type) -> list[Any]:
    return [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, kind)]


def values(name: str, model: Model) -> Iterator[tuple[str, Any]]:
    """What llama.cpp's loader must find in the file of a model, key by key."""
    spec = model.spec
    yield from {
        "context_length": spec.positions or CONTEXT,
        "embedding_length": HIDDEN,
        "block_count": len(spec.layers),
        "vocab_size": VOCAB,
        f"attention.layer_norm_{'' if spec.output_norm.centred else 'rms_'}epsilon": EPS,
    }.items()
    yield from attention_values(name, spec)
    yield from expert_values(name, spec)
    yield from other_values(name, model)


def attention_values(name: str, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    attentions = mixers(spec, Attention)
    if not attentions:
        return
    first = attentions[0]
    listed = name in ("lfm2", "lfm2moe", "granitehybrid")
    kv = tuple(layer.mixer.kv_heads if isinstance(layer.mixer, Attention) else 0 for layer in spec.layers)
    yield "attention.head_count", first.heads
    yield "attention.head_count_kv", kv if listed else first.kv_heads
    yield "attention.key_length", first.head_dim
    yield "attention.value_length", first.value_size
    windows = {mixer.window for mixer in attentions} - {None}
    needed = name in ("cohere2", "gemma2", "gpt-oss", "granite_swa", "step35")
    if windows or needed:
        (window,) = windows or {1 << 23}
        turned = (mixer.rope is not None for mixer in attentions)
        local = (mixer.window is not None or not windows for mixer in attentions)
        yield "attention.sliding_window", window
        yield "attention.sliding_window_pattern", tuple(turned if name == "cohere2" else local)
    wide = [mixer.rope for mixer in attentions if mixer.rope and not mixer.window]
    ropes = wide or [mixer.rope for mixer in attentions if mixer.rope]
    if not ropes:
        return
    rope = ropes[0]
    yield "rope.dimension_count", 2 * rope.dims if name == "step35" else rope.dims
    yield "rope.freq_base", rope.theta
    match rope.scaling:
        case LinearScaling(factor):
            yield from {"rope.scaling.type": "linear", "rope.scaling.factor": factor}.items()
        case YarnScaling() as yarn:
            yield from {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": yarn.factor,
                "rope.scaling.original_context_length": yarn.original_context,
            }.items()
        case LongRopeScaling() as long:
            yield from {
                "rope.scaling.type": "longrope",
                "rope.scaling.original_context_length": long.original_context,
                "rope.scaling.attn_factor": long.attention_factor,
            }.items()


def expert_values(name: str, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    experts, dense = feed_forwards(spec, MoE), feed_forwards(spec, GatedMLP)
    first = spec.layers[0].feed_forward
    if name == "qwen3next":
        widths = tuple(moe.shared.width for moe in experts)
        if len(set(widths)) > 1:
            yield "feed_forward_length", widths
    elif name not in ("qwen35moe", "qwen3moe", "qwen2moe"):
        scored = name in ("ernie4_5-moe", "glm4moe", "lfm2moe", "step35")
        yield "feed_forward_length", dense[0].width if scored and dense else first.width if first else 0
    if name == "step35" and not experts:
        yield "expert_feed_forward_length", 0
    if not experts:
        return
    moe = experts[0]
    yield "expert_count", moe.experts
    yield "expert_used_count", moe.router.top_k
    yield "expert_feed_forward_length", moe.width
    if moe.shared and len({one.shared for one in experts}) == 1:
        yield "expert_shared_feed_forward_length", moe.shared.width
    if moe.router.scale != 1.0:
        yield "expert_weights_scale", moe.router.scale
    if name in ("ernie4_5-moe", "glm4moe", "lfm2moe"):
        yield "leading_dense_block_count", len(dense)
    if name in ("ernie4_5-moe", "glm4moe", "lfm2moe", "step35"):
        # llama_expert_gating_func_type: softmax, sigmoid, softmax of those that are selected.
        late = (
            moe.router.score == "softmax" and moe.router.normalised and not moe.router.score_bias and name == "step35"
        )
        yield "expert_gating_func", 3 if late else {"softmax": 1, "sigmoid": 2}[moe.router.score]
        yield "expert_weights_norm", moe.router.normalised and not late


def other_values(name: str, model: Model) -> Iterator[tuple[str, Any]]:
    spec = model.spec
    for space in mixers(spec, Mamba2)[:1]:
        yield from {
            "ssm.conv_kernel": space.kernel,
            "ssm.inner_size": space.heads * space.head_dim,
            "ssm.state_size": space.state,
            "ssm.time_step_rank": space.heads,
            "ssm.group_count": space.groups,
        }.items()
    for delta in mixers(spec, DeltaNet)[:1]:
        yield from {
            "ssm.conv_kernel": delta.kernel,
            "ssm.state_size": delta.key_dim,
            "ssm.group_count": delta.key_heads,
            "ssm.time_step_rank": delta.value_heads,
            "ssm.inner_size": delta.value_heads * delta.value_dim,
            "attention.recurrent_layers": tuple(isinstance(layer.mixer, DeltaNet) for layer in spec.layers),
        }.items()
    for convolution in mixers(spec, ShortConv)[:1]:
        yield "shortconv.l_cache", convolution.kernel
    yield from (OWN[name](model) if name in OWN else {}).items()


def granite(model: Model) -> dict[str, Any]:
    """The scales, which granite divides logits by; `rope.scaling.finetuned` false turns rope off."""
    spec = model.spec
    first = next(iter(mixers(spec, Attention)))
    return {
        "embedding_scale": spec.embedding_scale,
        "attention.scale": first.scale,
        "residual_scale": spec.layers[0].residual_scale,
        "logit_scale": 1 / spec.logit_scale,
        **({} if first.rope else {"rope.scaling.finetuned": False}),
    }


def local_base(model: Model) -> dict[str, Any]:
    """The base of rope in layers with a window."""
    bases = [mixer.rope.theta for mixer in mixers(model.spec, Attention) if mixer.window]
    return {"rope.freq_base_swa": bases[0]} if bases else {}


def clip(model: Model) -> dict[str, Any]:
    limit = mixers(model.spec, Attention)[0].clip
    return {} if limit is None else {"attention.clamp_kqv": limit}


def xielu(model: Model) -> dict[str, Any]:
    parts = ("alpha_n", "alpha_p", "beta", "eps")
    return {
        f"xielu.{part}": tuple(float(layer.tensors[f"ffn.{part}"].array()[0]) for layer in model.layers)
        for part in parts
    }


def step35(model: Model) -> dict[str, Any]:
    first = mixers(model.spec, Attention)[0]
    return {
        "rope.dimension_count_swa": first.rope.dims,
        "rope.freq_base_swa": first.rope.theta,
        "attention.key_length_swa": first.head_dim,
        "attention.value_length_swa": first.value_size,
    }


OWN: dict[str, Callable[[Model], dict[str, Any]]] = {
    "apertus": xielu,
    "command-r": lambda model: {"logit_scale": model.spec.logit_scale},
    "cohere2": lambda model: {"logit_scale": model.spec.logit_scale},
    "ernie4_5-moe": lambda model: {"interleave_moe_layer_step": 1},
    "gemma2": lambda model: {
        "attn_logit_softcapping": mixers(model.spec, Attention)[0].softcap,
        "final_logit_softcapping": model.spec.logit_softcap,
        "rope.freq_base_swa": 1e4,
    },
    "gemma3": lambda model: {
        **local_base(model),
        **({"final_logit_softcapping": model.spec.logit_softcap} if model.spec.logit_softcap else {}),
    },
    "glm4moe": lambda model: {"expert_shared_count": feed_forwards(model.spec, MoE)[0].shared.width // 12},
    "gptneox": lambda model: {"use_parallel_residual": model.spec.layers[0].parallel},
    "granite": granite,
    "granitehybrid": granite,
    "granitemoe": granite,
    "granite_swa": lambda model: {"logit_scale": 1.0},
    "mamba2": lambda model: {"attention.head_count": 0},
    "olmo": clip,
    "qwen35": lambda model: {"rope.dimension_sections": (1, 1, 0, 0)},
    "qwen35moe": lambda model: {"rope.dimension_sections": (1, 1, 0, 0)},
    "step35": step35,
}
"""Keys of single architectures."""


@pytest.mark.parametrize(("name", "n"), CASES)
def test_values_are_the_models(name: str, n: int) -> None:
    model = FORMS[name][n]
    found = stored(target_named(name).lower(model)).header.metadata
    wanted = {key if key.startswith("xielu.") else f"{name}.{key}": value for key, value in values(name, model)}
    assert {key: field.value for key, field in found.items() if key != "general.architecture"} == wanted
    assert all(fits(field) for field in found.values())


def fits(field: Field) -> bool:
    """Whether a value has the type that llama.cpp's loader asks for: u32 for counts (or i32 in lists), f32, or a flag."""
    kind = field.element or field.type
    value = field.value[0] if isinstance(field.value, tuple) else field.value
    types = {bool: {ValueType.BOOL}, float: {ValueType.FLOAT32}, str: {ValueType.STRING}}
    counts = {ValueType.UINT32, ValueType.INT32} if field.element else {ValueType.UINT32}
    return kind in types.get(type(value), counts)


def test_who_reads_a_scale_of_the_experts_weights() -> None:
    """`LLM_KV_EXPERT_WEIGHTS_SCALE` in llama.cpp's src/models: the other graphs would leave the scale out in silence."""
    assert {target.name for target in all_targets() if "Router.scale" in target.expresses} == {"glm4moe", "step35"}


def test_a_scale_that_no_key_holds_is_folded_into_the_experts() -> None:
    """The architecture with the bias of the scores, which a softmax has here."""
    model = FORMS["ernie4_5-moe"][0]
    router = Router(top_k=2, score_bias=True, scale=2.5)
    last = model.layers[-1]
    assert isinstance(last.spec.feed_forward, MoE)
    spec = replace(last.spec, feed_forward=replace(last.spec.feed_forward, router=router))
    scaled = model.with_layers([*model.layers[:-1], Layer(spec, last.tensors)])
    found = plan(scaled, "ernie4_5-moe")
    assert FOLDED_ROUTER_SCALE in found.rewrites
    lowered = found.lower()
    assert "ernie4_5-moe.expert_weights_scale" not in lowered.metadata
    written = next(tensor.tensor for tensor in lowered.tensors if tensor.name == "blk.2.ffn_down_exps.weight")
    assert np.allclose(written.array(), 2.5 * last.tensors["moe.down"].array(), rtol=1e-6)
