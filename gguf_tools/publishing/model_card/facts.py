"""The facts on a model card, from the files' headers, llama.cpp's reports, and measurements."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.modes import ChatModes, find_modes
from gguf_tools.evaluation.card.suite import CardOptions
from gguf_tools.evaluation.run import FidelityRequest, FileScores, measure_files
from gguf_tools.formats.gguf.header import GGUFHeader, is_gguf, read_header
from gguf_tools.inspection.report import inspect
from gguf_tools.inspection.result import Inspection
from gguf_tools.progress import StageProgress
from gguf_tools.publishing.model_card.memory import offloaded_bytes
from gguf_tools.publishing.model_card.surgery import SurgeryTold, TellSurgery
from gguf_tools.publishing.modelfile import Modelfile, modelfile_for, sampling_parameters
from gguf_tools.publishing.names import base_models_of, check_names
from gguf_tools.runtime.interface import Memory
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.checkpoint import open_checkpoint

DEFAULT_CONTEXT = 4096
"""Context length, in tokens, for which memory is reported, or the model's if that is shorter."""


@dataclass(frozen=True, kw_only=True)
class CardFile:
    """One GGUF with its measurements, memory use and provenance.

    `place` is its path relative to the card's folder, with forward slashes; `label` is its name, or `place` if another file
    has the same name. `surgery` is what its header records of layer surgery; `provenance` has its tinyq keys.
    `offloaded`: see `offloaded_bytes`.
    """

    path: Path
    place: str
    label: str
    measured: FileScores
    memory: Memory
    offloaded: int
    surgery: SurgeryTold | None
    model: Inspection
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All facts for a card. `metadata` has the `general.*` keys of the first file; `base_models` are ids on the hub."""

    name: str
    files: tuple[CardFile, ...]
    baselines: tuple[CardFile, ...]
    metadata: Mapping[str, Any]
    base_models: tuple[str, ...]
    sampling: Mapping[str, float | int]
    modes: ChatModes
    modelfile: Modelfile
    quantized_by: str | None

    @property
    def model(self) -> Inspection:
        """The description of the first file."""
        return self.files[0].model

    @property
    def operated(self) -> bool:
        """Whether a file has layer surgery behind it."""
        return any(file.surgery for file in self.files)


def gather(
    source: Path,
    paths: Sequence[Path],
    folder: Path,
    options: RuntimeOptions,
    tell_surgery: TellSurgery,
    *,
    baselines: Sequence[Path] = (),
    fidelity: FidelityRequest | None = None,
    card: CardOptions | None = None,
    context: int | None = None,
    base_model: str | None = None,
    quantized_by: str | None = None,
    progress: StageProgress | None = None,
) -> CardFacts:
    """Measure the files and read other facts from their headers and from `source`, a checkpoint or a GGUF.

    `tell_surgery` tells what a header records; `folder` is the card's folder; `baselines` are measured with the card suite and
    compared with the first file; `context` is the length in tokens for which memory is reported. Slow measurements come last.
    Raises InputError if a file or the source is unsuitable, or the hub does not accept a name; LlamaError if llama.cpp fails.
    """
    every = [*paths, *baselines]
    for number, path in enumerate(every):
        if path in every[:number]:
            raise InputError(f"{path}: is given twice; give each file once")
    check_names(base_model, quantized_by)
    _check_source(source)
    headers = [read_header(path) for path in every]
    base_models = (base_model,) if base_model else base_models_of(source, headers[0].metadata)
    places = [Path(os.path.relpath(path, folder)).as_posix() for path in every]
    memories = []
    for path in every:
        with Runtime(path, options) as runtime:
            memories.append(memory_of(runtime, context))
            if path == paths[0]:
                chat = chat_facts(runtime, places[0], context)
    names = [path.name for path in every]
    labels = [place if names.count(name) > 1 else name for name, place in zip(names, places, strict=True)]
    measured = [
        *measure_files(paths, options, fidelity, card, progress),
        *measure_files(baselines, options, None, card, progress),
    ]
    files = [
        card_file(path, place, label, found, memory, tell_surgery)
        for path, place, label, found, memory in zip(every, places, labels, measured, memories, strict=True)
    ]
    return facts_of_card(
        files[: len(paths)],
        chat,
        baselines=files[len(paths) :],
        base_models=base_models,
        quantized_by=quantized_by,
    )


@dataclass(frozen=True)
class ChatFacts:
    """What follows from a file's vocabulary, chat template and sampling defaults."""

    modes: ChatModes
    modelfile: Modelfile
    sampling: Mapping[str, float | int]


def chat_facts(runtime: Runtime, place: str, context: int | None) -> ChatFacts:
    """The facts of the file that `runtime` has open, with a Modelfile for it at `place`."""
    modes, modelfile = find_modes(runtime), modelfile_for(place, runtime, context)
    return ChatFacts(modes, modelfile, sampling_parameters(runtime.info.metadata))


def card_file(
    path: Path, place: str, label: str, measured: FileScores, memory: Memory, tell_surgery: TellSurgery
) -> CardFile:
    """A file on the card, with what its header says."""
    header, about = read_header(path), inspect(path)
    return CardFile(
        path=path,
        place=place,
        label=label,
        measured=measured,
        memory=memory,
        offloaded=offloaded_bytes(path),
        surgery=tell_surgery(header, measured.model.layers, about.pattern),
        model=about,
        provenance=_provenance(header),
    )


def facts_of_card(
    files: Sequence[CardFile],
    chat: ChatFacts,
    *,
    baselines: Sequence[CardFile] = (),
    base_models: tuple[str, ...] = (),
    quantized_by: str | None = None,
) -> CardFacts:
    """The facts on a card of measured files; name and license are those in the first one's header."""
    header = read_header(files[0].path)
    general = {key: field.value for key, field in header.metadata.items() if key.startswith("general.")}
    return CardFacts(
        name=str(general.get("general.name") or files[0].path.stem),
        files=tuple(files),
        baselines=tuple(baselines),
        metadata=general,
        base_models=base_models,
        sampling=chat.sampling,
        modes=chat.modes,
        modelfile=chat.modelfile,
        quantized_by=quantized_by,
    )


def _check_source(source: Path) -> None:
    """Raise InputError unless `source` is a checkpoint or a GGUF, even if nothing is compared with it."""
    if source.is_file() and is_gguf(source):
        read_header(source)
    else:
        open_checkpoint(source)


def memory_of(runtime: Runtime, context: int | None) -> Memory:
    """What llama.cpp reserves for `context` tokens, by default `DEFAULT_CONTEXT`. Raises InputError if the model has fewer."""
    limit = runtime.context_limit
    if context is not None and context > limit:
        raise InputError(
            f"{runtime.path}: the model's context has {limit} tokens, but --context is {context}; give fewer"
        )
    return runtime.memory(context or min(DEFAULT_CONTEXT, limit))


def _provenance(header: GGUFHeader) -> dict[str, Any]:
    return {key: field.value for key, field in header.metadata.items() if key.startswith("tinyq.")}
