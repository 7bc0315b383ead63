"""LoRA adapters: adapter_config.json and the names and shapes of the weights, merged into a small base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.mutate import mutate_bytes, mutate_json
from fuzzing.target import Prepared, Target
from gguf_tools.errors import CheckpointError
from gguf_tools.sources.adapters.adapter import assigned
from gguf_tools.sources.adapters.config import CONFIG, read_config
from gguf_tools.sources.adapters.merge import merge_adapters
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Filled

PREFIX = "base_model.model.model."
BASE = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.q_proj.weight": (8, 8),
    "model.layers.0.q_proj.bias": (8,),
    "model.layers.0.up_proj.weight": (16, 8),
    "model.layers.0.mlp.experts.gate_up_proj": (2, 8, 32),
    "model.layers.0.mlp.experts.down_proj": (2, 16, 8),
}
CONFIGS: tuple[dict[str, Any], ...] = (
    {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_bias": True, "base_model_name_or_path": "a/b"},
    {
        "peft_type": "LORA",
        "r": 2,
        "use_dora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"^model.*up": 1.5},
    },
    {
        "peft_type": "LORA",
        "r": 2,
        "use_rslora": True,
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
    {"peft_type": "LORA", "r": 2, "trainable_token_indices": {"embed_tokens": [1, 2]}, "ensure_weight_tying": True},
)
SHAPES: tuple[dict[str, list[int]], ...] = (
    {
        "layers.0.q_proj.lora_A.weight": [2, 8],
        "layers.0.q_proj.lora_B.weight": [8, 2],
        "layers.0.q_proj.lora_B.bias": [8],
        "embed_tokens.lora_embedding_A": [2, 12],
        "embed_tokens.lora_embedding_B": [8, 2],
    },
    {
        "layers.0.up_proj.lora_A.weight": [2, 8],
        "layers.0.up_proj.lora_B.weight": [16, 2],
        "layers.0.up_proj.lora_magnitude_vector": [16],
    },
    {
        "layers.0.mlp.experts.base_layer.lora_A.weight": [4, 8],
        "layers.0.mlp.experts.base_layer.lora_B.weight": [32, 4],
        "layers.0.mlp.experts.lora_A.weight": [4, 16],
        "layers.0.mlp.experts.lora_B.weight": [8, 4],
    },
    {"embed_tokens.token_adapter.trainable_tokens_delta": [2, 8], "embed_tokens.weight": [13, 8]},
)
KEYS = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias", "bias"),
    *("fan_in_fan_out", "trainable_token_indices", "ensure_weight_tying", "init_lora_weights", "layer_replication"),
)
VALUES: tuple[Any, ...] = (
    "LORA",
    "LOHA",
    True,
    False,
    None,
    0,
    1,
    2,
    -1,
    1.5,
    1e300,
    "pissa",
    "(a|b)+",
    r"layers.\d+.q_proj",
    [1],
    {},
)


def _mutated(data: bytes, rng: Random) -> bytes:
    """The config changed, or the name or shape of a tensor."""
    try:
        document = json.loads(data)
        if rng.random() < 0.5:
            document["config"] = mutate_json(document["config"], rng, KEYS, VALUES, VALUES)
        else:
            shapes = document["shapes"]
            name = rng.choice(sorted(shapes))
            other = rng.choice([part for each in SHAPES for part in each])
            sizes = (0, 1, 2, 8, 12, 16)
            shapes[rng.choice([name, other, name.replace("layers.0", "layers.1")])] = [
                rng.choice(sizes) for _ in range(rng.choice((1, 2, 2, 2, 3)))
            ]
        return json.dumps(document).encode()
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
        return mutate_bytes(data, rng)


def _prepare(folder: Path) -> Prepared:
    base = Checkpoint(
        path=folder,
        config={"tie_word_embeddings": True, "vocab_size": 12},
        tensors={name: Filled(shape, 0.5) for name, shape in BASE.items()},
        weight_files=(),
        metadata={},
    )

    def read(data: bytes) -> bool:
        try:
            document = json.loads(data)
            text = json.dumps(document["config"])
            stated = {str(name): tuple(map(int, shape)) for name, shape in dict(document["shapes"]).items()}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CheckpointError("not an input of this target") from error
        (folder / CONFIG).write_text(text, "utf-8")
        shapes = {name: shape for name, shape in stated.items() if all(0 <= n <= 64 for n in shape) and len(shape) < 5}
        tensors = {PREFIX + name: Filled(shape, 0.25) for name, shape in shapes.items()}
        adapter = assigned(folder, read_config(folder), (folder / CONFIG, folder / "weights"), tensors)
        merged = merge_adapters(replace(base, adapters=(adapter,)))
        for tensor in merged.tensors.values():
            assert tensor.array().shape == tensor.shape
        return True

    seeds = [
        json.dumps({"config": config, "shapes": shapes}).encode()
        for config, shapes in zip(CONFIGS, SHAPES, strict=True)
    ]
    return Prepared(seeds, read)


TARGETS = (
    Target(
        name="adapter",
        title="LoRA adapters of PEFT, merged into a base",
        prepare=_prepare,
        mutate=_mutated,
        executions=200_000,
    ),
)
