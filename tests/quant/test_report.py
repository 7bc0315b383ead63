"""The sum of choices."""

from __future__ import annotations

import json

from quant.recipes import ModelFacts, TensorFacts, assign, recipe
from quant.report import FallBack, TypeShare, summarize


def test_summary() -> None:
    tensors = [
        TensorFacts("output.weight", (512, 640)),
        TensorFacts("token_embd.weight", (512, 640)),
        TensorFacts("blk.0.attn_k.weight", (64, 640)),
        TensorFacts("blk.0.ffn_up.weight", (1024, 256)),
        TensorFacts("blk.0.attn_norm.weight", (640,)),
    ]
    wanted = recipe("q4_k_m")
    report = summarize(
        wanted, tensors, assign(wanted, ModelFacts(arch="llama", n_layer=1, n_head=4, n_head_kv=4), tensors)
    )
    assert report.types == (
        TypeShare("q8_0", 1, 327680, 348160),
        TypeShare("q5_0", 2, 368640, 253440),
        TypeShare("q4_K", 1, 262144, 147456),
        TypeShare("f32", 1, 640, 2560),
    )
    why = "rows of 640 are not a multiple of 256"
    assert report.fall_backs == (
        FallBack("q6_K", "q8_0", why, ("output.weight",)),
        FallBack("q4_K", "q5_0", why, ("token_embd.weight", "blk.0.attn_k.weight")),
    )
    assert (report.fallen_back, report.kept, report.tensors) == (3, 1, 5)
    assert report.bytes == 348160 + 253440 + 147456 + 2560
    assert report.bits_per_weight == 8 * report.bytes / report.weights
    assert report.nominal_bits_per_weight == 4.5
    assert json.loads(json.dumps(report.as_dict()))["types"][0]["bytes"] == 348160


def test_nothing_to_sum() -> None:
    assert summarize(recipe("q8_0"), [], []).bits_per_weight == 0.0
