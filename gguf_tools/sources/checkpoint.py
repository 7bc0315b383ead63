"""Sources: folders in Hugging Face layout and torch state dicts, opened lazily and checked as far as their headers go."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.safetensors import read_safetensors
from gguf_tools.formats.state_dict import SUFFIXES, read_state_dict, state_dict_files, without_prefix
from gguf_tools.tensors.base import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A source's tensors by their own names, its config and its files; nothing is read before it is asked for.

    `path` is what was opened, a folder or a file; `notes` are sentences for the user about what was left out there or
    restored (`gguf_tools.sources.restore`).
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weight_files: tuple[Path, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where config, tokenizer and model card lie: the folder opened, or the one that holds the file."""
        return self.path if self.path.is_dir() else self.path.parent

    def with_context_length(self, tokens: int) -> Checkpoint:
        """The checkpoint with another context length than its config states, under the keys that families read."""
        return replace(self, config={**self.config, **dict.fromkeys(CONTEXT_KEYS, tokens)})

    def digest(self, cancelled: Callable[[], bool] = lambda: False) -> str:
        """SHA-256 over config and weight files, names included, in hexadecimal; cut short once `cancelled`."""
        total = hashlib.sha256()
        config = self.folder / CONFIG
        for path in (*([config] if config.exists() else []), *self.weight_files):
            total.update(path.name.encode() + b"\0")
            try:
                with path.open("rb") as stream:
                    while not cancelled() and (piece := stream.read(1 << 20)):
                        total.update(piece)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read any more ({error.strerror}); begin again") from error
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

    A torch state dict is opened as a file or as the only one in a folder without safetensors, a safetensors file by
    itself too; both may lack config.json.

    Raises CheckpointError naming the file, tensor or key that is missing or broken.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give a folder with config.json and safetensors weights")
    if not path.is_dir():
        return _open_file(path)
    _refuse_adapter(path)
    index = path / INDEX
    if not index.exists() and not any(path.glob("*.safetensors")) and (files := state_dict_files(path)):
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:4])
            raise CheckpointError(f"{path}: holds {len(files)} torch files ({names}); give the one that is meant")
        return replace(_open_file(files[0]), path=path)
    config = read_json(path / CONFIG)
    if (path / SINGLE).exists() or not index.exists():
        tensors, metadata = read_safetensors(_only_weights(path))
        return Checkpoint(
            path=path,
            config=config,
            tensors=without_prefix(tensors),
            weight_files=(_only_weights(path),),
            metadata=metadata,
        )
    return _open_sharded(path, config, index)


def _open_file(path: Path) -> Checkpoint:
    beside = path.parent / CONFIG
    config = read_json(beside) if beside.exists() else {}
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return Checkpoint(
            path=path, config=config, tensors=without_prefix(tensors), weight_files=(path,), metadata=metadata
        )
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path}: is a file, but no torch state dict ({', '.join(SUFFIXES)}) and no safetensors; give such a file, or a "
            "folder that holds config.json and the weights"
        )
    found = read_state_dict(path)
    notes = (f"{path.name} also holds {', '.join(found.left_out)}: left out",) if found.left_out else ()
    # What was saved together with the weights knows them better than a file beside them.
    return Checkpoint(
        path=path,
        config={**config, **found.config},
        tensors=found.tensors,
        weight_files=(path,),
        metadata={},
        notes=notes,
    )


def _refuse_adapter(path: Path) -> None:
    adapter = path / "adapter_config.json"
    if not adapter.exists() or (path / SINGLE).exists() or (path / INDEX).exists():
        return
    base = read_json(adapter).get("base_model_name_or_path") or "its base model"
    raise UnsupportedError(
        f"{path}: is an adapter (adapter_config.json), not a model; merge it into {base} first (peft: merge_and_unload, "
        "then save_pretrained) and convert the result"
    )


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
        if not os.path.exists(path / shard):  # Path.exists raises for names that are too long
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
    return Checkpoint(
        path=path,
        config=config,
        tensors=without_prefix(merged),
        weight_files=tuple(path / shard for shard in shards),
        metadata=metadata,
    )
