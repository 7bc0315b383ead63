"""Every point of a correct F32 file is explained by rounding, for every target; reading token by token gives the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation.conformance import Case, cases
from gguf_tools.evaluation.trace.compare import ACTIVATED, EXACT, chosen_error, error
from gguf_tools.evaluation.trace.run import trace
from gguf_tools.families.registry import own_families
from gguf_tools.targets.registry import all_targets, target_named

UNNAMED = frozenset(
    {
        "attn.k_normed", "attn.k_product", "attn.k_rope", "attn.q_normed", "attn.q_product", "attn.q_rope", "attn.v_product",
        "conv.after", "conv.gated", "ffn.gate", "ffn.up", "ffn_out", "mixer_residual", "ssm.gated", "ssm.step",
    }
)  # fmt: skip
"""The points that some graph has no name for."""


def one_a_target() -> list[Case]:
    """The first variant of each target, and of each family that has no other."""
    found: dict[str, Case] = {}
    for case in cases(own_families()):
        if case.expected.target and not case.expected.approximate:
            found.setdefault(case.expected.target, case)
    return list(found.values())


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("case", one_a_target(), ids=str)
def test_every_point_of_a_correct_file_is_explained(case: Case, tmp_path: Path) -> None:
    source = case.write(tmp_path)
    execute(prepare(case.request(source, type="f32")), tmp_path / "out.gguf")
    found = trace(tmp_path / "out.gguf", source, tokens=14, decode=True, threads=1)
    assert found.first is None, found.first
    target = case.expected.target
    logits = found.logits
    assert logits
    gelu = target_named(target).nmse
    for point in found.points:
        assert point.local.nmse <= EXACT + (gelu if point.point in ACTIVATED else 0.0), point
    assert set(found.unnamed) <= UNNAMED
    assert {point.layer for point in found.layers} == set(range(len(found.layers)))
    assert found.decode
    assert not any(point.bad for point in found.decode), found.decode[0]


def test_every_target_is_traced() -> None:
    assert {case.expected.target for case in one_a_target()} == {target.name for target in all_targets()}


def test_the_error_is_what_it_is_called() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    found = error(a, b)
    assert found.nmse == pytest.approx(np.square(a - b).sum() / np.square(a).sum(), rel=1e-14)
    assert found.cosine == pytest.approx(float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)), rel=1e-14)
    gaps = np.asarray(np.abs(a - b))
    assert gaps[found.position, found.channel] == found.largest == gaps.max()
    rows = np.array([False, True, True, False, False])
    assert error(a, b, rows).nmse == error(a[1:3], b[1:3]).nmse
    assert error(a, b, rows).position in (1, 2)
    assert error(np.zeros((1, 2)), np.zeros((1, 2))).nmse == 0.0
    assert error(np.zeros((1, 2)), np.ones((1, 2))).nmse == np.inf
    assert error(a, np.full_like(a, np.nan)).nmse == np.inf


def test_a_selection_within_the_noise_is_a_tie() -> None:
    measure = np.array([[1.0, 1.0 + 1e-9, 0.0], [3.0, 1.0, 0.0]])
    mine, theirs = np.array([[1], [0]]), np.array([[0], [0]])
    assert chosen_error(measure, mine, theirs, 1e-8).nmse == 0.0
    assert chosen_error(measure, mine, np.array([[0], [2]]), 1e-8).nmse == 0.5
