"""What all families share: taking every tensor once, reading a config with care, and the result of a part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf_tools.checkpoint import CONFIG, Checkpoint
from gguf_tools.errors import CheckpointError
from gguf_tools.spec import Model
from gguf_tools.tensors import Tensor


@dataclass(frozen=True)
class Family:
    """A family of checkpoints: `matches` looks at tensor names and shapes only; `build` makes the Model."""

    name: str
    title: str
    matches: Callable[[Checkpoint], bool]
    build: Callable[[Checkpoint], Model]


class Inventory:
    """A checkpoint's tensors, each of which has to be taken; what is left over at the end is an error."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.tensors = checkpoint.tensors
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that must exist."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name} is missing; the checkpoint is incomplete, save it again")
        return self.tensors[name].shape

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor that must exist with this shape (None fits any length)."""
        found = self.shape(name)
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
            wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
            raise CheckpointError(
                f"{self.path}: tensor {name} has shape {found}, {wanted} expected from the tensors around it"
            )
        self.taken.add(name)
        return self.tensors[name]

    def ignore(self, pattern: str) -> int:
        """Count the names that match `pattern` whole, as handled elsewhere."""
        names = [name for name in self.tensors if re.fullmatch(pattern, name)]
        self.taken.update(names)
        return len(names)

    def finish(self) -> None:
        """Raise CheckpointError if a tensor was not taken."""
        left = sorted(set(self.tensors) - self.taken)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(
                f"{self.path}: tensor {left[0]}{more} has no place in the model that the other tensors describe; "
                "converting without it would change what the model computes"
            )


class Config:
    """Typed access to a config, and the notes on where it and the tensors disagree."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path / CONFIG
        self.values: Mapping[str, Any] = checkpoint.config
        self.notes: list[str] = []

    def number(self, key: str, default: float | None = None) -> float:
        """A number; CheckpointError if it is missing without a default, or is not a number."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value, "a number")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < 1:
            raise self.wrong(key, value, "a whole number above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object, or an empty one where the key is missing or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return value or {}

    def wrong(self, key: str, value: Any, expected: str) -> CheckpointError:
        """The error for a value that is missing or of the wrong kind."""
        found = "missing" if value is None else f"{value!r}"
        return CheckpointError(f"{self.path}: {key} is {found}, {expected} expected")

    def expect(self, key: str, actual: Any, *, where: str = "the tensors have") -> None:
        """Note a contradiction: the config states `key` and it is not what the tensors say."""
        stated = self.values.get(key)
        if stated is not None and stated != actual:
            self.note(f"config.json says {key} {stated}, {where} {actual}")

    def note(self, text: str) -> None:
        """Remember a sentence for the user, once."""
        if text not in self.notes:
            self.notes.append(text)


def layer_count(inventory: Inventory, prefix: str) -> int:
    """Number of layers named `prefix`N.…; CheckpointError where a number is left out."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = {int(match[1]) for name in inventory.tensors if (match := pattern.match(name))}
    missing = set(range(len(numbers))) - numbers
    if missing or not numbers:
        raise CheckpointError(
            f"{inventory.path}: tensors of layer {min(missing, default=0)} are missing ({prefix}{min(missing, default=0)}.…); "
            "the checkpoint is incomplete, save it again"
        )
    return len(numbers)
