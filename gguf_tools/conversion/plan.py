"""Plans a conversion from checkpoint to GGUF; `write.py` carries the plan out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from gguf_tools.conversion.auto_type import TypeDecision, smallest_exact
from gguf_tools.conversion.calibration import calibration_tokens
from gguf_tools.conversion.exact_types import exact_types, most_common, summary
from gguf_tools.conversion.general_metadata import general_metadata
from gguf_tools.conversion.provenance import accepted_metadata, provenance, surgery_metadata
from gguf_tools.conversion.request import AUTO, Request
from gguf_tools.families.registry import build_published
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import (
    Metadata,
    string,
    u32,
)
from gguf_tools.formats.gguf.imatrix import read_imatrix, recorded
from gguf_tools.formats.gguf.surgery import RecordedSource
from gguf_tools.formats.gguf.writer import Layout, layout
from gguf_tools.model.spec import Model
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.sources.reads import announce, read_twice, remote_tensors
from gguf_tools.sources.restore import restore
from gguf_tools.targets.base import Lowered
from gguf_tools.targets.planner import Plan, plan
from gguf_tools.tensors.base import Tensor
from gguf_tools.tokenizers.model_name import NAME, settled_name
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer
from quant.encode import FloatArray
from quant.options import TypeOptions
from quant.recipes import ModelFacts, TensorFacts, TypeChoice, assign, recipe, require_importance
from quant.report import Report, summarize
from quant.types import F16, QUANTIZATION_VERSION


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The complete plan of a conversion; nothing has been written yet.

    `importance` has an array of shape (matrices, columns) for each tensor that the importance matrix covers. The tensors `exact`
    are packed without a change of any weight. `layer_sources`
    are the other models that layers were taken from.
    """

    checkpoint: Checkpoint
    family: str
    plan: Plan
    tokenizer: Tokenizer
    decision: TypeDecision
    choices: tuple[TypeChoice, ...]
    tensors: tuple[Tensor, ...]
    metadata: Metadata
    layout: Layout
    report: Report
    tokenizer_folder: Path | None = None
    importance: Mapping[str, FloatArray] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    other_notes: tuple[str, ...] = ()
    layer_sources: tuple[RecordedSource, ...] = ()

    @property
    def source(self) -> Path:
        """The path of the checkpoint: a folder or a file."""
        return self.checkpoint.path

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on the checkpoint, its tokenizer and the model's name."""
        return (*self.plan.model.notes, *self.tokenizer.notes, *self.other_notes)

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.layout.size(self.metadata)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An opened source: its Model, its tokenizer, and the plan for the target architecture."""

    checkpoint: Checkpoint
    model: Model
    tokenizer: Tokenizer
    plan: Plan
    lowered: Lowered

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The output's tensors, in file order."""
        return tuple(output.tensor for output in self.lowered.tensors)

    def choices(
        self, name: str, options: TypeOptions | None = None, has_imatrix: bool = False
    ) -> tuple[TypeChoice, ...]:
        """The type of each tensor under the recipe `name`, with the user's overrides in `options`."""
        values = {key: field.value for key, field in self.lowered.metadata.items()}
        values |= {"general.architecture": self.lowered.architecture}
        return assign(recipe(name), ModelFacts.from_metadata(values, has_imatrix=has_imatrix), self.facts(), options)

    def facts(self) -> list[TensorFacts]:
        """Names and shapes of the output's tensors."""
        return [TensorFacts(output.name, output.tensor.shape) for output in self.lowered.tensors]

    @property
    def halvable(self) -> list[tuple[str, Tensor]]:
        """Names and tensors that type f16 would store as F16: all except small ones such as norms."""
        pairs = zip(self.tensors, self.choices("f16"), strict=True)
        return [(choice.name, tensor) for tensor, choice in pairs if choice.type is F16]


def open_source(request: Request) -> Opened:
    """Read headers, config and tokenizer, recognise the family and plan the target. No weights are read.

    Raises InputError or a subclass of it, naming the file, tensor or key.
    """
    if request.type != AUTO:
        recipe(request.type)
    checkpoint = restore(opened_source(request), text_only=request.text_only)
    if request.context_length:
        checkpoint = checkpoint.with_context_length(request.context_length)
    model = build_published(checkpoint, as_family=request.as_family, check_type=request.check_type)
    folder = request.tokenizer or checkpoint.folder
    tokenizer = load_tokenizer(
        folder,
        model.spec.vocab_size,
        config=checkpoint.config,
        add_bos=request.add_bos,
        drop_tokens=request.drop_tokens,
        approximate=request.allow_approximate,
    )
    if request.operation:
        model = request.operation.apply(model)
    calibration = partial(calibration_tokens, tokenizer, model.spec.context_length, request.calibration)
    made = plan(model, request.target, calibration if request.allow_approximate else None)
    return Opened(checkpoint=checkpoint, model=model, tokenizer=tokenizer, plan=made, lowered=made.lower())


def opened_source(request: Request) -> Checkpoint:
    """The request's checkpoint with the description and the adapters that it names; errors as `open_checkpoint`."""
    checkpoint = open_checkpoint(request.source, described=request.description is not None).adapted(request.adapters)
    return checkpoint.described(request.description) if request.description else checkpoint


def _decide(opened: Opened, request: Request, progress: ByteProgress) -> TypeDecision:
    """Type auto: quantized types for the tensors that they hold exactly, and the smallest plain type for the others."""
    named = opened.halvable
    exact = exact_types(named, request.workers, progress)
    rest = [tensor for name, tensor in named if name not in exact]
    plain = smallest_exact(rest, request.workers, progress, allow_nonfinite=request.allow_nonfinite)
    if not exact:
        packed = "; no quantized type holds the unpacked weights exactly" if opened.checkpoint.packings else ""
        return replace(plain, reason=plain.reason + packed)
    others = f"; of the others, {plain.reason}" if rest else ""
    return TypeDecision(plain.recipe, summary(exact, len(named)) + others, exact=exact, named=most_common(exact, named))


def prepare(request: Request, opened: Opened | None = None, progress: ByteProgress = lambda _: None) -> Conversion:
    """Plan the whole conversion. Type auto reads all weights; `progress` receives their number since the last call.

    Raises InputError or a subclass of it, naming the file, tensor, key or option.
    """
    opened = opened or open_source(request)
    matrix = read_imatrix(request.imatrix) if request.imatrix else None
    importance = matrix.importance(opened.facts()) if matrix else {}
    if request.type == AUTO:
        opened.choices("f16", request.options)  # raises for a pattern that matches nothing, before weights are read
        announce(remote_tensors(opened.checkpoint), [tensor for _, tensor in opened.halvable])
        decision, twice = _decide(opened, request, progress), read_twice(opened.checkpoint)
    else:
        decision, twice = TypeDecision(request.type, "requested"), None
    chosen = recipe(decision.name)
    options = request.options
    if decision.exact:
        options = replace(options, types=decision.exact, types_reason="holds the weights exactly")
    choices = opened.choices(decision.recipe, options, has_imatrix=matrix is not None)
    require_importance(chosen, opened.facts(), choices, importance)
    lowered, model = opened.lowered, opened.model
    metadata = general_metadata(model, opened.checkpoint.folder, lowered.architecture)
    named = settled_name(str(metadata[NAME].value), opened.tokenizer)
    metadata[NAME] = string(named.name)
    metadata["general.file_type"] = u32(chosen.file_type)
    if any(not choice.type.plain for choice in choices):
        metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    metadata |= lowered.metadata | named.tokenizer.metadata()
    if named.tokenizer.approximation:
        metadata[keys.TOKENIZER_APPROXIMATE] = string(named.tokenizer.approximation)
    metadata |= provenance(opened.plan, (*model.notes, *named.notes), decision)
    metadata |= (
        accepted_metadata(request, opened.checkpoint)
        | surgery_metadata(request, opened.checkpoint)
        | (recorded(matrix) if matrix else {})
    )
    metadata |= {keys.TYPE: string(request.label)} if request.label else {}
    return Conversion(
        checkpoint=opened.checkpoint,
        family=model.family,
        plan=opened.plan,
        tokenizer=named.tokenizer,
        decision=decision,
        choices=choices,
        tensors=opened.tensors,
        metadata=metadata,
        layout=layout(
            (choice.name, tensor.shape, choice.type) for choice, tensor in zip(choices, opened.tensors, strict=True)
        ),
        report=summarize(chosen, opened.facts(), choices),
        layer_sources=request.operation.sources if request.operation else (),
        tokenizer_folder=request.tokenizer,
        importance=importance,
        exact=frozenset(choice.name for choice in choices if choice.type is decision.exact.get(choice.name)),
        other_notes=(*named.notes, *([twice] if twice else []), *(matrix.unused(opened.facts()) if matrix else ())),
    )
