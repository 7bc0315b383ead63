"""Checkpoint to GGUF: a pure plan, and a streaming executor that proves the vocabulary before the file appears."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf_tools import __version__
from gguf_tools.auto_type import TypeDecision, smallest_exact
from gguf_tools.background import Background
from gguf_tools.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.families import build_model
from gguf_tools.general import general_metadata
from gguf_tools.gguf_file import Metadata, ValueType, array, pack_header, string, u32
from gguf_tools.machine import available_cores
from gguf_tools.spec import Model
from gguf_tools.targets import Lowered, Plan, plan
from gguf_tools.tensors import Tensor
from gguf_tools.tokenizer import Tokenizer, load_tokenizer
from gguf_tools.writer import Layout, Progress, atomic_output, check_output, layout, write_gguf
from quant.encode import Block, ByteArray, Encoder, FloatArray, Narrowing, RowRange, row_ranges
from quant.recipes import Choice, ModelFacts, TensorFacts, assign, recipe
from quant.report import Report, summarize
from quant.types import F16

AUTO = "auto"
QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION, which files with quantized tensors state."""


@dataclass(frozen=True)
class Conversion:
    """Everything that a conversion will do; nothing has been written yet."""

    source: Path
    family: str
    plan: Plan
    tokenizer: Tokenizer
    decision: TypeDecision
    choices: tuple[Choice, ...]
    tensors: tuple[Tensor, ...]
    metadata: Metadata
    layout: Layout
    report: Report

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about the checkpoint and its tokenizer."""
        return (*self.plan.model.notes, *self.tokenizer.notes)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.layout.size(self.metadata)


@dataclass(frozen=True)
class Result:
    """A finished conversion: the file, its size, and what narrowing did to the weights, by ggml type name."""

    path: Path
    bytes: int
    losses: dict[str, Narrowing]


@dataclass(frozen=True)
class Request:
    """What to convert and how; `add_bos` overrides what the tokenizer's files say."""

    source: Path
    type: str = AUTO
    tokenizer: Path | None = None
    target: str | None = None
    add_bos: bool | None = None
    threads: int = 0

    @property
    def workers(self) -> int:
        """Number of encoding threads: what was asked for, or one a core."""
        return self.threads or available_cores()


@dataclass(frozen=True)
class Opened:
    """A source, understood: its model and tokenizer, and the target that it will be lowered to."""

    checkpoint: Checkpoint
    model: Model
    tokenizer: Tokenizer
    plan: Plan
    lowered: Lowered

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The output's tensors, in file order."""
        return tuple(output.tensor for output in self.lowered.tensors)

    def choices(self, name: str) -> tuple[Choice, ...]:
        """The type of each tensor under the recipe `name`."""
        values = {key: field.value for key, field in self.lowered.metadata.items()}
        facts = ModelFacts.from_metadata(values | {"general.architecture": self.lowered.architecture})
        return assign(recipe(name), facts, self.facts())

    def facts(self) -> list[TensorFacts]:
        """Names and shapes of the output's tensors."""
        return [TensorFacts(output.name, output.tensor.shape) for output in self.lowered.tensors]

    @property
    def halvable(self) -> list[Tensor]:
        """The tensors that type f16 would store as F16: all but the small ones."""
        pairs = zip(self.tensors, self.choices("f16"), strict=True)
        return [tensor for tensor, choice in pairs if choice.type is F16]


def open_source(request: Request) -> Opened:
    """Read headers, config and tokenizer, recognise the family and plan the target; no weights are read.

    Raises InputError or a kind of it, naming file, tensor or key.
    """
    if request.type != AUTO:
        recipe(request.type)
    checkpoint = open_checkpoint(request.source)
    model = build_model(checkpoint)
    folder = request.tokenizer or checkpoint.path
    tokenizer = load_tokenizer(folder, model.spec.vocab_size, config=checkpoint.config, add_bos=request.add_bos)
    made = plan(model, request.target)
    return Opened(checkpoint, model, tokenizer, made, made.lower())


def prepare(request: Request, opened: Opened | None = None, progress: Progress = lambda _: None) -> Conversion:
    """Plan the whole conversion. With type auto this reads the weights once; `progress` is told how many are done."""
    opened = opened or open_source(request)
    if request.type == AUTO:
        decision = smallest_exact(opened.halvable, request.workers, progress)
    else:
        decision = TypeDecision(request.type, "asked for")
    chosen = recipe(decision.recipe)
    choices = opened.choices(decision.recipe)
    lowered, model = opened.lowered, opened.model
    metadata = general_metadata(model, opened.checkpoint.path, lowered.architecture)
    metadata["general.file_type"] = u32(chosen.file_type)
    if any(not choice.type.plain for choice in choices):
        metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    metadata |= lowered.metadata | opened.tokenizer.metadata() | _provenance(opened.plan, model, decision)
    return Conversion(
        opened.checkpoint.path,
        model.family,
        opened.plan,
        opened.tokenizer,
        decision,
        choices,
        opened.tensors,
        metadata,
        layout(
            (choice.name, tensor.shape, choice.type) for choice, tensor in zip(choices, opened.tensors, strict=True)
        ),
        summarize(chosen, opened.facts(), choices),
    )


def _provenance(made: Plan, model: Model, decision: TypeDecision) -> Metadata:
    values: Metadata = {
        "tinyq.version": string(__version__),
        "tinyq.family": string(model.family),
        "tinyq.target": string(made.target.name),
        "tinyq.type": string(decision.recipe),
    }
    if made.rewrites:
        values["tinyq.rewrites"] = array(ValueType.STRING, [rewrite.name for rewrite in made.rewrites])
    if model.notes:
        values["tinyq.notes"] = array(ValueType.STRING, model.notes)
    return values


def execute(
    conversion: Conversion,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    progress: Progress = lambda _: None,
    prove: Callable[[Path, Tokenizer], None] | None = None,
) -> Result:
    """Write the file, and only then let it appear under its name.

    `prove` is called with the finished temporary file and the tokenizer; if it raises, nothing is left.
    """
    check_output(out, force)
    checkpoint = open_checkpoint(conversion.source)
    relative = os.path.relpath(conversion.source, out.resolve().parent)
    metadata = conversion.metadata | {
        "tinyq.source.path": string(Path(relative).as_posix()),
        "tinyq.source.digest": string("0" * 64),
    }
    losses: dict[str, Narrowing] = {}
    size = conversion.layout.size(metadata)
    with atomic_output(out, force=force, size=size) as stream, Background(checkpoint.digest) as digest:
        # The digest is taken meanwhile and put over its place holder, which is as long, at the end.
        with Encoder(threads) as encoder:
            write_gguf(stream, metadata, conversion.layout, _pieces(conversion, encoder, losses), progress)
        metadata["tinyq.source.digest"] = string(digest.result())
        stream.seek(0)
        stream.write(pack_header(metadata, conversion.layout.entries, conversion.layout.alignment))
        stream.flush()
        if prove:
            prove(Path(stream.name), conversion.tokenizer)
    return Result(out, size, losses)


def _pieces(conversion: Conversion, encoder: Encoder, losses: dict[str, Narrowing]) -> Iterator[tuple[str, ByteArray]]:
    """Encoded rows in file order; what the encoding changed is added up in `losses` by type name."""

    def rows(tensor: Tensor, part: RowRange) -> FloatArray:
        return tensor.flat(part.start * tensor.columns, part.stop * tensor.columns).reshape(-1, tensor.columns)

    blocks = (
        Block(choice.name, choice.type, partial(rows, tensor, part), measure=True)
        for choice, tensor in zip(conversion.choices, conversion.tensors, strict=True)
        for part in row_ranges(tensor.shape, by_matrix=False)
    )
    for encoded in encoder.encode(blocks):
        if encoded.loss:
            losses[encoded.type.name] = losses.get(encoded.type.name, Narrowing()) + encoded.loss
        yield encoded.name, encoded.raw
