"""The tensors and metadata that a GGUF file should have according to its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_tools.errors import InputError, UnsupportedError, is_read_error
from gguf_tools.families.base import CheckType
from gguf_tools.families.registry import build_model
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader, Metadata, is_gguf, string
from gguf_tools.formats.gguf.source import GGUFSource, open_gguf
from gguf_tools.formats.gguf.surgery import RecordedSurgery, recorded_surgery
from gguf_tools.model.spec import Model
from gguf_tools.sources.adapters.adapter import GivenAdapter
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.recorded import as_recorded, has_description, with_recorded_adapters
from gguf_tools.targets.base import Lowered
from gguf_tools.targets.planner import plan_for
from gguf_tools.targets.registry import lift, target_named
from gguf_tools.tensors.base import Tensor
from gguf_tools.tokenizers.vocabulary import load_tokenizer

ARCHITECTURE = "general.architecture"
OUTPUT = "output.weight"
Operate = Callable[[Model, RecordedSurgery], Model]
"""(model, layer surgery as the file records it) → the model after the surgery."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The expected contents of a file, for its architecture.

    `optional` tensors may be missing (the output projection of a tied model). `lacks` lists what the architecture cannot
    express of the model; `notes` are sentences for the user. `recipe` is the layer surgery applied to the source first, ""
    for none.
    """

    tensors: Mapping[str, Tensor]
    metadata: Metadata
    optional: frozenset[str] = frozenset()
    lacks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recipe: str = ""


def expect(
    header: GGUFHeader,
    source: Path,
    operate: Operate | None,
    tokenizer: Path | None = None,
    check_type: CheckType | None = None,
    adapters: Sequence[GivenAdapter] = (),
) -> Expectation:
    """The expected contents of the file with this header, by `source` (a checkpoint or a GGUF); tensors stay lazy.

    `operate` applies the surgery that the file records. `tokenizer` is the tokenizer's folder, by default the checkpoint's.
    `check_type` is called for a model_type that no family declares. `adapters` are merged into the source; without them, those
    that the file records, if the source is the recorded one.

    Raises UnsupportedError for an architecture without a target, unless the source is a GGUF; CheckpointError if the source
    is broken.
    """
    if keys.APPROXIMATE in header.metadata:
        raise UnsupportedError(
            f"{header.path}: was converted with --allow-approximate, whose weights are fitted to a text and cannot be verified; "
            "measure the file with tinyq eval"
        )
    if source.is_file() and is_gguf(source):
        if adapters:
            raise InputError(f"{source}: is a GGUF, into which --lora cannot be merged; give the checkpoint")
        return _from_gguf(header, open_gguf(source), operate)
    checkpoint = as_recorded(open_checkpoint(source, described=has_description(header)), header)
    if adapters:
        checkpoint = checkpoint.adapted(adapters)
    elif keys.ADAPTERS in header.metadata and checkpoint.has_digest(str(header.get(keys.SOURCE_DIGEST))):
        checkpoint = with_recorded_adapters(checkpoint, header)
    accepted = header.get(keys.AS_FAMILY)
    model = build_model(checkpoint, as_family=accepted if isinstance(accepted, str) else None, check_type=check_type)
    vocab_size = model.spec.vocab_size
    model, recipe = _operated(header, model, operate)
    found = _lowered(header, model)
    adapted = tuple(f"compared with the source with the adapter {adapter.text}" for adapter in checkpoint.adapters)
    words, notes = _vocabulary(header, tokenizer or checkpoint.folder, vocab_size, checkpoint.config)
    return replace(
        found,
        metadata=found.metadata | words,
        notes=(*found.notes, *notes, *checkpoint.notes, *adapted),
        recipe=recipe,
    )


def _from_gguf(header: GGUFHeader, source: GGUFSource, operate: Operate | None) -> Expectation:
    """The expectation by a GGUF source: without surgery its own tensors, for any architecture."""
    prefixes = (f"{source.architecture}.", "tokenizer.")
    said = {key: value for key, value in source.header.metadata.items() if key.startswith(prefixes)}
    said[ARCHITECTURE] = string(source.architecture)
    if header.get(keys.SURGERY) == source.header.get(keys.SURGERY):
        tied = {} if OUTPUT in source.tensors else _copies(source.tensors.get("token_embd.weight"))
        return Expectation(tensors={**tied, **source.tensors}, metadata=said, optional=frozenset(tied))
    model, recipe = _operated(header, lift(source), operate)
    found = _lowered(header, model)
    words = {key: value for key, value in said.items() if key.startswith("tokenizer.")}
    return replace(found, metadata=found.metadata | words, recipe=recipe)


def _copies(embedding: Tensor | None) -> dict[str, Tensor]:
    return {} if embedding is None else {OUTPUT: embedding}


def _operated(header: GGUFHeader, model: Model, operate: Operate | None) -> tuple[Model, str]:
    surgery = recorded_surgery(header)
    if surgery is None or operate is None:
        return model, ""
    return operate(model, surgery), surgery.text


def _lowered(header: GGUFHeader, model: Model) -> Expectation:
    """The model converted to the file's architecture, after the rewrites that it needs."""
    made, lacks = plan_for(model, header.architecture)
    try:
        lowered: Lowered = made.lower()
    except (InputError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as error:
        if not lacks:
            raise
        raise UnsupportedError(
            f"{header.path}: {header.architecture} does not support {', '.join(lacks)}, which this {model.family} model has"
        ) from error
    tensors = {output.name: output.tensor for output in lowered.tensors}
    optional = frozenset((OUTPUT,) if model.spec.tied else ())
    if made.model.spec.tied:
        tensors[OUTPUT] = made.model.tensors["embedding"]
    notes = tuple(f"compared with the source after an exact rewrite: {rewrite.name}" for rewrite in made.rewrites)
    metadata = lowered.metadata | {ARCHITECTURE: string(lowered.architecture)}
    return Expectation(tensors=tensors, metadata=metadata, optional=optional, lacks=lacks, notes=notes)


def _vocabulary(
    header: GGUFHeader, folder: Path, vocab_size: int, config: Mapping[str, object]
) -> tuple[Metadata, tuple[str, ...]]:
    """The expected tokenizer metadata, from the recorded tokenizer's folder if it exists, else from `folder`.

    Without a tokenizer that can be converted the metadata is empty, and a note says why.
    """
    recorded = header.get(keys.TOKENIZER_PATH)
    if isinstance(recorded, str) and (header.path.resolve().parent / recorded).is_dir():
        folder = header.path.resolve().parent / recorded
    try:
        accepted = keys.TOKENIZER_APPROXIMATE in header.metadata
        found = load_tokenizer(folder, vocab_size, config=config, approximate=accepted)
    except InputError as error:
        if is_read_error(error):
            raise
        return {}, (f"the vocabulary is not verified ({error})",)
    words = found.metadata()
    # If no file of the tokenizer names BOS or EOS, the converter writes a substitute, which is not to be compared.
    for role, number in (("bos", found.bos_id), ("eos", found.eos_id)):
        if number is None:
            words.pop(f"tokenizer.ggml.{role}_token_id", None)
    return words, ()


def stated(source: GGUFSource) -> Metadata:
    """The file's metadata with llama.cpp's defaults filled in, by lifting the file to a model and lowering that again.

    Empty if the file cannot be lifted; its metadata are then compared without defaults.
    """
    try:
        return target_named(source.architecture).lower(lift(source)).metadata
    except (InputError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
        return {}
