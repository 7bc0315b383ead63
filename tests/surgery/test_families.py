"""Surgery on a checkpoint of every family: what is written is what the Model says, state dicts and towers included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_tools.families.registry import build_model, family_named, own_families
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.model import operate
from surgery.recipe import parse_text
from tests.random_model import named

TELLING = ("fused", "window", "mixed", "pt", "orig_mod prefix", "mlx", "vision", "irregular", "every 2nd layer", "bf16")
CASES = [
    (family.name, variant)
    for family in own_families()
    for n, variant in enumerate(family.variants)
    if n == 0 or variant in TELLING
]


def opened(path: Path) -> Model:
    return build_model(restore(open_checkpoint(path)))


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_family_is_operated_upon(name: str, variant: str, tmp_path: Path) -> None:
    write = family_named(name).tiny
    assert write is not None
    write(tmp_path / "source", variant, 3)
    model = opened(tmp_path / "source")
    layers = model.spec.layers
    alike = [(a, b) for a in range(len(layers)) for b in range(a + 1, len(layers)) if layers[a] == layers[b]]
    # A config may only have a number of leading layers without experts.
    last = [type(layer.feed_forward) for layer in layers].index(type(layers[-1].feed_forward))
    text = f"swap({min(last, len(layers) - 2)}:{len(layers) - 1}) + duplicate(0) + scale(1@0.5)"
    if alike:
        a, b = alike[0]
        text = f"interpolate({a}:{b}, 0.3) + {text}"
    recipe = parse_text(text)
    write_checkpoint(plan_checkpoint(tmp_path / "source", recipe), tmp_path / "out")
    got, want = opened(tmp_path / "out"), operate(model, recipe)
    assert got.spec == want.spec
    found = named(got)
    for role, tensor in named(want).items():
        # What a program that saved the checkpoint again did to it (norms plus 1) is undone after the rounding of a blend.
        assert np.allclose(found[role].array(), tensor.array(), rtol=1e-6, atol=2e-7), role
