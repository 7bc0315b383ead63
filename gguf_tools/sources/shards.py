"""The tensors of several shards as an index lists them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.sources.tying import ties
from gguf_tools.tensors.base import Tensor, same_values

TIED = ("lm_head.weight", "embed_tokens.weight")
"""How the names of the output projection and the token embedding end, which may be one tensor."""


def merge_shards(
    path: Path,
    index: Path,
    weight_map: Mapping[str, object],
    shards: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The shards' tensors in the order of the index, and a note if the index lists a tied tensor that no shard holds.

    Raises CheckpointError if index and shards disagree about any other tensor, or shards among themselves.
    """
    merged: dict[str, Tensor] = {}
    notes: tuple[str, ...] = ()
    for name, shard in weight_map.items():
        tensor = shards[str(shard)].get(name)
        if tensor is not None:
            merged[name] = tensor
        elif name.endswith(TIED) and ties(config):
            notes = (f"{index.name} lists {name}, but no shard holds it: it is tied to the token embedding",)
        else:
            raise CheckpointError(
                f"{path / str(shard)}: tensor {name} is missing, though {index.name} lists it there; download the file again"
            )
    _refuse_twice(path, weight_map, shards)
    unlisted = [name for tensors in shards.values() for name in tensors if name not in merged]
    if unlisted:
        raise CheckpointError(
            f"{index}: does not list tensor {unlisted[0]}, which a shard holds; download index and shards again"
        )
    return merged, notes


def _refuse_twice(path: Path, weight_map: Mapping[str, object], shards: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise CheckpointError for a tensor that two shards hold with different values: which one is read differs by program."""
    for shard, tensors in shards.items():
        for name in tensors.keys() & weight_map.keys():
            listed = str(weight_map[name])
            other = shards[listed].get(name)
            if listed != shard and other is not None and not same_values(tensors[name], other):
                raise CheckpointError(
                    f"{path / shard}: tensor {name} has other values than in {listed}, where the index lists it; download both"
                )
