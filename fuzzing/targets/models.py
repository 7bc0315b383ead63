"""GGUF files of models: metadata and shapes, through inspection, quantization, surgery and surgery in place, planned."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.mutate import VALUES, mutate_bytes, mutate_json
from fuzzing.target import Prepared, Target
from gguf_tools.errors import InputError, OutputError
from gguf_tools.evaluation.reference_source import find_reference
from gguf_tools.families.registry import load_model, own_families
from gguf_tools.formats.gguf.header import Field, Metadata, ValueType, pack_header, place, read_header
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.inspection.report import inspect
from gguf_tools.quantization.plan import QuantizeRequest, prepare
from gguf_tools.targets.planner import plan
from gguf_tools.targets.registry import lift
from gguf_tools.verification.metadata import compare_metadata
from quant.errors import InputError as QuantInputError
from quant.types import TensorType, tensor_type
from surgery.donors import operate_recorded
from surgery.gguf.in_place import plan_in_place
from surgery.gguf.layers import open_layered
from surgery.gguf.rewrite import plan_gguf
from surgery.recipe import parse_text

MORE = (("llama", "yarn"), ("mixtral", "plain"), ("qwen2", "window"), ("qwen3", "window"), ("qwen3-next", "irregular"))
"""Variants beside the first of each target."""
RECIPES = (
    "swap(0:1)",
    "interpolate(0:1, 0.5) + delete(0) + duplicate(0)",
    "drop-experts(0..1:0)",
    "scale(0@0.5, only=ffn)",
)
SUFFIXES = (
    *(
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
    ),
    *("attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window"),
    *(
        "attention.sliding_window_pattern",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
    ),
    *(
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "expert_count",
        "expert_used_count",
        "expert_weights_scale",
    ),
    *("expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_gating_func", "expert_weights_norm"),
    *(
        "nextn_predict_layers",
        "attention.recurrent_layers",
        "full_attention_interval",
        "interleave_moe_layer_step",
        "vocab_size",
    ),
    *(
        "ssm.conv_kernel",
        "ssm.state_size",
        "ssm.group_count",
        "ssm.time_step_rank",
        "ssm.inner_size",
        "rope.dimension_sections",
    ),
    *(
        "expert_group_count",
        "leading_dense_block_count",
        "swiglu_clamp_exp",
        "attention.scale",
        "residual_scale",
        "logit_scale",
    ),
)
OTHERS = (
    *("general.architecture", "general.name", "general.alignment", "general.file_type", "split.count", "split.no"),
    *("tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id"),
    *(
        "tokenizer.chat_template",
        "tinyq.surgery",
        "tinyq.reserve",
        "tinyq.rewrites",
        "tinyq.notes",
        "tinyq.source.digest",
    ),
    *("tinyq.source.path", "tinyq.family", "tinyq.type"),
)
OWN: tuple[Any, ...] = (
    *(
        "llama",
        "qwen3",
        "qwen3moe",
        "qwen35",
        "qwen3next",
        "step35",
        "granite",
        "yarn",
        "linear",
        "none",
        "swap(0:1)",
        " " * 40,
    ),
    *(
        48,
        64,
        96,
        [True, False, True],
        [2, 2, 2],
        [0, 1, 2, 3],
        ["a", "b"],
        "F32",
        "Q4_K",
        "Q8_0",
        "BF16",
        [64, 64],
        [288, 64],
    ),
)


def _variants() -> tuple[tuple[str, str], ...]:
    """(family, variant): one that is converted exactly to each target, and `MORE`."""
    first: dict[str, tuple[str, str]] = {}
    for family in own_families():
        for variant, expected in family.variants.items():
            if family.tiny and expected.target and not expected.approximate and not expected.text_only:
                first.setdefault(expected.target, (family.name, variant))
    return tuple(dict.fromkeys((*first.values(), *MORE)))


def _document(family: str, variant: str, folder: Path) -> dict[str, Any]:
    """The metadata and the tensors' shapes of a converted variant; a value stands with its type."""
    found = next(one for one in own_families() if one.name == family)
    assert found.tiny
    found.tiny(folder, variant, 1)
    lowered = plan(load_model(folder)).lower()
    architecture = Field(ValueType.STRING, lowered.architecture)
    metadata = {"general.architecture": architecture} | lowered.metadata
    return {
        "metadata": {
            key: [field.type.name, list(field.value), field.element.name]
            if field.element is not None
            else [field.type.name, field.value]
            for key, field in metadata.items()
        },
        "tensors": [[output.name, list(output.tensor.shape), "F32"] for output in lowered.tensors],
    }


def mutate(data: bytes, rng: Random) -> bytes:
    """A value, a type, a key, or a tensor changed."""
    try:
        document = json.loads(data)
        for _ in range(rng.choice((1, 1, 2))):
            _change(document, rng)
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
        return mutate_bytes(data, rng)
    return json.dumps(document).encode()


def _change(document: dict[str, Any], rng: Random) -> None:
    """One change, in place; errors where the document is no longer of the form."""
    metadata, tensors = document["metadata"], document["tensors"]
    names = list(metadata)
    keys = [*(f"{metadata['general.architecture'][1]}.{suffix}" for suffix in SUFFIXES), *OTHERS]
    choice = rng.randrange(6)
    if choice < 2:
        key = rng.choice(names)
        kind = ValueType[metadata[key][0]] if rng.random() < 0.7 else None
        metadata[key] = _typed(rng.choice(OWN) if rng.random() < 0.3 else rng.choice(VALUES), kind)
    elif choice == 2:
        metadata[rng.choice(keys)] = _typed(rng.choice((*OWN, *VALUES)), None)
    elif choice == 3:
        metadata.pop(rng.choice(names))
    elif choice == 4:
        document["tensors"] = mutate_json(
            tensors, rng, (), (*VALUES, *OWN), (*OWN, *(name for name, *_ in tensors[:9]))
        )
    else:
        document["metadata"] = mutate_json(metadata, rng, keys, (*VALUES, *OWN), OWN)


def _typed(value: Any, kind: ValueType | None) -> list[Any]:
    """A value with a type that can hold it, `kind` where it can."""
    if isinstance(value, list):
        inner = {type(item) for item in value}
        element = {frozenset({bool}): "BOOL", frozenset({str}): "STRING"}.get(frozenset(inner), "INT32")
        return ["ARRAY", value, element]
    if isinstance(value, bool):
        return ["BOOL", value]
    if isinstance(value, str):
        return ["STRING", value]
    if isinstance(value, float):
        return [kind.name if kind in (ValueType.FLOAT32, ValueType.FLOAT64) else "FLOAT32", value]
    return [kind.name if kind else "UINT32", value]


def _metadata(document: dict[str, Any]) -> Metadata:
    return {
        str(key): Field(ValueType[kind], tuple(value) if element else value, ValueType[element[0]] if element else None)
        for key, (kind, value, *element) in document["metadata"].items()
    }


def _file(document: Any) -> tuple[bytes, int] | None:
    """The header of a document and the bytes of its data; None where no GGUF could say that."""
    try:
        metadata = _metadata(document)
        tensors: list[tuple[str, tuple[int, ...], TensorType]] = []
        for name, shape, kind in document["tensors"]:
            tensors.append((str(name), tuple(map(int, shape)), tensor_type(kind)))
        entries, count = place(tensors)
        header = pack_header(metadata, entries, 32)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        OverflowError,
        struct.error,
        QuantInputError,
    ):
        return None
    return (header, count) if 0 <= count < 1 << 40 else None


def _model(folder: Path) -> Prepared:
    path = folder / "model.gguf"
    recipes = [parse_text(text) for text in RECIPES]
    seeds = [
        json.dumps(_document(family, variant, folder / f"{n}")).encode()
        for n, (family, variant) in enumerate(_variants())
    ]
    expected = _metadata(json.loads(seeds[0]))

    def read(data: bytes) -> bool:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        made = _file(document)
        if made is None:
            return False
        header, count = made
        with path.open("wb") as stream:
            stream.write(header)
            os.truncate(stream.fileno(), len(header) + count)
        found = inspect(path)
        opened = read_header(path)
        with contextlib.suppress(InputError):
            lift(open_gguf(path))
        compare_metadata(opened, expected, dict(opened.metadata))
        with contextlib.suppress(InputError):
            find_reference(path, operate=operate_recorded)
        with contextlib.suppress(InputError):
            prepare(QuantizeRequest(source=path, type="q4_k_m", allow_requantize=True))
        file = open_layered(path)
        for recipe in recipes:
            with contextlib.suppress(InputError, OutputError):
                planned = plan_gguf(file, recipe)
                planned.file.header.rewritten(planned.changes, planned.entries[0])
                plan_in_place(planned)
        return not found.problems

    return Prepared(seeds, read)


TARGETS = (
    Target(
        name="gguf-model",
        title="GGUF of a model: inspected, quantized, operated on (planned)",
        prepare=_model,
        mutate=mutate,
        longest=16_000,
        executions=150_000,
        short=40,
        deep=True,
    ),
)
