"""Faults in what only some families have are located, and named; and what the text does not reach is compared by its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.evaluation.trace import run
from gguf_tools.evaluation.trace.report import text_of
from gguf_tools.evaluation.trace.run import trace
from gguf_tools.formats.gguf.header import Field, f32, u32
from gguf_tools.formats.gguf.source import open_gguf
from tests.evaluation.trace.planting import Floats, planted, with_key
from tests.evaluation.trace.test_faults import Files, check, files, nothing, traced

__all__ = ["files"]
pytestmark = pytest.mark.usefixtures("one_process")
Change = Callable[[Floats], Floats]


def first_is(value: float) -> Change:
    def change(values: Floats) -> Floats:
        values.reshape(-1)[0] = value
        return values

    return change


def last_doubled(values: Floats) -> Floats:
    values[-1] *= 2
    return values


def heads_exchanged(values: Floats) -> Floats:
    """The first two heads of 16 columns exchanged."""
    return np.concatenate([values[:, 16:32], values[:, :16], values[:, 32:]], axis=1)


@pytest.mark.parametrize(
    ("family", "variant", "name", "function", "layer", "point", "cause"),
    [
        (
            "cohere",
            "untied",
            "output_norm.weight",
            lambda v: v * 1.5,
            None,
            "final_norm",
            "output_norm.weight: it is multiplied by 1.5",
        ),
        (
            "apertus",
            "plain",
            "rope_freqs.weight",
            lambda v: v[::-1],
            0,
            "attn.q_rope",
            "factors[0] is 8 in the file, not 1; 6 of 16 differ",
        ),
        ("apertus", "plain", "rope_freqs.weight", nothing, 0, "attn.q_rope", "factors[0] is 0 in the file, not 1"),
        ("bamba", "plain", "blk.0.ssm_a", first_is(0), 0, "ssm.scan", "one value differs from the source's, at [0]: 0"),
        (
            "falcon-h1",
            "plain",
            "blk.0.ssm_in.weight",
            lambda v: v * 1.5,
            0,
            "ssm.in",
            "blk.0.ssm_in.weight: it is multiplied by 1.5",
        ),
        (
            "gpt2",
            "plain",
            "position_embd.weight",
            lambda v: np.roll(v, -2, 0),
            None,
            "embedding",
            "learned positions start at row 2, not 0",
        ),
        (
            "gpt2",
            "plain",
            "blk.0.attn_qkv.bias",
            nothing,
            0,
            "attn.q",
            "the bias is not loaded (attn.q_bias)",
        ),
        (
            "gpt-oss",
            "plain",
            "blk.0.attn_sinks.weight",
            lambda v: v * 0 - 1e4,
            0,
            "attn.shares",
            "the attention sinks are left out",
        ),
        (
            "qwen2",
            "plain",
            "blk.1.attn_output.weight",
            heads_exchanged,
            1,
            "mixer_out",
            "blk.1.attn_output.weight: heads 0 and 1 are exchanged",
        ),
    ],
)
def test_tensors(
    files: Files,
    tmp_path: Path,
    family: str,
    variant: str,
    name: str,
    function: Change,
    layer: int | None,
    point: str,
    cause: str,
) -> None:
    source, file = files(family, variant, "f32")
    found = traced(planted(file, tmp_path / "bad.gguf", (name, function)), source)
    check(found, layer, point, cause, name)


def test_an_epsilon_that_a_large_residual_hides(files: Files, tmp_path: Path) -> None:
    """It changes the first norm by 3e-11, which is far more than rounding does there."""
    source, file = files("arcee", "plain", "f32")
    bad = with_key(file, tmp_path / "bad.gguf", "attention.layer_norm_rms_epsilon", f32(2e-5))
    check(traced(bad, source), 0, "mixer_norm", "epsilon is 2e-05, not 1e-05")


@pytest.mark.parametrize(("family", "variant"), [("gemma2", "second"), ("gpt-oss", "plain")])
def test_the_rope_base_of_layers_with_a_window(files: Files, tmp_path: Path, family: str, variant: str) -> None:
    """Layer 0 has a window; the key is optional, and llama.cpp reads it."""
    source, file = files(family, variant, "f32")
    bad = with_key(file, tmp_path / "bad.gguf", "rope.freq_base_swa", f32(777.0))
    check(traced(bad, source), 0, "attn.q_rope", "the RoPE base is 777, not ")


@pytest.mark.parametrize(
    ("name", "point", "role"), [("attn_output", "mixer_out", "attn.o"), ("ffn_down", "ffn_out", "ffn.down")]
)
def test_zeros_are_those_of_the_tensor_that_feeds_the_point(
    files: Files, tmp_path: Path, name: str, point: str, role: str
) -> None:
    """Zeros in an earlier tensor would give the same, but for the points before."""
    source, file = files("arcee", "plain", "f32")
    bad = planted(file, tmp_path / "bad.gguf", (f"blk.1.{name}.weight", nothing))
    check(traced(bad, source), 1, point, f"the tensor is not loaded: zeros ({role})")


def test_an_epsilon_that_changes_little(files: Files, tmp_path: Path) -> None:
    """Less than what counts as nothing of larger errors."""
    source, file = files("qwen3-next", "gated", "f32")
    bad = with_key(file, tmp_path / "bad.gguf", "attention.layer_norm_rms_epsilon", f32(2e-6))
    found = traced(bad, source)
    assert found.first
    assert found.first.local.nmse < 1e-12
    check(found, 0, "mixer_norm", "epsilon is 2e-06, not 1e-06")


@pytest.mark.parametrize(
    ("family", "variant", "name", "layer", "point", "text"),
    [
        ("ernie4.5-moe", "dense-last", "token_embd.weight", None, "embedding", "row 287 differs from the source's"),
        ("gpt2", "plain", "position_embd.weight", None, "embedding", "row 127 differs from the source's"),
        ("phi3", "longrope-short", "rope_factors_long.weight", 0, "attn.q_rope", "mixer.rope.scaling.long[7] is "),
    ],
)
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_weights_that_the_text_does_not_reach(
    files: Files,
    tmp_path: Path,
    kind: str,
    family: str,
    variant: str,
    name: str,
    layer: int | None,
    point: str,
    text: str,
) -> None:
    source, file = files(family, variant, kind)
    found = traced(planted(file, tmp_path / "bad.gguf", (name, last_doubled)), source)
    assert found.first is None
    (one,) = found.unseen
    assert (one.layer, one.point) == (layer, point)
    assert text in one.text
    report = found.as_dict()["first_bad"]
    assert report["cause"] == one.text
    assert "the file differs where this text does not show it" in text_of(found)
    assert not traced(file, source).unseen


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("attention.layer_norm_rms_epsilon", f32(1.0000002e-5), ""),
        ("attention.layer_norm_rms_epsilon", f32(1.01e-5), "output_norm.eps is 1.01e-05 in the file, not 1e-05"),
        ("context_length", u32(77), ""),
        ("attention.scale", f32(0.25), ""),
    ],
)
def test_metadata_without_an_effect(files: Files, tmp_path: Path, key: str, value: Field, text: str) -> None:
    source, file = files("arcee", "plain", "f32")
    found = traced(with_key(file, tmp_path / "bad.gguf", key, value), source)
    assert found.first is None
    assert [one.text for one in found.unseen[:1]] == ([text] if text else [])


@pytest.mark.parametrize(
    ("family", "variant", "name", "function", "layer", "point", "cause"),
    [
        ("qwen2", "plain", "blk.1.attn_q.bias", nothing, 1, "attn.q", "the bias is not loaded (attn.q_bias)"),
        (
            "qwen3-moe",
            "plain",
            "blk.1.attn_q_norm.weight",
            np.ones_like,
            1,
            "attn.q_normed",
            "the norm's weights are not applied (attn.q_norm)",
        ),
        (
            "qwen3-moe",
            "plain",
            "blk.1.ffn_down_exps.weight",
            lambda v: v[[1, 0, *range(2, len(v))]],
            1,
            "expert.down",
            "experts 0 and 1 are exchanged (moe.down)",
        ),
        ("gpt2", "plain", "output_norm.bias", nothing, None, "final_norm", "the bias is not loaded (output_norm_bias)"),
    ],
)
def test_faults_of_an_engine(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    variant: str,
    name: str,
    function: Change,
    layer: int | None,
    point: str,
    cause: str,
) -> None:
    """llama.cpp reads the broken file and tinyq the good one, as if llama.cpp did not use what it reads."""
    source, file = files(family, variant, "f32")
    bad = planted(file, tmp_path / "bad.gguf", (name, function))
    monkeypatch.setattr(run, "open_gguf", lambda _: open_gguf(file))
    found = traced(bad, source)
    assert found.first
    assert (found.first.layer, found.first.point) == (layer, point)
    assert found.cause
    assert (found.cause.text, found.cause.where) == (cause, "engine")
    assert found.cause.tensors == (name,)


def test_metadata_that_contradict_the_tensors(files: Files, tmp_path: Path) -> None:
    """llama.cpp runs it all the same."""
    source, file = files("arcee", "plain", "f32")
    found = traced(with_key(file, tmp_path / "bad.gguf", "rope.freq_base", f32(0.0)), source)
    assert found.first
    assert (found.first.layer, found.first.point) == (0, "attn.q_rope")
    assert found.cause
    assert found.cause.text
    assert "rope.freq_base" in found.cause.text
    assert "tried" not in text_of(found).partition("cause ")[2]


@pytest.mark.parametrize("bit", [0, 9, 30, 31])
def test_one_flipped_bit_of_any_size(files: Files, tmp_path: Path, bit: int) -> None:
    """In F32 all are located and named: those that rounding hides by the weights."""
    source, file = files("qwen3-moe", "plain", "f32")

    def flipped(values: Floats) -> Floats:
        values.view(np.uint32)[2, 1, 5] ^= np.uint32(1 << bit)
        return values

    name = "blk.1.ffn_up_exps.weight"
    found = traced(planted(file, tmp_path / "bad.gguf", (name, flipped)), source).as_dict()["first_bad"]
    assert (found["layer"], found["point"], found["tensors"]) == (1, "expert.up", [name])
    assert found["cause"].startswith(f"{name}: one value differs from the source's, at [2, 1, 5]")
    assert found["cause"].endswith(f"(bit {bit} is flipped)")


def test_an_expert_that_no_token_selects(files: Files, tmp_path: Path) -> None:
    source, file = files("qwen3-moe", "plain", "f32")
    few = trace(file, source, tokens=1, routing=True, threads=1)
    idle = sorted(set(range(few.routing[1].experts)) - set(few.routing[1].model[0]))

    def change(values: Floats) -> Floats:
        values[idle[0]] = 0
        return values

    name = "blk.1.ffn_up_exps.weight"
    found = trace(planted(file, tmp_path / "bad.gguf", (name, change)), source, tokens=1, threads=1)
    assert found.first is None
    (one,) = found.unseen
    assert (one.layer, one.point, one.tensors) == (1, "expert.up", (name,))
    assert one.text == f"{name}: only expert {idle[0]} differs from the source's: zero"
