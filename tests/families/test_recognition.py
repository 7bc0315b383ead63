"""Which family a checkpoint is, by its tensors alone, and what its config adds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.errors import UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.families.tiny.attention import (
    LAYERS,
    LLAMA,
    MIXTRAL,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    WINDOW,
    Variant,
)
from gguf_tools.model.rope import Llama3Scaling
from gguf_tools.model.spec import Attention, MoE

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a variant with changed keys of its config."""

    def write(variant: Variant, **config: Any) -> Path:
        field_tiny.write(tmp_path / "checkpoint", replace(variant, config={**variant.config, **config}), 1)
        return tmp_path / "checkpoint"

    return write


def windows(folder: Path) -> list[int | None]:
    """The sliding window of every layer."""
    mixers = [layer.mixer for layer in load_model(folder).spec.layers]
    return [mixer.window for mixer in mixers if isinstance(mixer, Attention)]


def test_model_type_chooses_among_equals_only(written: Written) -> None:
    assert load_model(written(LLAMA["plain"], model_type="mistral")).family == "mistral"
    assert load_model(written(QWEN2["plain"], model_type="llama")).family == "qwen2"
    assert load_model(written(MIXTRAL["plain"], model_type="qwen3_moe")).family == "mixtral"


def test_windows_of_llama_and_mistral(written: Written) -> None:
    assert windows(written(LLAMA["mistral"], sliding_window=WINDOW)) == [WINDOW] * LAYERS
    assert windows(written(LLAMA["mistral"], sliding_window=None)) == [None] * LAYERS
    folder = written(LLAMA["plain"], sliding_window=WINDOW)
    assert windows(folder) == [None] * LAYERS
    assert any("sliding_window" in note for note in load_model(folder).notes)


def test_mistral_window_by_default(written: Written) -> None:
    folder = written(LLAMA["mistral"])
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["sliding_window"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert windows(folder) == [4096] * LAYERS


def test_windows_of_qwen(written: Written) -> None:
    on = {"use_sliding_window": True, "sliding_window": WINDOW}
    assert windows(written(QWEN2["plain"])) == [None] * LAYERS
    assert windows(written(QWEN2["plain"], **on, max_window_layers=2)) == [None, None, WINDOW]
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(written(QWEN2["plain"], **on, layer_types=kinds)) == [WINDOW, None, WINDOW]
    assert windows(written(QWEN3["plain"], **on, max_window_layers=1)) == [None, WINDOW, WINDOW]
    assert windows(written(QWEN3_MOE["plain"], **on)) == [WINDOW] * LAYERS
    assert windows(written(QWEN2_MOE["plain"], **on, max_window_layers=2)) == [WINDOW, None, None]


def test_window_as_long_as_the_context_limits_nothing(written: Written) -> None:
    folder = written(LLAMA["mistral"], sliding_window=field_tiny.CONTEXT)
    assert open_source(Request(source=folder)).plan.target.name == "llama"


def test_llama3_scaling_is_stated(written: Written) -> None:
    mixer = load_model(written(LLAMA["llama3"])).spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    assert mixer.rope
    assert mixer.rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)


def test_dense_layers_among_experts_by_their_tensors(written: Written) -> None:
    folder = written(QWEN2_MOE["mixed"], mlp_only_layers=[], decoder_sparse_step=1)
    kinds = [isinstance(layer.feed_forward, MoE) for layer in load_model(folder).spec.layers]
    assert kinds == [True, False, True]


@pytest.mark.parametrize(
    ("variant", "missing"),
    [
        ("renormalised", "qwen2moe does not support router weights renormalised (norm_topk_prob true)"),
        ("mixed", "qwen2moe does not support layers without experts"),
    ],
)
def test_refused_by_name(written: Written, variant: str, missing: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        open_source(Request(source=written(QWEN2_MOE[variant])))
    assert "no llama.cpp architecture expresses this qwen2-moe model" in str(error.value)
    assert missing in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variant", "target", "missing"),
    [
        (LLAMA["mistral-window"], "llama", "a sliding window of 8 tokens in a context of 256"),
        (LLAMA["biases"], "qwen2", "a bias on the attention output, biases in the feed-forward"),
        (LLAMA["llama3"], "qwen2", "llama3 rope scaling"),
        (LLAMA["plain"], "granite_swa", "a model without sliding windows"),
        (LLAMA["plain"], "qwen3", "attention without q/k norm"),
        (QWEN3["plain"], "llama", "q/k norm"),
        (QWEN2["wide-heads"], "qwen2", "4 heads of 32 dimensions with a hidden size of 64"),
        (MIXTRAL["plain"], "qwen2", "experts"),
        (
            QWEN2_MOE["plain"],
            "llama",
            "a shared expert, router weights that are not renormalised (norm_topk_prob false)",
        ),
        (QWEN2_MOE["plain"], "qwen3moe", "a shared expert"),
    ],
)
def test_target_says_what_it_lacks(written: Written, variant: Variant, target: str, missing: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        open_source(Request(source=written(variant), target=target))
    assert f"{target} does not support {missing}" in str(error.value)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
        ({"attention_multiplier": 0.015625}, "attention_multiplier is 0.015625"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers"),
        ({"model_type": "helium"}, "model_type 'helium' is not supported"),
        ({"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta is 0.1"),
    ],
)
def test_other_arithmetic_is_refused(written: Written, config: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedError, match=key):
        load_model(written(LLAMA["plain"], **config))


def test_shared_gate_of_zeros_is_refused(written: Written) -> None:
    """llama.cpp divides SiLU(z) by z there, so all logits would be NaN."""
    folder = written(QWEN2_MOE["plain"])
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.shared_expert_gate.weight"
    save_file({**tensors, name: np.zeros_like(tensors[name])}, folder / "model.safetensors")
    with pytest.raises(UnsupportedError, match=f"{name} is all zeros"):
        open_source(Request(source=folder))


def test_norm_across_heads_is_refused(written: Written, tmp_path: Path) -> None:
    """OLMoE's names are Qwen3-MoE's; its q_norm spans all heads."""
    from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint

    variant = QWEN3_MOE["plain"]
    shapes = field_tiny.shapes(variant)
    shapes |= {name: (4 * 32,) for name in shapes if name.endswith("q_norm.weight")}
    write_checkpoint(tmp_path, {**field_tiny.BASE, **variant.config}, random_tensors(shapes, 1))
    with pytest.raises(UnsupportedError, match=r"q_norm\.weight has 128 entries, one norm across all 4 heads"):
        load_model(tmp_path)


def test_of_families_with_the_same_tensors_the_model_type_decides(written: Written) -> None:
    folder = written(LLAMA["plain"], model_type="granite", attention_multiplier=0.5)
    assert load_model(folder).family == "granite"
    assert load_model(written(LLAMA["plain"], model_type="smollm3", pad_token_id=0)).family == "smollm3"
    assert load_model(written(LLAMA["plain"])).family == "llama"
    with pytest.raises(UnsupportedError, match="attention_multiplier"):
        load_model(written(LLAMA["plain"], attention_multiplier=0.5))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("self_attn.k_proj", "self_attn.kv_a_proj_with_mqa", "multi-head latent attention"),
        ("self_attn.k_proj", "attention.time_decay", "RWKV's time mixing"),
        ("self_attn.k_proj", "value_embeds", "value embeddings"),
        ("self_attn.k_proj", "bigram_embed", "embeddings of hashed pairs"),
        ("self_attn.k_proj", "mudd", "weights that mix"),
    ],
)
def test_what_no_family_has_is_refused_by_its_name(written: Written, old: str, new: str, what: str) -> None:
    folder = written(LLAMA["plain"], model_type="another")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace(old, new): values for name, values in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match=f"{new}.* is part of {what}"):
        load_model(folder)
