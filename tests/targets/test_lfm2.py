"""Short convolutions: by their definition, in llama.cpp's `lfm2`, and under layer surgery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.families.lfm2 import tiny
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.header import ValueType, array, read_header
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import LayerSpec, ShortConv
from gguf_tools.reference.state_space import short_conv
from gguf_tools.targets.lfm2 import with_output_norm
from gguf_tools.targets.registry import all_targets, lift, target_named
from surgery.model import operate_text
from tests.oracle import convert
from tests.random_model import ATTENTION, layer, random_model
from tests.surgery.surgery_files import operated

CONV = ShortConv(3)
NORMED = replace(ATTENTION, heads=3)


def by_definition(kernel: int, bias: bool, tokens: np.ndarray[Any, Any], weights: dict[str, Any]) -> list[Any]:
    """o(c ⊙ conv(b ⊙ x)), token by token."""
    zero = np.zeros(())
    parts = [weights["conv.in"] @ x + weights.get("conv.in_bias", zero) for x in tokens]
    gates, after, values = zip(*(np.split(part, 3) for part in parts), strict=True)
    out = []
    for t in range(len(tokens)):
        seen = sum(
            weights["conv.kernel"][:, kernel - 1 - back] * gates[t - back] * values[t - back]
            for back in range(min(kernel, t + 1))
        )
        seen = seen + weights.get("conv.kernel_bias", zero)
        out.append(weights["conv.o"] @ (after[t] * seen) + weights.get("conv.o_bias", zero))
    return out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_the_reference_computes_the_definition(kernel: int, bias: bool) -> None:
    hidden, rng = 6, np.random.default_rng(kernel)
    spec = ShortConv(kernel, bias)
    weights = {role: rng.standard_normal(shape) for role, shape in spec.roles(hidden).items()}
    assert any(role.endswith("_bias") for role in weights) == bias
    tokens = rng.standard_normal((5, hidden))
    tensors = {role: torch.from_numpy(values) for role, values in weights.items()}
    found = short_conv(spec, tensors, torch.from_numpy(tokens)[None])[0]
    assert np.allclose(found.numpy(), by_definition(kernel, bias, tokens, weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "lack"),
    [
        ([layer(CONV)], "a model without full attention layers"),
        ([layer(NORMED)], "a model without short convolution layers"),
        ([layer(CONV), layer(ShortConv(4)), layer(NORMED)], "the kernel of short convolutions (3, 4)"),
        ([layer(ShortConv(1)), layer(NORMED)], "a kernel of 1 token"),
        ([layer(CONV), layer(ATTENTION)], "4 heads of 8 dimensions with a hidden size of 24"),
        ([layer(CONV), layer(replace(NORMED, qk_norm=None))], "attention without q/k norm"),
        ([layer(ShortConv(3, True)), layer(NORMED)], "biases in the short convolution"),
    ],
)
def test_lfm2_names_what_it_lacks(layers: Sequence[LayerSpec], lack: str) -> None:
    assert lack in "; ".join(target_named("lfm2").lacks(random_model(layers).spec))


def test_no_other_target_expresses_a_short_convolution() -> None:
    spec = random_model([layer(CONV), layer(replace(NORMED, kv_heads=3))]).spec
    assert [target.name for target in all_targets() if not target.lacks(spec)] == ["lfm2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lfm2") / "source"
    tiny(made, "plain", 1)
    return made


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return convert(folder, folder.parent / "out.gguf", "f32")


def test_the_file_lists_key_value_heads_by_layer(file: Path) -> None:
    header = read_header(file)
    assert header.get("lfm2.attention.head_count_kv") == (0, 0, 2, 0)
    assert header.get("lfm2.shortconv.l_cache") == 3
    names = {entry.name: entry.shape for entry in header.tensors}
    assert names["blk.0.shortconv.conv.weight"] == (64, 3)
    assert "token_embd_norm.weight" in names
    assert "output_norm.weight" not in names


@pytest.mark.parametrize("listed", [array(ValueType.INT32, [0, 0]), array(ValueType.INT32, [0, -1, 2, 0])])
def test_a_file_whose_list_of_heads_is_wrong_is_refused(file: Path, listed: Any) -> None:
    source = open_gguf(file)
    metadata = {**source.header.metadata, "lfm2.attention.head_count_kv": listed}
    wrong = replace(source, header=replace(source.header, metadata=metadata))
    with pytest.raises(CheckpointError, match="has no number of heads for layer"):
        lift(wrong)


def test_a_file_without_the_norm_before_the_output_is_refused(file: Path) -> None:
    source = open_gguf(file)
    left = {name: tensor for name, tensor in source.tensors.items() if name != "token_embd_norm.weight"}
    with pytest.raises(CheckpointError, match=r"token_embd_norm\.weight is missing"):
        with_output_norm(replace(source, tensors=left))


# Surgery


def test_a_scaled_layer_adds_that_much_less(folder: Path) -> None:
    model = load_model(folder)
    before, after = model.layers[0].tensors, operate_text(model, "scale(0@0.5)").layers[0].tensors
    for role, tensor in before.items():
        factor = 0.5 if role in ("conv.o", "ffn.down") else 1.0
        assert np.array_equal(after[role].array(), tensor.array() * factor)


def test_convolutions_blend_with_convolutions_alone(folder: Path) -> None:
    model = load_model(folder)
    made = operate_text(model, "merge(0:1)")
    assert [one.mixer for one in made.spec.layers][:2] == [CONV, model.spec.layers[2].mixer]
    with pytest.raises(InputError, match="a short convolution over 3 tokens"):
        operate_text(model, "merge(1:2)")
    with pytest.raises(InputError, match="has no attention scores to attenuate"):
        operate_text(model, "duplicate(0) + attenuate(0..1)")


def test_surgery_on_the_file_is_surgery_on_the_model(folder: Path, file: Path, tmp_path: Path) -> None:
    recipe = "swap(1:2) + duplicate(0)"
    out = operated(file, tmp_path / "out.gguf", recipe)
    assert read_header(out).get("lfm2.attention.head_count_kv") == (0, 0, 2, 0, 0)
    got, want = lift(open_gguf(out)), operate_text(load_model(folder), recipe)
    assert got.spec.pattern == want.spec.pattern == "ccacc"
    for one, other in zip(got.layers, want.layers, strict=True):
        assert all(np.array_equal(one.tensors[role].array(), t.array()) for role, t in other.tensors.items())
