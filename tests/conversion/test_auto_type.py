"""Type auto: the smallest that holds a checkpoint's weights exactly, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.conversion.auto_type import FLOAT_ROUNDING, smallest_exact
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.tensors.base import InMemory
from tests.oracle import convert
from tests.tiny_models import Tensors, change_tensors, checkpoint, dense

Copy = Callable[[Path], Path]


def stored(values: Any, dtype: str = "F32", name: str = "some.weight") -> InMemory:
    return InMemory(np.asarray(values, np.float32).reshape(1, -1), (name,), dtype)


def bf16(values: Any) -> Any:
    return torch.tensor(values).to(torch.bfloat16).float().numpy()


def decided(*tensors: InMemory) -> tuple[str, str]:
    found = smallest_exact(tensors, 1, lambda _: None)
    return found.recipe, found.reason


def test_halves_stay_halves() -> None:
    assert decided(stored([1.5, -65504.0, 2.0**-24], "F16")) == ("f16", "f16 holds the F16 weights")


def test_bf16_weights_of_usual_size_become_f16() -> None:
    assert decided(stored(bf16([0.1, -3.0, 1e-4]), "BF16")) == ("f16", "f16 holds the BF16 weights")


def test_small_weights_that_move_are_counted() -> None:
    kind, reason = decided(stored(bf16([0.5, 0.1, 1.23e-6, 4.56e-7]), "BF16"))
    assert kind == "f16"
    assert reason.startswith("f16 holds the BF16 weights; 2 ")
    assert "less than float rounding" in reason


def test_an_overflow_needs_bf16() -> None:
    kind, reason = decided(stored(bf16([1.0]), "BF16"), stored(bf16([1e5, 2.0]), "BF16", "big.weight"))
    assert kind == "bf16"
    assert reason == "f16 would give big.weight 1 weights beyond ±65504; bf16 holds the BF16 weights exactly"


def test_weights_that_are_all_small_need_bf16() -> None:
    kind, reason = decided(stored(bf16([1.23e-6, 4.56e-7]), "BF16"))
    assert kind == "bf16"
    assert "f16 would give some.weight a relative change of" in reason


def test_float32_weights_need_float32() -> None:
    kind, reason = decided(stored([0.1, 0.2, 1 / 3]))
    assert kind == "f32"
    assert reason.endswith("; f32 holds the F32 weights exactly")


def test_float32_weights_that_need_less_get_less() -> None:
    assert decided(stored([0.5, 0.25]))[0] == "f16"
    assert decided(stored([0.5, 2.0**100]))[0] == "bf16"


def test_doubles_are_not_said_to_be_exact() -> None:
    assert decided(stored([0.1, 1e30], "F64"))[1].endswith("; f32 holds the F64 weights up to float rounding")


def test_all_types_are_named_the_most_weights_first() -> None:
    assert "the BF16, F32 weights" in decided(stored([0.5] * 3, "BF16"), stored([0.5]))[1]


def test_a_model_of_small_tensors_alone_is_f16() -> None:
    assert decided() == ("f16", "f16 holds the F32 weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_named(value: float) -> None:
    with pytest.raises(InputError, match=r"tensor some\.weight holds (nan|inf|-inf) at row 0, column 2"):
        decided(stored([1.0, 2.0, value]))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_the_decision_keeps_every_weight(values: list[float]) -> None:
    array = np.array(values, np.float32)
    kind, _ = decided(stored(array))
    if kind == "f32":
        return
    narrow = array.astype(np.float16).astype(np.float32) if kind == "f16" else bf16(array)
    norm = np.linalg.norm(array.astype(np.float64))
    change = np.linalg.norm(narrow.astype(np.float64) - array)
    assert change <= (FLOAT_ROUNDING * norm if kind == "f16" else 0.0)


@given(st.integers(1, 5), st.integers(1, 4))
def test_progress_counts_the_weights_that_are_read(tensors: int, threads: int) -> None:
    told: list[int] = []
    smallest_exact([stored(np.ones(100))] * tensors, threads, told.append)
    assert sum(told) == 100 * tensors


# Whole checkpoints


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, "f16"), (torch.float16, "f16"), (torch.float32, "f32"), (torch.float64, "f32")]
)
def test_a_checkpoint_of_each_type(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    folder = checkpoint(tmp_path / "source", dense(num_hidden_layers=1), dtype=dtype)
    decision = prepare(Request(source=folder)).decision
    assert decision.recipe == kind
    assert {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}[
        dtype
    ] in decision.reason
    types = {
        entry.name: entry.type.name for entry in read_header(convert(folder, tmp_path / "out.gguf", "auto")).tensors
    }
    assert types["blk.0.attn_q.weight"] == kind
    assert types["blk.0.attn_q_norm.weight"] == "f32"


def test_one_large_weight_makes_a_bf16_file_and_is_named(qwen3_folder: Path, copied: Copy) -> None:
    def enlarge(found: Tensors) -> None:
        found["model.layers.1.mlp.up_proj.weight"][3, 4] = 70000.0

    decision = prepare(Request(source=change_tensors(copied(qwen3_folder), enlarge))).decision
    assert decision.recipe == "bf16"
    assert "model.layers.1.mlp.up_proj.weight 1 weights beyond ±65504" in decision.reason


def test_a_large_weight_that_stays_float32_does_not_matter(qwen3_folder: Path, copied: Copy) -> None:
    def enlarge(found: Tensors) -> None:
        found["model.norm.weight"][0] = 70000.0

    assert prepare(Request(source=change_tensors(copied(qwen3_folder), enlarge))).decision.recipe == "f16"


def test_rewrites_do_not_widen_a_bf16_file(hybrid_folder: Path, copied: Copy) -> None:
    """A doubled matrix and a gate of zeros are as exact in bf16 as the source."""

    def change(found: Tensors) -> None:
        for name in [name for name in found if "shared_expert_gate" in name]:
            del found[name]
        found["model.layers.0.mlp.shared_expert.up_proj.weight"][0, 0] = 1e6

    conversion = prepare(Request(source=change_tensors(copied(hybrid_folder), change)))
    assert [rewrite.name for rewrite in conversion.plan.rewrites] == ["zero shared-expert gate"]
    assert conversion.decision.recipe == "bf16"
