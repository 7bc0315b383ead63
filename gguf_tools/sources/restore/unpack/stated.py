"""What a checkpoint's config says of its packed weights: a closed world of methods, keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint, read_json
from gguf_tools.sources.restore.unpack.base import Groups
from gguf_tools.tensors.base import Tensor

KEY = "quantization_config"
BESIDE = ("quantize_config.json", "quant_config.json")
"""Files in which AutoGPTQ and AutoAWQ wrote the same before transformers had the key in config.json."""
ORIGINAL = "convert the original checkpoint"


@dataclass(frozen=True)
class Stated:
    """The options of the quantizer, and the file (with the key) that states them."""

    where: str
    options: Mapping[str, Any]

    @property
    def method(self) -> str | None:
        """The name of the method (`quant_method`), in lower case."""
        found = self.options.get("quant_method")
        return found.lower() if isinstance(found, str) else None

    def require_known(self, what: str, known: Iterable[str]) -> None:
        """Raise UnsupportedError for the first option that is not in `known`: it may change what the numbers mean."""
        unknown = next((key for key in self.options if key not in known), None)
        if unknown is not None:
            raise UnsupportedError(
                f"{self.where}: has the option {unknown}, whose meaning for {what} weights is not known; {ORIGINAL}"
            )

    def choice(self, key: str, allowed: Iterable[object], default: object = None) -> Any:
        """The value of an option. Raises UnsupportedError if it is none of those allowed."""
        found = self.options.get(key)
        found = default if found is None else found
        plain = found.lower() if isinstance(found, str) else found
        names = tuple(allowed)
        if not any(plain == name and type(plain) is type(name) for name in names):
            wanted = " or ".join(map(str, names))
            raise UnsupportedError(f"{self.where}: {key} is {found!r}; expected {wanted}; {ORIGINAL}")
        return plain

    def agree(self, key: str, found: int, name: str) -> None:
        """Raise CheckpointError if an option is stated and is not `found`, which the shapes of the weight `name` say."""
        said = self.options.get(key)
        if said is not None and said != found:
            raise CheckpointError(
                f"{self.where}: {key} is {said!r}, but the tensors of {name} have {found}; download the checkpoint again"
            )


def stated(checkpoint: Checkpoint) -> Stated:
    """The options in the config, or in a file of an older program beside it; empty if there are none."""
    found = checkpoint.config.get(KEY)
    if isinstance(found, Mapping):
        return Stated(f"{checkpoint.path / CONFIG}: {KEY}", found)
    for name in BESIDE:
        path: Path = checkpoint.folder / name
        if checkpoint.path.is_dir() and path.exists():
            return Stated(str(path), read_json(path))
    return Stated(f"{checkpoint.path / CONFIG}: {KEY}", {})


def misfit(checkpoint: Checkpoint, name: str, tensor: Tensor, expected: str) -> CheckpointError:
    """The error for a tensor whose type or shape does not fit the others of its weight."""
    return CheckpointError(
        f"{checkpoint.path}: tensor {name} is {tensor.dtype} of shape {tensor.shape}; expected {expected}; download the "
        "checkpoint again"
    )


def beside(checkpoint: Checkpoint, stem: str, last: str, packed: str) -> Tensor:
    """The tensor `stem`.`last`. Raises CheckpointError if it is missing beside the tensor `packed`."""
    found = checkpoint.tensors.get(f"{stem}.{last}")
    if found is None:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {stem}.{last} is missing beside {packed}; download the checkpoint again"
        )
    return found


def groups_of(checkpoint: Checkpoint, name: str, scale: Tensor, columns: int, count: int) -> Groups:
    """The equal groups of `columns` columns that `count` scales in a row stand for. Raises CheckpointError if none fit."""
    if not count or columns % count:
        raise misfit(checkpoint, name, scale, f"a scale for each of equal groups of the {columns} columns")
    return Groups(columns, columns // count)
