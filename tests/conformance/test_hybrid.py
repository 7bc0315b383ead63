"""Every hybrid variant through conversion to llama.cpp and back: logits of every position against the source's reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools.families.registry import all_families, load_model
from gguf_tools.targets.planner import plan
from tests.oracle import convert, lifted_reference, llama, nmse, source_reference

EXACT = 1e-9
FLOAT32 = 1e-11
"""The file's own weights against the source's: norm offsets and decay rates are rounded to float32 on the way."""

GATE, SHARED_GATE, EMPTY = "zero attention gate", "zero shared-expert gate", "empty shared expert"
BIAS = "bias on the attention output"
CASES = [
    ("qwen3-next", "gated", "qwen3next", []),
    ("qwen3-next", "ungated", "qwen3next", [GATE, SHARED_GATE]),
    ("qwen3-next", "ungated-attention", "qwen3next", [GATE]),
    ("qwen3-next", "ungated-shared", "qwen3next", [SHARED_GATE]),
    ("qwen3-next", "no-shared", "qwen3next", [EMPTY]),
    ("qwen3-next", "output-bias", "qwen3next", [BIAS]),
    ("qwen3-next", "ungated-output-bias", "qwen3next", [BIAS, GATE, SHARED_GATE]),
    ("qwen3-next", "wide-heads-output-bias", "qwen3next", [BIAS]),
    ("qwen3-next", "irregular", "qwen3next", []),
    ("qwen3-next", "fused", "qwen3next", []),
    ("qwen3-next", "linear-only", "qwen3next", ["idle last layer", GATE]),
    ("qwen3-next", "full-only", "qwen3next", ["idle last layer"]),
    ("qwen3-next", "dense-layers", "qwen3next", ["dense layers as shared experts"]),
    ("qwen3-next", "wide-keys", "qwen3next", ["repeated values"]),
    ("qwen3-next", "mlx", "qwen3next", []),
    ("qwen3.5", "dense", "qwen35", []),
    ("qwen3.5", "moe", "qwen35moe", []),
    ("qwen3.5", "moe-separate-experts", "qwen35moe", []),
    ("qwen3.5", "ungated", "qwen35", [GATE]),
    ("qwen3.5", "output-bias", "qwen35", [BIAS]),
    ("qwen3.5", "vision", "qwen35", []),
    ("qwen3.5", "mlx", "qwen35", []),
    ("qwen3.5", "moe-mlx", "qwen35moe", []),
    ("qwen3", "output-bias", "qwen3", [BIAS]),
    ("qwen3-moe", "hybrid-config", "qwen3moe", []),
    ("qwen3-moe", "hybrid-config-output-bias", "qwen3moe", [BIAS]),
]
OTHER_TARGETS = [("irregular", "qwen35moe"), ("wide-keys", "qwen35moe"), ("output-bias", "qwen35moe")]


def tiny(folder: Path, family: str, variant: str) -> Path:
    """A random checkpoint of a family's variant."""
    write = next(found.tiny for found in all_families() if found.name == family)
    assert write
    write(folder / "hf", variant, 1)
    return folder / "hf"


def check_file(folder: Path, source: Path, target: str | None = None) -> None:
    """Convert, run by llama.cpp, lift: all give the source's logits."""
    out = convert(source, folder / "out.gguf", target=target, text_only=True)
    wanted = source_reference(source)
    assert nmse(llama(out)[0], wanted) <= EXACT
    assert nmse(lifted_reference(out), wanted) <= FLOAT32


def test_every_hybrid_variant_is_listed() -> None:
    listed = {(family, variant) for family, variant, _, _ in CASES}
    hybrids = [family for family in all_families() if family.name in ("qwen3-next", "qwen3.5")]
    assert {(family.name, variant) for family in hybrids for variant in family.variants} <= listed


@pytest.mark.parametrize(("family", "variant", "target", "rewrites"), CASES)
def test_the_cheapest_target_gives_the_same_logits(
    tmp_path: Path, family: str, variant: str, target: str, rewrites: list[str]
) -> None:
    source = tiny(tmp_path, family, variant)
    made = plan(load_model(source))
    assert (made.target.name, [rewrite.name for rewrite in made.rewrites]) == (target, rewrites)
    assert bool(made.extra_parameters) == bool(rewrites)
    check_file(tmp_path, source)


@pytest.mark.parametrize(("variant", "target"), OTHER_TARGETS)
def test_a_target_asked_for_gives_the_same_logits(tmp_path: Path, variant: str, target: str) -> None:
    check_file(tmp_path, tiny(tmp_path, "qwen3-next", variant), target)
