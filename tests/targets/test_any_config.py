"""Any config of the three families, drawn at random: exact all the way through llama.cpp, or refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig

from gguf_tools.errors import UnsupportedError
from gguf_tools.families.registry import load_model
from tests.oracle import PROMPTS, convert, greedy_agrees, lifted_reference, llama, nmse, reference
from tests.tiny_models import dense, hybrid, in_float64, logits, moe, network, save

MAKERS = {"dense": dense, "moe": moe, "hybrid": hybrid}
SAME_ARITHMETIC = 1e-24
FLOAT32 = 1e-9
"""The product's own bar; most are at 1e-12, and a deep hybrid of odd weights reached 4e-11."""

widths = st.integers(8, 40)
few = st.integers(1, 3)


@st.composite
def ropes(draw: st.DrawFn, partial: float | None) -> dict[str, Any]:
    """Rope without scaling, linear, or YaRN."""
    yarn = {"rope_type": "yarn", "factor": draw(st.floats(1.1, 8.0))}
    scaling: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"rope_type": "default"},
                {"rope_type": "linear", "factor": draw(st.floats(1.0, 8.0))},
                {**yarn, "original_max_position_embeddings": draw(st.integers(16, 90))},
                {**yarn, "original_max_position_embeddings": 32, "attention_factor": draw(st.floats(0.5, 2.0))},
            ]
        )
    )
    return {
        **scaling,
        "rope_theta": draw(st.sampled_from((100.0, 1e4, 1e6))),
        **({} if partial is None else {"partial_rotary_factor": partial}),
    }


@st.composite
def configs(draw: st.DrawFn) -> PretrainedConfig:
    """Small sizes of every kind, most of them multiples of nothing."""
    kind = draw(st.sampled_from(list(MAKERS)))
    kv_heads, partial = draw(few), draw(st.sampled_from((0.25, 0.5, 1.0))) if kind == "hybrid" else None
    changes: dict[str, Any] = {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "head_dim": draw(st.sampled_from((8, 16, 24, 32) if partial else tuple(range(4, 26, 2)))),
        "hidden_size": draw(widths),
        "num_hidden_layers": draw(few),
        "intermediate_size": draw(widths),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": draw(ropes(partial)),
    }
    if kind != "dense":
        experts = draw(st.integers(1, 6))
        changes |= {
            "num_experts": experts,
            "num_experts_per_tok": draw(st.integers(1, experts)),
            "moe_intermediate_size": draw(widths),
        }
    if kind == "hybrid":
        key_heads, size = draw(few), draw(st.sampled_from((4, 8, 12, 16, 20, 32)))
        kinds = st.sampled_from(("linear_attention", "full_attention"))
        changes |= {
            "linear_num_key_heads": key_heads,
            "linear_num_value_heads": key_heads * draw(few),
            "linear_key_head_dim": size,
            "linear_value_head_dim": size,
            "linear_conv_kernel_dim": draw(st.integers(1, 5)),
            "shared_expert_intermediate_size": draw(widths),
            # transformers itself cannot run linear attention alone.
            "layer_types": [*draw(st.lists(kinds, max_size=3)), "full_attention"],
        }
    return MAKERS[kind](**changes)


@settings(max_examples=20, derandomize=True)
@given(configs(), st.integers(0, 1000))
def test_any_config_is_exact_or_refused(config: PretrainedConfig, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with in_float64():
            made = network(config, seed)
            theirs = [values.numpy() for values in logits(made, PROMPTS)]
        save(made, folder)
        model = load_model(folder)
        ours = reference(model)
        assert nmse(ours, theirs) <= SAME_ARITHMETIC
        try:
            out = convert(folder, folder / "out.gguf")
        except UnsupportedError:
            return
        computed, greedy = llama(out)
        assert nmse(computed, ours) <= FLOAT32
        assert nmse(lifted_reference(out), ours) <= FLOAT32
        assert greedy_agrees(model, greedy)
