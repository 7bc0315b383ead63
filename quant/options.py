"""The user's options for the types of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from quant.errors import InputError
from quant.types import TYPES, TensorType, tensor_type


@dataclass(frozen=True)
class Override:
    """`type` for tensors whose name matches the regular expression `pattern` (`re.search`)."""

    pattern: re.Pattern[str]
    type: TensorType

    @classmethod
    def parse(cls, text: str) -> Override:
        """An override from REGEX=TYPE. Raises InputError for a bad regex or a type that cannot be written."""
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise InputError(f"tensor type is {text!r}; expected REGEX=TYPE, such as ffn_down=q6_k")
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"tensor type {text!r}: {pattern!r} is not a regular expression: {error}") from None
        return cls(compiled, writable_type(name))


def writable_type(name: str) -> TensorType:
    """The type named `name`, ignoring case. Raises InputError if it is unknown or can only be read."""
    dtype = tensor_type(name)
    if not dtype.encodes:
        can = ", ".join(known.name for known in TYPES if known.encodes)
        raise InputError(f"tensor type {dtype.name} can be read but not written; choose one of {can}")
    return dtype


@dataclass(frozen=True, kw_only=True)
class TypeOptions:
    """The user's options for a recipe.

    `pure`: all quantized tensors get the base type. `output_type`, `embedding_type`: the types of `output.weight` and of the
    token embedding. `overrides`: by name; the last match decides (in llama_model_quantize the first). `file_order`: rules that
    count tensors count them in the given order, as llama_model_quantize does with `keep_split`; otherwise layer by layer, and
    by name within a layer. `types`: types by full name, if no other option decides, and why they were selected (`types_reason`).
    """

    pure: bool = False
    output_type: TensorType | None = None
    embedding_type: TensorType | None = None
    overrides: tuple[Override, ...] = ()
    file_order: bool = False
    types: Mapping[str, TensorType] = field(default_factory=dict)
    types_reason: str = "target size"

    def override(self, name: str) -> Override | None:
        """The override that applies to the tensor named `name`, or None."""
        return next((found for found in reversed(self.overrides) if found.pattern.search(name)), None)
