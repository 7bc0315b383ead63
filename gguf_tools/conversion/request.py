"""The parameters of a conversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gguf_tools.families.base import CheckType
from gguf_tools.formats.gguf.surgery import RecordedSource
from gguf_tools.machine import available_cores
from gguf_tools.model.spec import Model
from gguf_tools.sources.adapters.adapter import GivenAdapter
from quant.options import TypeOptions

AUTO = "auto"


@dataclass(frozen=True)
class Operation:
    """A change of the Model before it is lowered to the target, such as surgery; `text` describes it in the metadata.

    `sources` are the other models that it takes weights from.
    """

    text: str
    apply: Callable[[Model], Model]
    sources: tuple[RecordedSource, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to convert, and the options.

    `add_bos` overrides the tokenizer's setting; `drop_tokens` leaves out tokens beyond the embedding's rows. For a
    model_type that no family declares, `as_family` names the family to use, and `check_type` verifies the model against
    other code (`build_published`). `text_only` leaves out a vision or audio tower; `operation` is applied to the Model before
    it is lowered. `context_length` (tokens) overrides the config. `allow_approximate` accepts an approximate target, fitted
    to the text in `calibration` or to a built-in one. `allow_nonfinite` accepts NaN and infinity. `label` is the type's name
    in the metadata, instead of the recipe's. `description` is a file that says what the tensors are, where no family knows them.
    `adapters` are merged into the checkpoint first.
    """

    source: Path
    type: str = AUTO
    tokenizer: Path | None = None
    target: str | None = None
    add_bos: bool | None = None
    drop_tokens: bool = False
    as_family: str | None = None
    check_type: CheckType | None = None
    threads: int = 0
    text_only: bool = False
    operation: Operation | None = None
    context_length: int | None = None
    allow_approximate: bool = False
    allow_nonfinite: bool = False
    calibration: Path | None = None
    options: TypeOptions = field(default_factory=TypeOptions)
    imatrix: Path | None = None
    label: str | None = None
    description: Path | None = None
    adapters: tuple[GivenAdapter, ...] = ()

    @property
    def workers(self) -> int:
        """Number of encoding threads: as requested, or one per core."""
        return self.threads or available_cores()
