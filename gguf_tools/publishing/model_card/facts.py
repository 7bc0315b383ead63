"""The facts on a model card, from the files' headers, llama.cpp's reports, and measurements."""

from __future__ import annotations

import os
import re
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
from gguf_tools.runtime.interface import Memory
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.checkpoint import CONFIG, open_checkpoint
from gguf_tools.tokenizers.files import read_object

DEFAULT_CONTEXT = 4096
"""Context length, in tokens, for which memory is reported, or the model's if that is shorter."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)")
_BASE_MODEL = re.compile(r"general\.base_model\.\d+\.repo_url")
_HUB_URL = "https://huggingface.co/"


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
    if quantized_by is not None and not quantized_by.isprintable():
        raise InputError(f"--quantized-by is {quantized_by!r}; expected a name of printable characters")
    if base_model is not None and not _HUB_ID.fullmatch(base_model):
        raise InputError(f"--base-model is {base_model!r}; expected a hub id (owner/name)")
    _check_source(source)
    headers = [read_header(path) for path in every]
    base_models = (base_model,) if base_model else _base_models(source, headers[0])
    places = [Path(os.path.relpath(path, folder)).as_posix() for path in every]
    memories = []
    for path in every:
        with Runtime(path, options) as runtime:
            memories.append(_memory(runtime, context))
            if path == paths[0]:
                modes, modelfile = find_modes(runtime), modelfile_for(places[0], runtime, context)
                sampling = sampling_parameters(runtime.info.metadata)
    names = [path.name for path in every]
    labels = [place if names.count(name) > 1 else name for name, place in zip(names, places, strict=True)]
    described = [inspect(path) for path in every]
    measured = [
        *measure_files(paths, options, fidelity, card, progress),
        *measure_files(baselines, options, None, card, progress),
    ]
    files = [
        CardFile(
            path=path,
            place=place,
            label=label,
            measured=found,
            memory=memory,
            offloaded=offloaded_bytes(path),
            surgery=tell_surgery(header, found.model.layers, about.pattern),
            model=about,
            provenance=_provenance(header),
        )
        for path, place, label, found, memory, header, about in zip(
            every, places, labels, measured, memories, headers, described, strict=True
        )
    ]
    general = {key: field.value for key, field in headers[0].metadata.items() if key.startswith("general.")}
    return CardFacts(
        name=str(general.get("general.name") or paths[0].stem),
        files=tuple(files[: len(paths)]),
        baselines=tuple(files[len(paths) :]),
        metadata=general,
        base_models=base_models,
        sampling=sampling,
        modes=modes,
        modelfile=modelfile,
        quantized_by=quantized_by,
    )


def _check_source(source: Path) -> None:
    """Raise InputError unless `source` is a checkpoint or a GGUF, even if nothing is compared with it."""
    if source.is_file() and is_gguf(source):
        read_header(source)
    else:
        open_checkpoint(source)


def _memory(runtime: Runtime, context: int | None) -> Memory:
    limit = runtime.context_limit
    if context is not None and context > limit:
        raise InputError(
            f"{runtime.path}: the model's context has {limit} tokens, but --context is {context}; give fewer"
        )
    return runtime.memory(context or min(DEFAULT_CONTEXT, limit))


def _provenance(header: GGUFHeader) -> dict[str, Any]:
    return {key: field.value for key, field in header.metadata.items() if key.startswith("tinyq.")}


def _base_models(source: Path, header: GGUFHeader) -> tuple[str, ...]:
    """Ids on the hub of the files' base models: the source's own if it is known, else those recorded in the header."""
    own = _hub_id(source)
    if own:
        return (own,)
    urls = [field.value for key, field in header.metadata.items() if _BASE_MODEL.fullmatch(key)]
    ids = [url.removeprefix(_HUB_URL) for url in urls if isinstance(url, str) and url.startswith(_HUB_URL)]
    return tuple(found for found in ids if _HUB_ID.fullmatch(found))


def _hub_id(source: Path) -> str | None:
    """The source's id on the hub: from its path in the hub's cache, or from its config."""
    for part in source.resolve().parts:
        if match := _HUB_CACHE.fullmatch(part):
            return f"{match[1]}/{match[2]}"
    config = source / CONFIG
    name = read_object(config).get("_name_or_path") if config.is_file() else None
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists() else None
