"""The result of `load_model`."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.api.results.gguf import TENSOR_COLUMNS
from gguf_tools.errors import InputError
from gguf_tools.model.spec import Model, ModelSpec
from gguf_tools.tables import Block, Facts, Lines, Shown, Table
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import as_json, human_count

if TYPE_CHECKING:
    from gguf_tools.reference import Reference


@dataclass(frozen=True, repr=False)
class LoadedModel(Shown):
    """A checkpoint or a GGUF as a model: the spec of its layers, and its weights, read lazily."""

    path: Path
    model: Model

    @property
    def family(self) -> str:
        """The checkpoint's family, or the GGUF's architecture."""
        return self.model.family

    @property
    def spec(self) -> ModelSpec:
        """Shapes, norms, rope and router of every layer."""
        return self.model.spec

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by role, such as `layers.0.attn.q`; `array()` gives one as float32."""
        layers = (
            (f"layers.{n}.{role}", tensor)
            for n, layer in enumerate(self.model.layers)
            for role, tensor in layer.tensors.items()
        )
        return {**self.model.tensors, **dict(layers)}

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return self.model.parameters

    @cached_property
    def reference(self) -> Reference:
        """The torch reference, float32, with all weights in memory."""
        from gguf_tools.reference import Reference

        return Reference(self.model)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.floating]:
        """The torch reference's logits for a sequence of token ids, shape (length, vocabulary).

        Raises InputError for ids that the vocabulary does not have, and for none.
        """
        most = self.spec.vocab_size - 1
        known = not isinstance(tokens, str) and isinstance(tokens, Iterable)
        ids = list(tokens) if known else []
        if not ids or not all(isinstance(one, int | np.integer) and 0 <= one <= most for one in ids):
            raise InputError(f"tokens are {reprlib.repr(tokens)}; expected one or more token ids from 0 to {most}")
        (found,) = self.reference.logits([[int(one) for one in ids]])
        return found

    def as_dict(self) -> dict[str, Any]:
        """Path, family, sizes, the spec of every layer, notes, and each tensor's role, shape, stored dtype and sources."""
        spec = self.spec
        return {
            "path": str(self.path),
            "family": self.family,
            "parameters": self.parameters,
            "active_parameters": self.model.active_parameters,
            "pattern": spec.pattern,
            "spec": as_json(asdict(spec)),
            "notes": list(self.model.notes),
            "tensors": [
                {"role": role, "shape": list(tensor.shape), "type": tensor.dtype, "sources": list(tensor.sources)}
                for role, tensor in self.tensors.items()
            ],
        }

    def blocks(self) -> Sequence[Block]:
        """Sizes, notes, and a table of tensors."""
        spec = self.spec
        facts = [
            ("path", str(self.path)),
            ("family", self.family),
            ("weights", f"{human_count(self.parameters)} parameters"),
            ("layers", f"{len(spec.layers)}: {spec.pattern}"),
            ("hidden", str(spec.hidden)),
            ("context", str(spec.context_length)),
            ("tokens", str(spec.vocab_size)),
            *(("note", note) for note in self.model.notes),
        ]
        rows = [(role, "×".join(map(str, tensor.shape)), tensor.dtype) for role, tensor in self.tensors.items()]
        return [Facts(facts), Lines(), Table(TENSOR_COLUMNS, rows)]
