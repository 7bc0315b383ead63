"""Checkpoint to GGUF: a pure plan, and a streaming executor that proves the vocabulary before the file appears."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gguf_tools import __version__
from gguf_tools.auto_type import TypeDecision, smallest_exact
from gguf_tools.background import Background
from gguf_tools.calibration import calibration_tokens
from gguf_tools.checkpoint import CONFIG, Checkpoint, open_checkpoint
from gguf_tools.encoding import tensor_blocks
from gguf_tools.errors import OutputError
from gguf_tools.families import build_model
from gguf_tools.general import general_metadata
from gguf_tools.gguf_file import (
    RESERVE_BYTES,
    RESERVE_KEY,
    Field,
    Metadata,
    ValueType,
    array,
    pack_header,
    string,
    u32,
    u64,
)
from gguf_tools.imatrix_file import read_imatrix, recorded
from gguf_tools.machine import available_cores
from gguf_tools.restore import restore
from gguf_tools.spec import Model
from gguf_tools.targets import Lowered, Plan, plan
from gguf_tools.tensors import Tensor
from gguf_tools.tokenizer import Tokenizer, load_tokenizer
from gguf_tools.writer import Layout, Progress, atomic_output, check_output, layout, write_gguf
from quant.encode import ByteArray, Encoder, FloatArray, Narrowing
from quant.recipes import Choice, ModelFacts, Options, TensorFacts, assign, recipe
from quant.report import Report, summarize
from quant.types import F16

AUTO = "auto"
RECIPE_FILE = "tinyq-recipe.toml"
"""Lies in the folder of a checkpoint that surgery made."""
QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION, which files with quantized tensors state."""


@dataclass(frozen=True)
class Conversion:
    """Everything that a conversion will do; nothing has been written yet.

    `importance` is (matrices, columns) for each tensor that the importance matrix knows.
    """

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
    tokenizer_folder: Path | None = None
    importance: Mapping[str, FloatArray] = field(default_factory=dict)

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
    """A finished conversion: the file, its size, and what narrowing did to the weights, measured on a sample of them:
    by ggml type name, and by tensor name."""

    path: Path
    bytes: int
    losses: dict[str, Narrowing]
    by_tensor: dict[str, Narrowing]


@dataclass(frozen=True)
class Operation:
    """A change of the model on its way from family to target, such as layer surgery; `text` says it in the metadata."""

    text: str
    apply: Callable[[Model], Model]


@dataclass(frozen=True)
class Request:
    """What to convert and how.

    `add_bos` overrides what the tokenizer's files say; `text_only` leaves out a vision or audio tower; `operation` is
    done to the model first. `context_length` overrides what the config says. `allow_approximate` accepts a target that comes
    near, fitted to the text in `calibration` or to a built-in one. `label` is what the file calls its type instead of the
    recipe's name.
    """

    source: Path
    type: str = AUTO
    tokenizer: Path | None = None
    target: str | None = None
    add_bos: bool | None = None
    threads: int = 0
    text_only: bool = False
    operation: Operation | None = None
    context_length: int | None = None
    allow_approximate: bool = False
    calibration: Path | None = None
    options: Options = field(default_factory=Options)
    imatrix: Path | None = None
    label: str | None = None

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

    def choices(self, name: str, options: Options | None = None, has_imatrix: bool = False) -> tuple[Choice, ...]:
        """The type of each tensor under the recipe `name`, with what the user changes about it."""
        values = {key: field.value for key, field in self.lowered.metadata.items()}
        values |= {"general.architecture": self.lowered.architecture}
        return assign(recipe(name), ModelFacts.from_metadata(values, has_imatrix=has_imatrix), self.facts(), options)

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
    checkpoint = restore(open_checkpoint(request.source), text_only=request.text_only)
    if request.context_length:
        checkpoint = checkpoint.with_context_length(request.context_length)
    model = build_model(checkpoint)
    folder = request.tokenizer or checkpoint.folder
    tokenizer = load_tokenizer(folder, model.spec.vocab_size, config=checkpoint.config, add_bos=request.add_bos)
    if request.operation:
        model = request.operation.apply(model)
    calibration = partial(calibration_tokens, tokenizer, model.spec.context_length, request.calibration)
    made = plan(model, request.target, calibration if request.allow_approximate else None)
    return Opened(checkpoint, model, tokenizer, made, made.lower())


def prepare(request: Request, opened: Opened | None = None, progress: Progress = lambda _: None) -> Conversion:
    """Plan the whole conversion. With type auto this reads the weights once; `progress` is told how many are done."""
    opened = opened or open_source(request)
    matrix = read_imatrix(request.imatrix) if request.imatrix else None
    importance = matrix.importance(opened.facts()) if matrix else {}
    if request.type == AUTO:
        opened.choices("f16", request.options)  # a pattern that matches nothing is an error before the weights are read
        decision = smallest_exact(opened.halvable, request.workers, progress)
    else:
        decision = TypeDecision(request.type, "asked for")
    chosen = recipe(decision.recipe)
    choices = opened.choices(decision.recipe, request.options, has_imatrix=matrix is not None)
    lowered, model = opened.lowered, opened.model
    metadata = general_metadata(model, opened.checkpoint.folder, lowered.architecture)
    metadata["general.file_type"] = u32(chosen.file_type)
    if any(not choice.type.plain for choice in choices):
        metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    metadata |= lowered.metadata | opened.tokenizer.metadata() | _provenance(opened.plan, model, decision)
    metadata |= _surgery(request, opened.checkpoint) | (recorded(matrix) if matrix else {})
    metadata |= {"tinyq.type": string(request.label)} if request.label else {}
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
        request.tokenizer,
        importance,
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
        values["tinyq.rewrites.extra_parameters"] = u64(made.extra_parameters)
        values["tinyq.rewrites.extra_cache"] = u64(made.extra_cache)
    if made.approximation:
        values |= {
            "tinyq.approximate": array(ValueType.STRING, [made.approximation.name]),
            "tinyq.approximate.layers": array(ValueType.UINT32, [fit.layer for fit in made.fits]),
            "tinyq.approximate.routing_agreement": array(ValueType.FLOAT32, [fit.agreement for fit in made.fits]),
            "tinyq.approximate.weight_error": array(ValueType.FLOAT32, [fit.weight_error for fit in made.fits]),
            "tinyq.approximate.slope": array(ValueType.FLOAT32, [fit.slope for fit in made.fits]),
        }
    if model.notes:
        values["tinyq.notes"] = array(ValueType.STRING, model.notes)
    return values


def _surgery(request: Request, checkpoint: Checkpoint) -> Metadata:
    """What was done to the layers on the way, and before that to the checkpoint; and room to record more in place."""
    values: Metadata = {RESERVE_KEY: string(" " * RESERVE_BYTES)}
    history = checkpoint.folder / RECIPE_FILE
    if checkpoint.path.is_dir() and history.exists():
        values["tinyq.source.recipe"] = string(history.read_text("utf-8", errors="replace"))
    if request.operation:
        values["tinyq.surgery"] = string(request.operation.text)
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
    inputs = (*checkpoint.weight_files, checkpoint.folder / CONFIG, conversion.tokenizer.path)
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise OutputError(f"{out}: is a file of the source, which is never changed; choose another name")
    metadata = placed_metadata(conversion, out)
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
    by_type: dict[str, Narrowing] = {}
    for choice in conversion.choices:
        if choice.name in losses:
            by_type[choice.type.name] = by_type.get(choice.type.name, Narrowing()) + losses[choice.name]
    return Result(out, size, by_type, losses)


def placed_metadata(conversion: Conversion, out: Path) -> Metadata:
    """The metadata of a file that lies at `out`; the source's digest is a place holder, as long as it will be."""
    metadata = conversion.metadata | {
        "tinyq.source.path": _relative(conversion.source, out),
        "tinyq.source.digest": string("0" * 64),
    }
    if conversion.tokenizer_folder:
        metadata["tinyq.tokenizer.path"] = _relative(conversion.tokenizer_folder, out)
    return metadata


def _relative(path: Path, out: Path) -> Field:
    """The way from the output's folder, so that both can be moved together."""
    return string(Path(os.path.relpath(path, out.resolve().parent)).as_posix())


def _pieces(conversion: Conversion, encoder: Encoder, losses: dict[str, Narrowing]) -> Iterator[tuple[str, ByteArray]]:
    """Encoded rows in file order; what the encoding changed is added up in `losses` by tensor name."""
    blocks = (
        block
        for choice, tensor in zip(conversion.choices, conversion.tensors, strict=True)
        for block in tensor_blocks(choice.name, choice.type, tensor, conversion.importance.get(choice.name))
    )
    for encoded in encoder.encode(blocks):
        if encoded.loss:
            losses[encoded.name] = losses.get(encoded.name, Narrowing()) + encoded.loss
        yield encoded.name, encoded.raw
