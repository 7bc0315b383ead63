"""Every op on a sliding-window decoder, a plain one, a mixture of experts and a hybrid: llama.cpp computes what numpy says.

The layers that must come out are computed here from the arrays in memory, and written as a file of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.formats.gguf.header import read_header
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.ops import all_ops
from surgery.recipe import parse_text
from tests.oracle import Logits, nmse
from tests.surgery import tiny_architectures as tiny
from tests.surgery.surgery_files import operated, raw_tensors
from tests.surgery.tiny_architectures import Tiny
from tests.tiny_gguf import Array

PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79), (7, 200, 11))
Layer = tuple[int, dict[str, Array]]
"""The layer whose place in patterns it has, and its tensors."""
Change = Callable[[list[Layer]], list[Layer]]
OUTPUTS = ("attn_output.weight", "ssm_out.weight", "ffn_down.weight", "ffn_down_exps.weight", "ffn_down_shexp.weight")
POST_NORMS = ("post_attention_norm.weight", "post_ffw_norm.weight")


def blended(a: Layer, b: Layer, t: float) -> Layer:
    """(1 - t)·a + t·b, decay rates by their logarithms."""

    def mean(name: str, x: Array, y: Array) -> Array:
        if name == "ssm_a":
            return np.asarray(-np.exp((1 - t) * np.log(-x.astype(float)) + t * np.log(-y.astype(float))), np.float32)
        return np.asarray((1 - t) * x.astype(float) + t * y.astype(float), np.float32)

    return a[0], {name: mean(name, x, b[1][name]) for name, x in a[1].items()}


def scaled(layer: Layer, factor: float) -> Layer:
    """The contributions of a layer times a factor: through the norms of its outputs, or the output projections."""
    normed = "post_ffw_norm.weight" in layer[1]
    names = POST_NORMS if normed else OUTPUTS
    return layer[0], {name: np.float32(factor) * x if name in names else x for name, x in layer[1].items()}


def experts(layer: Layer, order: list[int]) -> Layer:
    """The experts of a layer in another order."""
    by_expert = ("ffn_gate_inp.weight", "exps.weight")
    return layer[0], {k: np.ascontiguousarray(v[order]) if k.endswith(by_expert) else v for k, v in layer[1].items()}


def picked(*order: int) -> Change:
    return lambda layers: [layers[n] for n in order if n < len(layers)] + layers[4:]


COMMON: dict[str, Change] = {
    "swap(0:2)": picked(2, 1, 0, 3),
    "move(0:2)": picked(1, 2, 0, 3),
    "reverse(0..2)": picked(2, 1, 0, 3),
    "cycle(0..2)": picked(2, 0, 1, 3),
    "delete(1)": picked(0, 2, 3),
    "bridge(0:1)": picked(0, 1, 0, 2, 3),
    "duplicate(1)": picked(0, 1, 1, 2, 3),
    "triple(0)": picked(0, 0, 0, 1, 2, 3),
    "repeat(0..1x2)": picked(0, 1, 0, 1, 2, 3),
    "path(0..1, 0, 2..3)": lambda layers: [layers[n] for n in (0, 1, 0, 2, 3)],
    "interpolate(0:2, 0.25)": lambda layers: [layers[0], blended(layers[0], layers[2], 0.25), *layers[1:]],
    "merge(0:2)": lambda layers: [blended(layers[0], layers[2], 0.5), layers[1], *layers[3:]],
    "scale(1..2@0.5)": lambda layers: [layers[0], *(scaled(one, 0.5) for one in layers[1:3]), *layers[3:]],
}
EXPERTS: dict[str, Change] = {
    "drop-experts(0..3:1)": lambda layers: [experts(layer, [0, 2, 3]) for layer in layers],
    "swap-experts(1:0:3)": lambda layers: [layers[0], experts(layers[1], [3, 1, 2, 0]), *layers[2:]],
}
MODELS: dict[str, tuple[Callable[[], Tiny], dict[str, list[bool]]]] = {
    "gemma3": (lambda: tiny.gemma3(7), {"attention.sliding_window_pattern": [(n + 1) % 6 != 0 for n in range(7)]}),
    "llama": (tiny.llama, {}),
    "qwen3moe": (lambda: tiny.qwen3moe(4), {}),
    "qwen3next": (tiny.qwen3next, {"attention.recurrent_layers": [n % 2 == 0 for n in range(4)]}),
}
CASES = [(name, recipe) for name in MODELS for recipe in COMMON | (EXPERTS if name.startswith("qwen3") else {})]


def logits(path: Path) -> Logits:
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        return [part.copy() for part in runtime.logits(PROMPTS)]


def test_all_fifteen_ops_are_here() -> None:
    named = {op.name for recipe in COMMON | EXPERTS for op in parse_text(recipe).ops}
    assert named >= set(all_ops()) - {"attenuate", "graft"}  # which have modules of their own
    assert len(named) == 15


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_llama_computes_what_the_layers_say(name: str, recipe: str, tmp_path: Path) -> None:
    make, arrays = MODELS[name]
    made = make()
    layers = (COMMON | EXPERTS)[recipe](list(enumerate(made.layers)))
    patterns = {key: [values[n] for n, _ in layers] for key, values in arrays.items()}
    wanted = replace(made, layers=[tensors for _, tensors in layers], arrays=patterns)
    keys = made.keys | ({"expert_count": 3} if recipe.startswith("drop") else {})
    want = replace(wanted, keys=keys).write(tmp_path / "want.gguf")
    got = operated(made.write(tmp_path / "base.gguf"), tmp_path / "got.gguf", recipe)
    found, expected = raw_tensors(got), raw_tensors(want)
    assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in expected.items()}
    if found != expected or metadata(got) != metadata(want):  # the same bytes need not run twice
        assert nmse(logits(got), logits(want)) <= 1e-12


def metadata(path: Path) -> dict[str, object]:
    """What llama.cpp reads of a file's header."""
    return {key: field.value for key, field in read_header(path).metadata.items() if not key.startswith("tinyq.")}
