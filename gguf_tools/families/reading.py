"""Reads a checkpoint strictly: `Inventory` for its tensors, `Config` for typed access to config.json, with notes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import shortened

MIN_FLOAT32, MAX_FLOAT32 = float.fromhex("0x1p-126"), float.fromhex("0x1.fffffep127")
"""The least and the largest size of a number that float32 holds with all its digits."""


class Inventory:
    """A checkpoint's tensors. A family takes every one of them; `finish` raises an error for those left over."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.tensors = checkpoint.tensors
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str, rank: int = 2) -> tuple[int, ...]:
        """The shape of a tensor. Raises CheckpointError if it is missing or does not have `rank` dimensions."""
        found = self._shape(name)
        if len(found) != rank:
            raise CheckpointError(f"{self.path}: tensor {name} has shape {found}; expected {rank} dimensions")
        return found

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name} is missing; the checkpoint is incomplete, save it again")
        found = self.tensors[name].shape
        if 0 in found:
            raise CheckpointError(
                f"{self.path}: tensor {name} has shape {found}, which holds no weights; save the checkpoint again"
            )
        return found

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor `name`. Raises CheckpointError if it is missing or its shape is not `shape` (None: any length)."""
        found = self._shape(name)
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
            wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
            raise CheckpointError(
                f"{self.path}: tensor {name} has shape {found}; expected {wanted}, as the other tensors imply"
            )
        self.taken.add(name)
        return self.tensors[name]

    def ignore(self, pattern: str) -> int:
        """Mark the names that fully match the regex `pattern` as taken; returns how many there are."""
        names = [name for name in self.tensors if re.fullmatch(pattern, name)]
        self.taken.update(names)
        return len(names)

    def finish(self) -> None:
        """Raise CheckpointError if a tensor was not taken."""
        left = sorted(set(self.tensors) - self.taken)
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise CheckpointError(
                f"{self.path}: tensor {left[0]}{more} is not part of the model that the other tensors describe; "
                "converting without it would change what the model computes"
            )


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number that GGUF's float32 can hold: not a boolean, not infinite, not NaN.

    Neither is one so small that float32 rounds it to 0 or to few digits.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or MIN_FLOAT32 <= abs(value) <= MAX_FLOAT32


class Config:
    """Typed access to config.json, and notes on its contradictions with the tensors and on assumed values."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.config_file
        self.values: Mapping[str, Any] = checkpoint.config
        self.notes: list[str] = list(checkpoint.notes)

    def number(self, key: str, default: float | None = None) -> float:
        """A number of at least 0. Raises CheckpointError for any other value, or if it is missing without a default."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not is_number(value) or value < 0:
            raise self.wrong(key, value, "a number of at least 0")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0. Raises CheckpointError for any other value, or if it is missing without a default."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not is_number(value) or value <= 0:
            raise self.wrong(key, value, "a number above 0")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number above 0 that fits llama.cpp's int32. Raises CheckpointError otherwise."""
        value = self.values.get(key)
        if value is None and default is not None:
            value = default
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.wrong(key, value, "a whole number above 0, below 2^31")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean. Raises CheckpointError for any other value."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A JSON object; empty if the key is missing or null. Raises CheckpointError for any other value."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return value or {}

    def wrong(self, key: str, value: Any, expected: str) -> CheckpointError:
        """The error for a missing or unusable value; `expected` says what it should be."""
        found = "missing" if value is None else shortened(repr(value))
        return CheckpointError(f"{self.path}: {key} is {found}; expected {expected}")

    def assume(self, key: str, value: Any, why: str) -> None:
        """Use `value` if the config does not give `key`, and note it; `why` ends the note."""
        if all(
            place.get(key) is None
            for place in (self.values, self.mapping("rope_parameters"), self.mapping("rope_scaling"))
        ):
            self.values = {**self.values, key: value}
            self.note(f"{self.path.name} does not give {key}: {value} is assumed, {why}")

    def expect(self, key: str, actual: Any, *, where: str = "the tensors have") -> None:
        """Note a contradiction: the config states a value for `key` other than `actual`, which the tensors show."""
        stated = self.values.get(key)
        if stated is not None and stated != actual:
            self.note(f"{self.path.name} says {key} {stated}, but {where} {actual}")

    def refuse_unknown(self, known: Collection[str], whose: str) -> None:
        """Raise UnsupportedError for a key beyond `known`, those of the code that `whose` names, unless it is null or false."""
        for key, value in self.values.items():
            if key not in known and value not in (None, False):
                raise UnsupportedError(
                    f"{self.path}: {key} is a key that {whose} does not have, so that the model may compute something else; "
                    "leave it out if it does not"
                )

    def note(self, text: str) -> None:
        """Add a note for the user, unless it is there already."""
        text = shortened(text, 300)
        if text not in self.notes:
            self.notes.append(text)


def layer_number(prefix: str) -> int:
    """The layer's number in a tensor prefix: 3 for `model.layers.3.`."""
    return int(prefix.rstrip(".").rpartition(".")[2])


def layer_count(inventory: Inventory, prefix: str) -> int:
    """The number of layers named `prefix`N.…; raises CheckpointError if a layer in between is missing."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = {int(match[1]) for name in inventory.tensors if (match := pattern.match(name))}
    missing = set(range(len(numbers))) - numbers
    if missing or not numbers:
        raise CheckpointError(
            f"{inventory.path}: tensors of layer {min(missing, default=0)} are missing ({prefix}{min(missing, default=0)}.…); "
            "the checkpoint is incomplete, save it again"
        )
    return len(numbers)
