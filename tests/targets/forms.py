"""For each target, models in the very form that a file of it has, so that `lift(lower(model))` is the model.

Numbers are chosen so that float32 has them. Also the file that a model becomes, without writing one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.formats.gguf.header import Field, GGUFHeader, Metadata, ValueType, string
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.rope import FactorScaling, LinearScaling, LongRopeScaling, Rope, YarnScaling, default_magnitude
from gguf_tools.model.spec import (
    MLP,
    Attention,
    DeltaNet,
    GatedMLP,
    LayerSpec,
    Mamba2,
    Model,
    MoE,
    Norm,
    Router,
    SharedExpert,
    ShortConv,
)
from gguf_tools.targets.base import Lowered
from gguf_tools.targets.gpt_oss import GRAPH_CLAMP
from tests.random_model import CONTEXT, HIDDEN, random_model

EPS = 2.0**-17
NORM = Norm(EPS)
LAYER_NORM = Norm(EPS, centred=True, bias=True)
BARE = Norm(EPS, centred=True)
"""A layer norm without a bias."""
HALF, TURNED = Rope(1e4, 8), Rope(1e4, 8, "interleaved")
PARTIAL = Rope(500.0, 4)
FACTORS = FactorScaling((1.0, 2.0, 0.5, 8.0))
YARN = YarnScaling(factor=4.0, original_context=16, attention_factor=default_magnitude(4.0))
FREE = Attention(heads=4, kv_heads=2, head_dim=8, rope=HALF)
"""Heads that are wider together than the model."""
SQUARE = Attention(heads=3, kv_heads=1, head_dim=8, rope=HALF)
QKV, ALL = frozenset("qkv"), frozenset("qkvo")
DENSE, BIASED = GatedMLP(20), GatedMLP(20, frozenset({"gate", "up", "down"}))
GELU = MLP(20, "gelu_tanh", frozenset({"up", "down"}))
GEGLU = GatedMLP(20, activation="gelu_tanh")
EXPERTS = MoE(4, 12, Router(top_k=2))
BARE_WEIGHTS = replace(EXPERTS, router=Router(top_k=2, normalised=False))
"""Experts whose weights are not renormalised."""
PLAIN_SHARED, GATED_SHARED = SharedExpert(24, gated=False), SharedExpert(28, gated=True)
SCORED = Router(top_k=2, score="sigmoid", score_bias=True, scale=2.5)
DELTA = DeltaNet(key_heads=2, value_heads=6, key_dim=8, value_dim=8, kernel=4, norm=NORM, decay="rate", l2_eps=EPS)
SPACE = Mamba2(heads=6, head_dim=8, groups=2, state=5, kernel=3, norm=NORM, decay="rate", conv_bias=True)
ROOT = math.sqrt(HIDDEN)
SCALED = {"embedding_scale": 2.0, "logit_scale": 0.25}


def layer(mixer: Any, feed_forward: Any = DENSE, norm: Norm | None = NORM, **more: Any) -> LayerSpec:
    """A layer with the same norm before mixer and feed-forward."""
    return LayerSpec(mixer, feed_forward, norm, more.pop("ffn_norm", norm), **more)


def model(layers: Sequence[LayerSpec], **fields: Any) -> Model:
    """Random weights, in a model whose last norm is like the first."""
    first = next((one.mixer_norm or one.mixer_post_norm for one in layers), None) or NORM
    return random_model(layers, **{"output_norm": first, "tied": False, **fields})


def posts(mixer: Any, feed_forward: Any = DENSE, **more: Any) -> LayerSpec:
    """A layer with norms after mixer and feed-forward."""
    return layer(mixer, feed_forward, mixer_post_norm=NORM, ffn_post_norm=NORM, **more)


def gemma(layers: Sequence[LayerSpec], **fields: Any) -> Model:
    return model(layers, embedding_scale=ROOT, **{"tied": True, **fields})


def scaled(spec: LayerSpec) -> LayerSpec:
    """A layer with a scale of what it adds, and of its attention scores."""
    mixer = replace(spec.mixer, scale=0.25) if isinstance(spec.mixer, Attention) else spec.mixer
    return replace(spec, mixer=mixer, residual_scale=0.5)


NARROW = replace(FREE, scale=8**-0.5)
CAPPED = replace(NARROW, softcap=32.0)
NORMED = replace(FREE, qk_norm=NORM)
GATED = replace(NORMED, gated=True, rope=PARTIAL)
LLAMA = replace(FREE, rope=TURNED)
SINKS = replace(FREE, sinks=True, bias=ALL)
WHOLE = replace(SQUARE, qk_norm=NORM, norm_whole=True)
OSS = MoE(4, 12, Router(top_k=2, logit_bias=True), bias=frozenset({"gate", "up", "down"}), clamped=GRAPH_CLAMP)
LONG = LongRopeScaling(short=(1.0, 1.5), long=(2.0, 4.0), original_context=16, attention_factor=1.25)
SHARED = replace(EXPERTS, shared=GATED_SHARED)
CONV = ShortConv(3)
SQUARE_NORMED = replace(SQUARE, qk_norm=NORM)


def _window(mixer: Attention, window: int = 5, **changes: Any) -> Attention:
    return replace(mixer, window=window, **changes)


FORMS: dict[str, list[Model]] = {
    "apertus": [
        model([layer(replace(NORMED, bias=bias, rope=replace(HALF, scaling=scaling)), MLP(20, "xielu"))] * 2)
        for bias, scaling in ((ALL, FACTORS), (frozenset("v"), LinearScaling(2.5)), (frozenset(), None))
    ],
    "bloom": [
        model(
            [layer(replace(SQUARE, rope=None, alibi=8.0, bias=ALL), GELU, LAYER_NORM)] * 2,
            embedding_norm=LAYER_NORM,
            tied=tied,
        )
        for tied in (True, False)
    ],
    "cohere2": [
        model([layer(mixer, DENSE, BARE, ffn_norm=None, parallel=True) for mixer in mixers], tied=True, logit_scale=0.5)
        for mixers in (
            [_window(replace(SQUARE, rope=TURNED, bias=QKV)), replace(SQUARE, rope=None, bias=QKV)],
            [replace(SQUARE, rope=None), replace(SQUARE, rope=replace(TURNED, dims=4))],
            [_window(replace(SQUARE, rope=TURNED), CONTEXT - 1)],
        )
    ],
    "command-r": [
        model(
            [
                layer(
                    replace(SQUARE, rope=replace(rope, pairs="interleaved")), DENSE, BARE, ffn_norm=None, parallel=True
                )
            ],
            tied=True,
            logit_scale=scale,
        )
        for rope, scale in ((HALF, 0.5), (PARTIAL, 1.0))
    ],
    "ernie4_5-moe": [
        model([layer(LLAMA), layer(LLAMA), layer(LLAMA, replace(EXPERTS, router=router, shared=shared))])
        for router, shared in (
            (Router(top_k=2, score_bias=True), PLAIN_SHARED),
            (Router(top_k=2), None),
        )
    ],
    "falcon-h1": [
        model([layer(replace(FREE, bias=QKV, rope=rope), BIASED, beside=replace(SPACE, norm=norm))] * 2, tied=tied)
        for rope, norm, tied in ((HALF, NORM, True), (PARTIAL, None, False))
    ],
    "gemma": [gemma([layer(replace(FREE, bias=bias), GEGLU)] * 2) for bias in (QKV, frozenset())],
    "gemma2": [
        gemma([posts(_window(CAPPED), GEGLU), posts(CAPPED, GEGLU)], logit_softcap=16.0),
        gemma([posts(CAPPED, GEGLU)], logit_softcap=16.0),
        gemma([posts(replace(CAPPED, scale=6**-0.5), GEGLU)] * 46, logit_softcap=16.0),
    ],
    "gemma3": [
        gemma([posts(mixer, GEGLU) for mixer in mixers], tied=tied, logit_softcap=cap)
        for mixers, tied, cap in (
            (
                [
                    _window(replace(NARROW, qk_norm=NORM, rope=Rope(100.0, 8))),
                    replace(NARROW, qk_norm=NORM, rope=replace(HALF, scaling=LinearScaling(8.0))),
                ],
                True,
                None,
            ),
            ([_window(replace(NARROW, qk_norm=NORM, rope=Rope(100.0, 8)))], False, 16.0),
            ([replace(NARROW, qk_norm=NORM, rope=replace(HALF, scaling=YARN))], False, None),
            ([replace(NARROW, qk_norm=NORM, scale=6**-0.5)] * 62, True, None),
        )
    ],
    "glm4": [
        model([posts(replace(FREE, rope=replace(PARTIAL, pairs="interleaved"), bias=QKV))] * 2, tied=tied)
        for tied in (True, False)
    ],
    "glm4moe": [
        model(
            [layer(replace(mixer, rope=PARTIAL)) for _ in range(dense)] + [layer(replace(mixer, rope=PARTIAL), moe)] * 2
        )
        for mixer, dense, moe in (
            (NORMED, 1, replace(EXPERTS, router=SCORED, shared=PLAIN_SHARED)),
            (
                FREE,
                0,
                replace(EXPERTS, router=replace(SCORED, normalised=False, scale=1.0), shared=SharedExpert(12, False)),
            ),
            (FREE, 2, replace(EXPERTS, router=replace(SCORED, score="softmax"), shared=PLAIN_SHARED)),
        )
    ],
    "gpt2": [
        model([layer(replace(SQUARE, rope=None, bias=ALL), GELU, LAYER_NORM)] * 2, positions=CONTEXT, tied=tied)
        for tied in (True, False)
    ],
    "gpt-oss": [
        model([layer(_window(SINKS), OSS), layer(SINKS, OSS)]),
        model([layer(replace(SINKS, rope=replace(HALF, scaling=YARN)), OSS)]),
    ],
    "gptneox": [
        model([layer(replace(SQUARE, rope=PARTIAL, bias=ALL), GELU, LAYER_NORM, parallel=parallel)] * 2)
        for parallel in (True, False)
    ],
    "granite": [
        model([scaled(layer(replace(LLAMA, bias=ALL), BIASED))] * 2, tied=True, **SCALED),
        model([scaled(layer(replace(FREE, rope=None)))], **SCALED),
        model([scaled(layer(replace(LLAMA, rope=replace(TURNED, scaling=FACTORS)), EXPERTS))], **SCALED),
    ],
    "granitehybrid": [
        model([scaled(layer(SPACE, ffn)), scaled(layer(mixer, ffn)), scaled(layer(SPACE, ffn))], **SCALED)
        for mixer, ffn in (
            (LLAMA, replace(EXPERTS, shared=PLAIN_SHARED)),
            (replace(FREE, rope=None), EXPERTS),
            (LLAMA, DENSE),
        )
    ],
    "granite_swa": [
        model([layer(mixer, ffn) for mixer in mixers])
        for mixers, ffn in (
            ([_window(replace(LLAMA, sinks=True, bias=ALL)), replace(LLAMA, sinks=True, bias=ALL)], BIASED),
            ([_window(LLAMA, CONTEXT - 1)], EXPERTS),
        )
    ],
    "granitemoe": [
        model([scaled(layer(LLAMA, replace(EXPERTS, shared=shared)))] * 2, **SCALED) for shared in (PLAIN_SHARED, None)
    ],
    "hunyuan-dense": [
        model([layer(replace(NORMED, norm_after_rope=True, bias=QKV))] * 2, tied=tied) for tied in (True, False)
    ],
    "lfm2": [model([layer(CONV), layer(SQUARE_NORMED), layer(CONV)], tied=tied) for tied in (True, False)],
    "lfm2moe": [
        model([layer(CONV), layer(SQUARE_NORMED, moe), layer(CONV, moe)])
        for moe in (
            replace(EXPERTS, router=replace(SCORED, scale=1.0)),
            replace(EXPERTS, router=Router(top_k=2, score_bias=True)),
        )
    ],
    "llama": [
        model([layer(replace(LLAMA, bias=ALL), BIASED)] * 2, tied=True),
        model([layer(replace(LLAMA, rope=replace(TURNED, scaling=FACTORS)), EXPERTS)] * 2),
        model([layer(replace(LLAMA, rope=replace(TURNED, scaling=LinearScaling(2.5))))]),
    ],
    "mamba2": [
        *(model([layer(SPACE, None, ffn_norm=None)] * 2, tied=tied) for tied in (True, False)),
        model([layer(replace(SPACE, heads=1, head_dim=1, groups=1), None, ffn_norm=None)]),
    ],
    "nemotron": [
        model([layer(replace(SQUARE, rope=PARTIAL, bias=bias), MLP(20, "relu2", biases), LAYER_NORM)] * 2)
        for bias, biases in ((ALL, frozenset({"up", "down"})), (frozenset("k"), frozenset({"down"})))
    ],
    "olmo": [
        model(
            [layer(replace(SQUARE, rope=TURNED, clip=clip, bias=QKV), DENSE, Norm(EPS, centred=True, weighted=False))]
            * 2,
            tied=tied,
        )
        for clip, tied in ((0.5, True), (None, False))
    ],
    "olmo2": [
        model([posts(mixer, norm=None) for mixer in mixers])
        for mixers in (
            [_window(WHOLE), replace(WHOLE, rope=replace(HALF, scaling=LinearScaling(2.5)))],
            [WHOLE, WHOLE],
        )
    ],
    "olmoe": [model([layer(replace(WHOLE, kv_heads=3, bias=QKV), BARE_WEIGHTS)] * layers) for layers in (2, 1)],
    "phi2": [
        model(
            [layer(replace(SQUARE, rope=PARTIAL, bias=ALL), GELU, LAYER_NORM, ffn_norm=None, parallel=True)] * 2,
            output_bias=True,
        )
    ],
    "phi3": [
        model([layer(replace(SQUARE, bias=QKV, rope=replace(PARTIAL, scaling=scaling)))] * layers, tied=tied)
        for scaling, tied, layers in ((LONG, False, 2), (None, True, 2), (None, False, 1))
    ],
    "qwen2": [
        model([layer(replace(SQUARE, bias=bias))] * 2, tied=tied) for bias, tied in ((QKV, False), (frozenset(), True))
    ],
    "qwen2moe": [model([layer(replace(SQUARE, bias=QKV), replace(BARE_WEIGHTS, shared=GATED_SHARED))] * 2)],
    "qwen3": [
        model([layer(replace(NORMED, bias=bias))] * 2, tied=tied) for bias, tied in ((QKV, False), (frozenset(), True))
    ],
    "qwen3moe": [model([layer(replace(NORMED, bias=QKV), EXPERTS)] * 2)],
    "qwen35": [model([layer(GATED), layer(DELTA), layer(DELTA)], tied=tied) for tied in (True, False)],
    "qwen35moe": [model([layer(DELTA, SHARED), layer(replace(GATED, bias=QKV), SHARED)])],
    "qwen3next": [
        model(
            [layer(DELTA, SHARED), layer(replace(GATED, bias=bias), replace(SHARED, shared=SharedExpert(width, True)))]
        )
        for bias, width in ((QKV, 28), (frozenset(), 16))
    ],
    "smollm3": [
        model([layer(replace(LLAMA, bias=QKV, rope=rope)) for rope in (TURNED, TURNED, TURNED, None, TURNED)]),
        model([layer(LLAMA)], tied=True),
    ],
    "stablelm": [
        model([layer(replace(SQUARE, rope=PARTIAL, bias=QKV), DENSE, LAYER_NORM)] * 2),
        model([layer(replace(SQUARE, rope=PARTIAL), DENSE, LAYER_NORM, ffn_norm=None, parallel=True)] * 2),
    ],
    "starcoder2": [
        model([layer(replace(SQUARE, bias=ALL), GELU, LAYER_NORM)] * 2, tied=tied) for tied in (True, False)
    ],
    "step35": [
        model([layer(_window(mixer)), layer(mixer, replace(EXPERTS, router=router, shared=SharedExpert(12, False)))])
        for mixer, router in (
            (replace(NORMED, rope=PARTIAL, bias=QKV), SCORED),
            (replace(FREE, value_dim=6), Router(top_k=2, selection_bias=True)),
            (FREE, Router(top_k=2, normalised=False)),
            (FREE, Router(top_k=2, score_bias=True, scale=2.5)),
        )
    ]
    + [model([layer(FREE)])],
}
CASES = [(name, n) for name, models in FORMS.items() for n in range(len(models))]


def stored(lowered: Lowered) -> GGUFSource:
    """The file that a lowered model becomes, with numbers rounded as the file has them."""
    metadata: Metadata = {"general.architecture": string(lowered.architecture)}
    metadata |= {key: _rounded(field) for key, field in lowered.metadata.items()}
    header = GGUFHeader(
        path=Path("made.gguf"), metadata=metadata, tensors=(), data_offset=0, alignment=32, head=bytearray()
    )
    return GGUFSource(header, {one.name: one.tensor for one in lowered.tensors})


def _rounded(field: Field) -> Field:
    """A field of float32 numbers rounded to them."""
    if ValueType.FLOAT32 not in (field.type, field.element):
        return field
    values = field.value if isinstance(field.value, tuple) else (field.value,)
    found = struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values))
    return Field(field.type, found if isinstance(field.value, tuple) else found[0], field.element)
