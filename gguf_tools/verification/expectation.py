"""What a source gives for a GGUF file: its tensors by name, and the metadata that it implies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.families.base import CheckType
from gguf_tools.families.registry import build_model
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader, Metadata, is_gguf, string
from gguf_tools.formats.gguf.source import GGUFSource, open_gguf
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.targets.base import Lowered
from gguf_tools.targets.planner import plan_for
from gguf_tools.targets.registry import lift, target_named
from gguf_tools.tensors.base import Tensor
from gguf_tools.tokenizers.vocabulary import load_tokenizer

ARCHITECTURE = "general.architecture"
OUTPUT = "output.weight"
Operate = Callable[[Model, str], Model]
"""Does a recipe of layer surgery, as text, to a model."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the source gives under the architecture of the file.

    `optional` tensors may be missing (an output tied to the embedding, written out or not). `lacks` is what the
    architecture cannot express of the model, in words; `notes` are sentences for the user. `recipe` is the layer surgery
    done first, "" for none.
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
) -> Expectation:
    """What `source` (a checkpoint or a GGUF) gives for the file with this header; weights stay lazy.

    The surgery that the file records is done by `operate`. `tokenizer` is the folder of the tokenizer where it is not the
    checkpoint's; `check_type` is asked about a model_type that no family declares.

    Raises UnsupportedError for an architecture without a target here, unless the source is a GGUF; CheckpointError where the
    source is broken.
    """
    if keys.APPROXIMATE in header.metadata:
        raise UnsupportedError(
            f"{header.path}: was made with an approximation (--allow-approximate), whose weights were fitted to a text; it "
            "can be measured with `tinyq eval`, but not verified"
        )
    if source.is_file() and is_gguf(source):
        return _from_gguf(header, open_gguf(source), operate)
    checkpoint = open_checkpoint(source)
    accepted = header.get(keys.AS_FAMILY)
    model = build_model(checkpoint, as_family=accepted if isinstance(accepted, str) else None, check_type=check_type)
    vocab_size = model.spec.vocab_size
    model, recipe = _operated(header, model, operate)
    found = _lowered(header, model)
    words, notes = _vocabulary(header, tokenizer or checkpoint.folder, vocab_size, checkpoint.config)
    return replace(
        found, metadata=found.metadata | words, notes=(*found.notes, *notes, *checkpoint.notes), recipe=recipe
    )


def _from_gguf(header: GGUFHeader, source: GGUFSource, operate: Operate | None) -> Expectation:
    """A GGUF as the source of another: tensor by tensor where no surgery lies between, of any architecture."""
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
    recipe = header.get(keys.SURGERY)
    if not isinstance(recipe, str) or operate is None:
        return model, ""
    return operate(model, recipe), recipe


def _lowered(header: GGUFHeader, model: Model) -> Expectation:
    """The model in the terms of the file's architecture, after the rewrites that it needs."""
    made, lacks = plan_for(model, header.architecture)
    try:
        lowered: Lowered = made.lower()
    except (InputError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as error:
        if not lacks:
            raise
        raise UnsupportedError(
            f"{header.path}: {header.architecture} cannot express this {model.family} model: it lacks {', '.join(lacks)}"
        ) from error
    tensors = {output.name: output.tensor for output in lowered.tensors}
    optional = frozenset((OUTPUT,) if model.spec.tied else ())
    if made.model.spec.tied:
        tensors[OUTPUT] = made.model.tensors["embedding"]
    notes = tuple(f"the source after an exact rewrite: {rewrite.name}" for rewrite in made.rewrites)
    metadata = lowered.metadata | {ARCHITECTURE: string(lowered.architecture)}
    return Expectation(tensors=tensors, metadata=metadata, optional=optional, lacks=lacks, notes=notes)


def _vocabulary(
    header: GGUFHeader, folder: Path, vocab_size: int, config: Mapping[str, object]
) -> tuple[Metadata, tuple[str, ...]]:
    recorded = header.get(keys.TOKENIZER_PATH)
    if isinstance(recorded, str) and (header.path.resolve().parent / recorded).is_dir():
        folder = header.path.resolve().parent / recorded
    try:
        found = load_tokenizer(folder, vocab_size, config=config)
    except InputError as error:
        return {}, (f"the vocabulary was not verified ({error})",)
    words = found.metadata()
    # Where no file says which these are, the converter takes a stand-in that the source does not imply.
    for role, number in (("bos", found.bos_id), ("eos", found.eos_id)):
        if number is None:
            words.pop(f"tokenizer.ggml.{role}_token_id", None)
    return words, ()


def stated(source: GGUFSource) -> Metadata:
    """The file's own metadata with llama.cpp's defaults filled in: what the file's model is, lowered again.

    Empty where the file cannot be understood that far; its metadata are then compared as they are.
    """
    try:
        return target_named(source.architecture).lower(lift(source)).metadata
    except (InputError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
        return {}
