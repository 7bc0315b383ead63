"""Planted faults are found at the right layer and point, and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation.trace.run import Trace, trace
from gguf_tools.formats.gguf.header import Field, f32, u32
from tests.evaluation.trace.planting import Floats, planted, values_of, with_key, with_layers_exchanged
from tests.made_checkpoints import Made

pytestmark = pytest.mark.usefixtures("one_process")
Files = Callable[[str, str, str], tuple[Path, Path]]
TOKENS = 20


@pytest.fixture(scope="module")
def files(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """(family, variant, type) → its checkpoint and the GGUF made from it."""
    done: dict[tuple[str, str, str], tuple[Path, Path]] = {}

    def get(family: str, variant: str, kind: str) -> tuple[Path, Path]:
        if (family, variant, kind) not in done:
            source = made(family, variant)
            out = tmp_path_factory.mktemp("trace") / "file.gguf"
            execute(prepare(Request(source=source, type=kind, threads=1)), out)
            done[family, variant, kind] = source, out
        return done[family, variant, kind]

    return get


def traced(file: Path, source: Path) -> Trace:
    return trace(file, source, tokens=TOKENS, threads=1)


def check(found: Trace, layer: int | None, point: str, cause: str, tensor: str | None = None) -> None:
    """The first bad point, a part of the cause that leaves what rounding explains, and one of the tensors that it is in."""
    assert found.first is not None
    assert (found.first.layer, found.first.point) == (layer, point), found.first
    assert found.cause
    assert found.cause.text
    assert cause in found.cause.text, found.cause
    assert found.cause.nmse is not None
    assert found.cause.nmse <= found.first.tolerance
    assert found.cause.where == "file"
    assert tensor is None or tensor in found.cause.tensors


def exchanged(one: int, other: int) -> Callable[[Floats], Floats]:
    def change(values: Floats) -> Floats:
        values[[one, other]] = values[[other, one]]
        return values

    return change


def rows_of_head(head: int, width: int) -> Callable[[Floats], Floats]:
    def change(values: Floats) -> Floats:
        rows = values[head * width : (head + 1) * width]
        values[head * width : (head + 1) * width] = rows[::-1].copy()
        return values

    return change


def interleaved(heads: int) -> Callable[[Floats], Floats]:
    """Rows of each head in the order of interleaved pairs, where they were half a head apart."""

    def change(values: Floats) -> Floats:
        width = len(values) // heads
        return np.array(values.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(values.shape))

    return change


def flipped(values: Floats) -> Floats:
    values.view(np.uint32).reshape(-1)[7] ^= 1 << 20
    return values


def nothing(values: Floats) -> Floats:
    return np.zeros_like(values)


KINDS = ("f32", "q8_0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "function", "point", "cause"),
    [
        ("blk.1.ffn_down_exps.weight", exchanged(0, 1), "expert.down", "experts 0 and 1 are exchanged"),
        ("blk.1.attn_q.weight", rows_of_head(1, 32), "attn.q", "rows of head 1 are in another order"),
        ("blk.1.attn_q.weight", interleaved(4), "attn.q", "RoPE with interleaved pairs"),
        ("blk.1.ffn_gate_inp.weight", exchanged(0, 2), "moe.logits", "rows 0 and 2 are exchanged"),
        ("blk.1.attn_norm.weight", lambda values: values - 1, "mixer_norm", "blk.1.attn_norm.weight"),
    ],
)
def test_tensors_of_qwen3_moe(
    files: Files,
    tmp_path: Path,
    kind: str,
    name: str,
    function: Callable[[Floats], Floats],
    point: str,
    cause: str,
) -> None:
    source, file = files("qwen3-moe", "plain", kind)
    found = traced(planted(file, tmp_path / "bad.gguf", (name, function)), source)
    check(found, 1, point, cause, name)


def test_a_bias_that_is_not_loaded(files: Files, tmp_path: Path) -> None:
    source, file = files("qwen2", "plain", "f32")
    found = traced(planted(file, tmp_path / "bad.gguf", ("blk.2.attn_k.bias", nothing)), source)
    check(found, 2, "attn.k", "the bias is not loaded (attn.k_bias)")
    assert found.cause
    assert found.cause.tensors == ("blk.2.attn_k.bias",)


def test_one_flipped_bit(files: Files, tmp_path: Path) -> None:
    source, file = files("qwen2", "plain", "f32")
    found = traced(planted(file, tmp_path / "bad.gguf", ("blk.1.attn_output.weight", flipped)), source)
    check(found, 1, "mixer_out", "one value differs from the source's, at [0, 7]")
    assert found.cause
    assert found.cause.text
    assert "bit 20 is flipped" in found.cause.text


@pytest.mark.parametrize("kind", KINDS)
def test_metadata(files: Files, tmp_path: Path, kind: str) -> None:
    source, file = files("qwen3", "plain", kind)
    theta = with_key(file, tmp_path / "theta.gguf", "rope.freq_base", f32(123.0))
    check(traced(theta, source), 0, "attn.q_rope", "the RoPE base is 123, not 1")
    epsilon = with_key(file, tmp_path / "epsilon.gguf", "attention.layer_norm_rms_epsilon", f32(3e-3))
    check(traced(epsilon, source), 0, "mixer_norm", "epsilon is 0.003, not 1e-05")


@pytest.mark.parametrize(
    ("kind", "family", "variant", "key", "value", "point", "cause"),
    [
        (
            "f32",
            "qwen3",
            "yarn",
            "rope.scaling.factor",
            f32(2.0),
            "attn.q_rope",
            "scaling.factor is 2 in the file, not 4",
        ),
        ("q8_0", "qwen3-moe", "plain", "expert_used_count", u32(1), "ffn_out", "1 experts are used, not 2"),
        (
            "q8_0",
            "gemma2",
            "second",
            "attn_logit_softcapping",
            f32(1e6),
            "attn.shares",
            "the cap on the scores is left out",
        ),
        (
            "f32",
            "gemma2",
            "second",
            "attention.sliding_window",
            u32(3),
            "attn.shares",
            "the sliding window is 3, not 8",
        ),
        ("f16", "granite", "plain", "residual_scale", f32(1.0), "mixer_residual", "the residual scale is left out"),
        ("q8_0", "granite", "plain", "attention.scale", f32(0.9), "attn.shares", "multiplied by 0.9, not 0.4"),
    ],
)
def test_values_of_metadata(
    files: Files, tmp_path: Path, kind: str, family: str, variant: str, key: str, value: Field, point: str, cause: str
) -> None:
    source, file = files(family, variant, kind)
    check(traced(with_key(file, tmp_path / "bad.gguf", key, value), source), 0, point, cause)


def test_logits(files: Files, tmp_path: Path) -> None:
    source, file = files("gemma2", "second", "q8_0")
    bad = with_key(file, tmp_path / "cap.gguf", "final_logit_softcapping", f32(1e6))
    check(traced(bad, source), None, "logits", "the logits are not capped")
    source, file = files("granite", "plain", "f32")
    bad = with_key(file, tmp_path / "scale.gguf", "logit_scale", f32(2.0))
    check(traced(bad, source), None, "logits", "logit_scale is 0.5 in the file, not 0.125")


def test_tensors_exchanged_transposed_and_scaled(files: Files, tmp_path: Path) -> None:
    source, file = files("qwen3-moe", "plain", "q8_0")
    gate, up = "blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"
    bad = planted(
        file, tmp_path / "all.gguf", (gate, lambda _: values_of(file, up)), (up, lambda _: values_of(file, gate))
    )
    check(traced(bad, source), 1, "expert.gate", "moe.gate and moe.up are exchanged")

    def of_up(values: Floats) -> Floats:
        values[2] = values_of(file, up)[2]
        return values

    bad = planted(file, tmp_path / "one.gguf", (gate, of_up))
    check(traced(bad, source), 1, "expert.gate", f"{gate}: expert 2 has the weights of moe.up")
    source, file = files("qwen3", "plain", "f16")
    bad = planted(file, tmp_path / "turned.gguf", ("blk.1.attn_k.weight", lambda values: values.T))
    check(traced(bad, source), 1, "attn.k", "the weight is transposed (attn.k)")
    bad = planted(file, tmp_path / "scaled.gguf", ("blk.1.ffn_down.weight", lambda values: values * 1.1))
    check(traced(bad, source), 1, "ffn_out", "blk.1.ffn_down.weight: it is multiplied by about 1.1")


def test_layers_exchanged(files: Files, tmp_path: Path) -> None:
    source, file = files("qwen3", "plain", "q8_0")
    found = traced(with_layers_exchanged(file, tmp_path / "bad.gguf", 1, 2), source)
    check(found, 1, "mixer_norm", "the layer has the weights of layer 2")


def test_delta_net(files: Files, tmp_path: Path) -> None:
    source, file = files("qwen3-next", "gated", "f32")
    sign = planted(file, tmp_path / "sign.gguf", ("blk.0.ssm_a", np.negative))
    check(traced(sign, source), 0, "delta.log_decay", "A_log without its minus sign")
    turned = planted(file, tmp_path / "turned.gguf", ("blk.2.ssm_conv1d.weight", lambda values: values[:, ::-1]))
    check(traced(turned, source), 2, "delta.conv", "the convolution is reversed in time (delta.conv)")


@pytest.mark.parametrize(
    ("family", "layer", "count"), [("mamba2", 1, 6), ("falcon-h1", 1, 2), ("granite-hybrid", 0, 2), ("bamba", 0, 2)]
)
def test_state_space(files: Files, tmp_path: Path, family: str, layer: int, count: int) -> None:
    """The first `count` of the faults of a state space; Falcon-H1's lies beside attention."""
    source, file = files(family, "plain", "f32")
    faults = (
        ("ssm_a", np.negative, "ssm.scan", "A_log without its minus sign"),
        ("ssm_conv1d.weight", lambda values: values[:, ::-1], "ssm.conv", "reversed in time (ssm.conv)"),
        ("ssm_dt.bias", nothing, "ssm.dt", "is left out (ssm.dt_bias)"),
        ("ssm_d", nothing, "ssm.out", "is left out (ssm.skip)"),
        ("ssm_in.weight", exchanged(0, 1), "ssm.in", "rows 0 and 1 are exchanged"),
        ("ssm_out.weight", lambda values: values * 2, "mixer_out", "multiplied by 2"),
    )
    for name, function, point, cause in faults[:count]:
        full = f"blk.{layer}.{name}"
        found = traced(planted(file, tmp_path / "bad.gguf", (full, function)), source)
        check(found, layer, point, cause, full)


def test_embedding_norm(files: Files, tmp_path: Path) -> None:
    """BLOOM's embeddings are normed; what the first layer reads is that."""
    source, file = files("bloom", "plain", "f32")
    for name, function, cause in (
        ("token_embd_norm.weight", lambda values: values * 1.5, "token_embd_norm.weight: it is multiplied by 1.5"),
        ("token_embd_norm.bias", np.negative, "token_embd_norm.bias: its sign is turned"),
        ("token_embd.weight", np.negative, "token_embd.weight: its sign is turned"),
    ):
        found = traced(planted(file, tmp_path / "bad.gguf", (name, function)), source)
        check(found, None, "embedding", cause)


def test_a_norm_offset_that_is_missing(files: Files, tmp_path: Path) -> None:
    """qwen3next's file has norm weights plus 1."""
    source, file = files("qwen3-next", "gated", "f32")
    found = traced(planted(file, tmp_path / "bad.gguf", ("blk.1.attn_norm.weight", lambda v: v - 1)), source)
    check(found, 1, "mixer_norm", "the norm's offset of 1 is missing (mixer_norm)")


def test_the_end_and_the_beginning(files: Files, tmp_path: Path) -> None:
    source, file = files("qwen3", "plain", "f32")
    norm = planted(file, tmp_path / "norm.gguf", ("output_norm.weight", lambda values: values * 1.5))
    check(traced(norm, source), None, "final_norm", "output_norm.weight: it is multiplied by 1.5")
    words = planted(file, tmp_path / "words.gguf", ("token_embd.weight", lambda values: -values))
    check(traced(words, source), None, "embedding", "token_embd.weight: its sign is turned")


def test_a_clean_file_has_no_fault_and_says_what_it_cannot_see(files: Files) -> None:
    from gguf_tools.evaluation.trace.report import text_of

    for kind, blind in (("f32", "1e-10"), ("q8_0", "e-02")):
        source, file = files("qwen3-moe", "plain", kind)
        found = traced(file, source)
        assert found.first is None
        text = text_of(found)
        assert "every point is explained by rounding" in text
        assert f"{blind} locally" in text.partition("blind to")[2]


def test_a_small_fault_is_hidden_by_quantization(files: Files, tmp_path: Path) -> None:
    """One weight's last bits: seen in F32, below the noise that the report of the Q8_0 file states."""
    source, file = files("qwen3", "plain", "f32")
    name = "blk.1.attn_output.weight"

    def little(values: Floats) -> Floats:
        values[3, 5] += 0.1 * float(np.abs(values).mean())
        return values

    assert traced(planted(file, tmp_path / "a.gguf", (name, little)), source).first
    source, file = files("qwen3", "plain", "q8_0")
    changed = planted(file, tmp_path / "b.gguf", (name, little))
    assert traced(changed, source).first is None
    assert np.abs(values_of(changed, name) - values_of(file, name)).max() <= 1e-2
