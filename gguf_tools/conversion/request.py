"""What to convert, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gguf_tools.families.base import CheckType
from gguf_tools.machine import available_cores
from gguf_tools.model.spec import Model
from quant.recipes import TypeOptions

AUTO = "auto"


@dataclass(frozen=True)
class Operation:
    """A change of the model on its way from family to target, such as layer surgery; `text` says it in the metadata."""

    text: str
    apply: Callable[[Model], Model]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to convert and how.

    `add_bos` overrides what the tokenizer's files say; `drop_tokens` leaves out tokens beyond the embedding's rows;
    `as_family` accepts the mathematics of a family for a model_type that none declares, and `check_type` holds such a type
    against other code (`build_published`). `text_only` leaves out a vision or audio tower; `operation` is done to the model
    first. `context_length` overrides what the config says. `allow_approximate` accepts a target that comes near, fitted to
    the text in `calibration` or to a built-in one. `allow_nonfinite` takes NaN and infinity as they are.
    `label` is what the file calls its type instead of the recipe's name.
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

    @property
    def workers(self) -> int:
        """Number of encoding threads: what was asked for, or one a core."""
        return self.threads or available_cores()
