"""config.json and the tensors' shapes, of every family: what `build` accepts is converted as far as the file's header."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.mutate import VALUES, mutate_bytes, mutate_json
from fuzzing.target import Mutate, Prepared, Target
from gguf_tools.conversion.general_metadata import general_metadata
from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.families.base import Family
from gguf_tools.families.registry import build_model, own_families
from gguf_tools.formats.gguf.header import pack_header, read_header
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.formats.gguf.writer import layout
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint, read_json
from gguf_tools.targets.planner import plan
from gguf_tools.targets.registry import lift
from gguf_tools.tensors.base import Filled, Tensor
from quant.recipes import ModelFacts, TensorFacts, assign, recipe

KEYS = (
    *("model_type", "architectures", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *(
        "head_dim",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
    ),
    *("rope_parameters", "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "attention_factor"),
    *("original_max_position_embeddings", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
    *("partial_rotary_factor", "hidden_act", "tie_word_embeddings", "attention_bias", "mlp_bias", "sliding_window"),
    *(
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
    ),
    *(
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
    ),
    *("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim", "text_config"),
    *(
        "linear_conv_kernel_dim",
        "full_attention_interval",
        "quantization_config",
        "is_causal",
        "use_bidirectional_attention",
    ),
    *("max_seq_len", "attn_output_gate", "output_gate_type", "dtype", "eos_token_id", "bos_token_id", "pad_token_id"),
    *("quant_method", "bits", "group_size", "weight_block_size", "fmt", "mtp_num_hidden_layers", "vision_config"),
)
OWN: tuple[Any, ...] = (
    *("default", "linear", "dynamic", "yarn", "llama3", "longrope", "mrope", "silu", "swish", "gelu", "full_attention"),
    *(
        "linear_attention",
        "sliding_attention",
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
    ),
    *("qwen3_next", "qwen3_5", "qwen3_5_moe", "phi3", "gemma2", "fp8", 96, 48, 24, 288, 10000, 1e6, 4096, 131072),
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "linear", "factor": 2.0},
    {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
    ["full_attention", "linear_attention", "full_attention"],
    ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
)

RECIPE = recipe("q4_k_m")
MOST_WEIGHTS = 1 << 22
"""Of a tensor whose shape an input changes: more would have to lie in a file."""


def mutate(data: bytes, rng: Random) -> bytes:
    """The config changed, at times the shape or the place of a tensor too."""
    try:
        document = json.loads(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.2:
                _reshape(document["shapes"], rng)
            else:
                document["config"] = mutate_json(document["config"], rng, KEYS, (*VALUES, *OWN), OWN)
        return json.dumps(document).encode()
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
        return mutate_bytes(data, rng)


def _reshape(shapes: dict[str, Any], rng: Random) -> None:
    """Changes of tensors by the number that they have in the file: another shape, another's name, or none at all."""
    number = str(rng.randrange(80))
    if shapes and rng.random() < 0.3:
        shapes.pop(rng.choice(list(shapes)))
    else:
        sizes = (0, 1, 2, 4, 8, 16, 31, 32, 48, 64, 96, 128, 192, 288, 1 << 16)
        shape = [rng.choice(sizes) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
        shapes[number] = rng.choice(
            (None, shape, ["twice", rng.choice((0, 1))], ["half", rng.choice((0, 1))], f"x.{number}")
        )


def _changed(tensors: Mapping[str, Tensor], shapes: object) -> dict[str, Tensor]:
    """The tensors with the changes of an input; those of other shapes are constant."""
    found = dict(tensors)
    names = list(tensors)
    for number, change in shapes.items() if isinstance(shapes, dict) else ():
        if not number.isdigit() or int(number) >= len(names):
            continue
        name = names[int(number)]
        tensor = found.pop(name)
        if isinstance(change, str):
            found[change] = tensor
        elif isinstance(change, list):
            found[name] = Filled(_shape(tensor.shape, change), 0.5, tensor.dtype)
    return found


def _shape(shape: tuple[int, ...], change: list[Any]) -> tuple[int, ...]:
    """A shape from an input: its numbers, or the tensor's own with an axis twice or half as long."""
    if len(change) == 2 and change[0] in ("twice", "half") and change[1] in range(len(shape)):
        sizes = list(shape)
        sizes[change[1]] = sizes[change[1]] * 2 if change[0] == "twice" else sizes[change[1]] // 2
        return tuple(sizes)
    stated = tuple(size for size in change if type(size) is int and size >= 0)[:4]
    return stated if prod(stated) <= MOST_WEIGHTS else shape


def go_on(checkpoint: Checkpoint, model: Model, out: Path) -> None:
    """Plan and lower the model, choose types, and read the header that would be written as a model again.

    Raises AssertionError where tinyq does not understand a header that it writes itself.
    """
    lowered = plan(model).lower()
    metadata = general_metadata(model, checkpoint.folder, lowered.architecture) | lowered.metadata
    facts = ModelFacts.from_metadata({key: field.value for key, field in metadata.items()})
    tensors = {output.name: output.tensor for output in lowered.tensors}
    choices = assign(RECIPE, facts, [TensorFacts(name, tensor.shape) for name, tensor in tensors.items()])
    placed = layout((choice.name, tensors[choice.name].shape, choice.type) for choice in choices)
    with out.open("wb") as stream:
        stream.write(pack_header(metadata, placed.entries, placed.alignment))
        os.truncate(stream.fileno(), placed.size(metadata))
    try:
        lift(GGUFSource(read_header(out), tensors))
    except InputError as error:
        raise AssertionError("a header that was written is not understood") from error


def _family(family: Family, folder: Path) -> Prepared:
    """All variants of a family, each a seed."""
    assert family.tiny
    opened: dict[str, Checkpoint] = {}
    seeds = []
    for variant in family.variants:
        family.tiny(folder / variant, variant, 1)
        opened[variant] = open_checkpoint(folder / variant)
        config = opened[variant].config
        seeds.append(json.dumps({"variant": variant, "config": config, "shapes": {}}).encode())

    def read(data: bytes) -> bool:
        try:
            document = json.loads(data)
            checkpoint, config, shapes = opened[document["variant"]], document["config"], document["shapes"]
        except (ValueError, RecursionError, TypeError, LookupError):
            return False
        if not isinstance(config, dict):
            return False
        checkpoint = replace(checkpoint, config=config, tensors=_changed(checkpoint.tensors, shapes))
        model = build_model(checkpoint)
        with contextlib.suppress(UnsupportedError):
            go_on(checkpoint, model, folder / "out.gguf")
        return True

    return Prepared(seeds, read)


def _json(folder: Path) -> Prepared:
    path = folder / "config.json"

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return bool(read_json(path))

    return Prepared([b'{"a": [1, 2.5e3, true, null, "\\u00e9"]}', b"{}"], read)


_MUTATE: Mutate = mutate
TARGETS = (
    Target(name="config-bytes", title="config.json as text", prepare=_json, words=[b'"', b"[", b"{", b"NaN", b"1e999"]),
    *(
        Target(
            name=f"config-{family.name}",
            title=f"{family.title}: config, shapes, build, plan, lowering, header",
            prepare=partial(_family, family),
            mutate=_MUTATE,
            executions=50_000,
            short=40,
            longest=8192,
            deep=True,
        )
        for family in own_families()
        if family.tiny
    ),
)
