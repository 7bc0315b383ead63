"""Configs that people have: what is read of them and what is said, each as transformers reads it.

tests/families/test_config_reading.py holds the numbers against transformers' own loading.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.registry import build_model
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.attention import LLAMA, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, YARN, Variant
from gguf_tools.families.tiny.hybrid import QWEN35_VARIANTS, write
from gguf_tools.model.rope import Rope, YarnScaling
from gguf_tools.model.spec import Attention, Model, MoE
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint

ABSENT: Any = ...


def opened(folder: Path, variant: Variant, **changes: Any) -> Checkpoint:
    """A variant's checkpoint with keys of its config changed."""
    tiny_attention.write(folder, variant, 1)
    return changed(open_checkpoint(folder), **changes)


def changed(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """The checkpoint with keys of its config changed."""
    config = {**checkpoint.config, **changes}
    return replace(checkpoint, config={key: value for key, value in config.items() if value is not ABSENT})


def attention(model: Model) -> Attention:
    """The first layer's attention."""
    mixer = model.spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    return mixer


def rope(model: Model) -> Rope:
    """The first layer's rope."""
    found = attention(model).rope
    assert found
    return found


def test_a_mixtral_without_rope_theta_has_the_base_of_its_class(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, MIXTRAL["plain"], rope_theta=ABSENT))
    assert rope(model).theta == 1e6
    assert model.notes == (
        "config.json does not give rope_theta: 1000000.0 is assumed, as transformers does for mixtral",
    )


def test_a_rope_theta_of_null_is_not_absent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rope_theta is missing"):
        build_model(opened(tmp_path, MIXTRAL["plain"], rope_theta=None))


def test_rope_scaling_beside_rope_parameters_wins_whole(tmp_path: Path) -> None:
    """Also over the base that rope_parameters gives."""
    new = {"rope_type": "default", "rope_theta": 1e6}
    model = build_model(opened(tmp_path, QWEN3["plain"], rope_theta=ABSENT, rope_parameters=new, rope_scaling=YARN))
    assert rope(model).theta == 1e4
    assert isinstance(rope(model).scaling, YarnScaling)
    assert any("has both rope_scaling and rope_parameters" in note for note in model.notes)
    same = build_model(opened(tmp_path, QWEN3["plain"], rope_theta=ABSENT, rope_parameters=new, rope_scaling={}))
    assert (rope(same).theta, rope(same).scaling, same.notes) == (1e6, None, ())


def test_the_original_context_beside_rope_scaling_has_priority(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, QWEN3["plain"], rope_scaling=YARN, original_max_position_embeddings=32))
    assert isinstance(scaling := rope(model).scaling, YarnScaling)
    assert scaling.original_context == 32
    assert any("original_max_position_embeddings twice" in note for note in model.notes)


def test_a_null_factor_of_yarn_is_the_ratio_of_the_contexts(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, QWEN3["plain"], rope_scaling={**YARN, "factor": None}))
    assert isinstance(scaling := rope(model).scaling, YarnScaling)
    assert scaling.factor == tiny_attention.CONTEXT / 64


def test_a_context_that_the_user_gives_changes_no_rope(tmp_path: Path) -> None:
    """Neither YaRN's factor nor its original context, where they follow from the context length of the file."""
    for scaling in ({**YARN, "factor": None}, {"rope_type": "yarn", "factor": 4.0}):
        checkpoint = opened(tmp_path, QWEN3["plain"], rope_scaling=scaling)
        longer = build_model(checkpoint.with_context_length(4096))
        assert rope(longer) == rope(build_model(checkpoint))
        assert longer.spec.context_length == 4096


@pytest.mark.parametrize(
    "variant", [LLAMA["plain"], LLAMA["mistral"], MIXTRAL["plain"], QWEN2["plain"], QWEN2_MOE["plain"]]
)
def test_partial_rotary_factor_is_ignored_where_the_class_ignores_it(tmp_path: Path, variant: Variant) -> None:
    model = build_model(opened(tmp_path, variant, partial_rotary_factor=0.5))
    assert rope(model).dims == attention(model).head_dim
    assert model.notes == (
        "config.json says partial_rotary_factor 0.5, but this model rotates all dimensions of a head: it is ignored",
    )
    with pytest.raises(
        UnsupportedError, match=r"partial_rotary_factor is 0\.5, but this model rotates all dimensions of a head"
    ):
        build_model(opened(tmp_path, variant, partial_rotary_factor=0.5, rope_scaling=YARN))


def test_mrope_for_text_is_plain_rope(tmp_path: Path) -> None:
    mrope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    for kind in ("qwen2_vl", "qwen2_5_vl"):
        model = build_model(opened(tmp_path, QWEN2["plain"], model_type=kind, rope_scaling=mrope))
        assert rope(model) == rope(build_model(opened(tmp_path, QWEN2["plain"])))


def test_a_missing_head_dim_follows_from_the_tensors(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, LLAMA["wide-heads"], head_dim=ABSENT))
    assert (attention(model).heads, attention(model).head_dim) == (4, 32)
    assert any("32 follows from the tensors and num_attention_heads 4" in note for note in model.notes)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": ABSENT, "num_attention_heads": 3},
        {"head_dim": ABSENT, "num_key_value_heads": 4},
        {"head_dim": 16},
        {"num_attention_heads": 8},
    ],
)
def test_heads_that_nothing_tells_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="do not fit the tensors, which have 128 query rows"):
        build_model(opened(tmp_path, LLAMA["wide-heads"], **changes))


def test_routers_that_always_renormalise(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, MIXTRAL["fused"], norm_topk_prob=False))
    assert any("norm_topk_prob False, which transformers ignores for mixtral" in note for note in model.notes)
    write(tmp_path / "moe", QWEN35_VARIANTS["moe"], 1)
    hybrid = build_model(changed(open_checkpoint(tmp_path / "moe"), norm_topk_prob=False))
    assert any("norm_topk_prob False, which transformers ignores" in note for note in hybrid.notes)
    for made in (model, hybrid):
        feed_forward = made.spec.layers[0].feed_forward
        assert isinstance(feed_forward, MoE)
        assert feed_forward.router.normalised


def test_routers_of_a_class_that_does_not_renormalise_by_default(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, QWEN3_MOE["plain"], norm_topk_prob=ABSENT))
    feed_forward = model.spec.layers[0].feed_forward
    assert isinstance(feed_forward, MoE)
    assert not feed_forward.router.normalised
    assert any("does not give norm_topk_prob: False is assumed" in note for note in model.notes)


def test_windows_by_class(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]

    def windows(variant: Variant, **changes: Any) -> list[int | None]:
        layers = build_model(opened(tmp_path, variant, **changes)).spec.layers
        return [layer.mixer.window for layer in layers if isinstance(layer.mixer, Attention)]

    assert windows(LLAMA["mistral-window"], use_sliding_window=False) == [8, 8, 8]
    assert windows(LLAMA["mistral-window"], layer_types=kinds) == [8, None, 8]  # transformers takes it for a ministral
    assert windows(MIXTRAL["window"], layer_types=kinds) == [8, 8, 8]
    assert windows(QWEN3_MOE["window"], layer_types=kinds) == [8, 8, 8]
    assert windows(QWEN3["window"], sliding_window=ABSENT) == [None, 4096, 4096]
    cwm = windows(LLAMA["wide-heads"], model_type="cwm", rope_theta=1e6, rope_parameters={"rope_type": "default"})
    assert cwm == [None, 8192, 8192]
    with pytest.raises(
        CheckpointError, match=r"layer_types\[0\] is sliding_attention, but use_sliding_window is false"
    ):
        windows(QWEN2_MOE["plain"], layer_types=kinds)


def test_epsilon_and_context_by_class(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, LLAMA["plain"], rms_norm_eps=ABSENT, max_position_embeddings=ABSENT))
    assert (model.spec.output_norm.eps, model.spec.context_length) == (1e-6, 2048)
    assert len(model.notes) == 2


def test_nothing_is_assumed_of_a_config_without_a_class(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rms_norm_eps is missing"):
        build_model(opened(tmp_path, LLAMA["plain"], model_type=ABSENT, rms_norm_eps=ABSENT))
    model = build_model(
        opened(tmp_path, LLAMA["plain"], model_type=ABSENT, sliding_window=8, partial_rotary_factor=0.5)
    )
    assert (attention(model).window, rope(model).dims, model.notes) == (8, 8, ())


def test_a_known_class_with_the_tensors_of_another(tmp_path: Path) -> None:
    model = build_model(opened(tmp_path, QWEN2["plain"], model_type="llama"))
    assert model.family == "qwen2"
    assert model.notes == (
        "config.json says model_type 'llama'; the model is converted as the family that its tensors match",
    )
