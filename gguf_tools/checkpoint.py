"""Sources: folders in Hugging Face layout, opened lazily and checked as far as their headers go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.safetensors_file import read_safetensors
from gguf_tools.tensors import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A source's tensors by their own names, its config and its files; nothing is read before it is asked for."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weight_files: tuple[Path, ...]
    metadata: Mapping[str, str]

    def digest(self, cancelled: Callable[[], bool] = lambda: False) -> str:
        """SHA-256 over config and weight files, names included, in hexadecimal; cut short once `cancelled`."""
        total = hashlib.sha256()
        config = self.path / CONFIG
        for path in (*([config] if config.exists() else []), *self.weight_files):
            total.update(path.name.encode() + b"\0")
            with path.open("rb") as stream:
                while not cancelled() and (piece := stream.read(1 << 20)):
                    total.update(piece)
        return total.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; CheckpointError naming the file and the place otherwise."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); the folder must hold it") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); mend or download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, a JSON object expected")
    return data


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder in Hugging Face layout: config.json, and safetensors weights in one file or sharded with an index.

    Raises CheckpointError naming the file, tensor or key that is missing or broken.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give a folder with config.json and safetensors weights")
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a file; give the folder that holds config.json and the safetensors weights")
    config = read_json(path / CONFIG)
    index = path / INDEX
    if (path / SINGLE).exists() or not index.exists():
        tensors, metadata = read_safetensors(_only_weights(path))
        return Checkpoint(path, config, tensors, (_only_weights(path),), metadata)
    return _open_sharded(path, config, index)


def _only_weights(path: Path) -> Path:
    if (path / SINGLE).exists():
        return path / SINGLE
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} safetensors files without {INDEX}" if found else "no safetensors weights"
    raise CheckpointError(f"{path}: holds {what}; {SINGLE}, or shards with {INDEX}, expected")


def _open_sharded(path: Path, config: Mapping[str, Any], index: Path) -> Checkpoint:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    shards: dict[str, Mapping[str, Tensor]] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        # The name comes from a file: it must not lead out of the folder.
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{index}: names the shard {shard!r}, which is not a plain file name")
        if not (path / shard).exists():
            raise CheckpointError(f"{path / shard}: missing; {INDEX} names it as a shard; download it again")
        tensors, found = read_safetensors(path / shard)
        shards[shard] = tensors
        metadata |= found
    merged: dict[str, Tensor] = {}
    for name, shard in weight_map.items():
        if name not in shards[str(shard)]:
            raise CheckpointError(f"{path / str(shard)}: tensor {name} is missing, though {INDEX} places it there")
        merged[name] = shards[str(shard)][name]
    unlisted = [name for tensors in shards.values() for name in tensors if name not in merged]
    if unlisted:
        raise CheckpointError(
            f"{index}: does not list the tensor {unlisted[0]}, which a shard holds; the files do not agree"
        )
    return Checkpoint(path, config, merged, tuple(path / shard for shard in shards), metadata)
