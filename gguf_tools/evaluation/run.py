"""The implementation of `tinyq eval`: measures files against references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.evaluation.card.as_json import card_dict
from gguf_tools.evaluation.card.parts import overall
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.evaluation.card.suite import CardOptions, run_card
from gguf_tools.evaluation.fidelity import FidelityReport, evaluate_fidelity
from gguf_tools.evaluation.logit_pairs import ReferenceLike
from gguf_tools.evaluation.oracle import Oracles, parse_oracle
from gguf_tools.evaluation.oracle_check import OracleCheck, transformers_name
from gguf_tools.evaluation.prompts import TEXT_CHUNK, Prompt
from gguf_tools.evaluation.reference_source import Checkpoints, Operate, ReferenceSource, find_reference
from gguf_tools.evaluation.transformers_model import TransformersModel
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.adapters import refuse_adapter
from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.formats.gguf.surgery import recorded_recipe
from gguf_tools.machine import useful_threads
from gguf_tools.progress import StageProgress
from gguf_tools.reference import Reference
from gguf_tools.runtime.facts import EngineFacts, engine_facts
from gguf_tools.runtime.interface import ModelInfo, Speed
from gguf_tools.runtime.process import Runtime, RuntimeOptions, headers_to_run
from gguf_tools.sources.adapters.adapter import GivenAdapter

DTYPES = {"f32": torch.float32, "f64": torch.float64}
STREAMED_BYTES = 1 << 30
"""Bytes of the reference's weights from which one layer at a time is in memory."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """The file under test: the value of `model` in `tinyq eval --json`.

    `requantized_from` is the type that its weights were decoded from and encoded anew, None if they never were;
    `recipe` the layer surgery that the file records, None if there was none.
    """

    path: str
    arch: str
    type: str
    bpw: float
    bytes: int
    layers: int
    requantized_from: str | None = None
    recipe: str | None = None

    @property
    def type_text(self) -> str:
        """The type, with the one that it was requantized from."""
        return self.type + (f" (requantized from {self.requantized_from})" if self.requantized_from else "")


@dataclass(frozen=True)
class Evaluation:
    """The measurements of one file; `oracle` is None if none was requested, or a sentence on why it was not possible."""

    model: FileFacts
    engine: EngineFacts
    source: ReferenceSource
    fidelity: FidelityReport
    speed: Speed | None
    oracle: OracleCheck | str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the oracle's result for the user."""
        if isinstance(self.oracle, OracleCheck):
            return self.oracle.notes
        return (self.oracle,) if self.oracle else ()

    def as_dict(self) -> dict[str, Any]:
        """The measurements as JSON data."""
        speed = self.speed and {
            "prompt_tok_s": self.speed.prompt_tok_s,
            "generate_tok_s": self.speed.generate_tok_s,
        }
        return {
            "model": vars(self.model),
            "engine": self.engine.as_dict(),
            "reference": {"origin": self.source.origin, "path": str(self.source.path), "note": self.source.note},
            "fidelity": self._fidelity(),
            "speed": speed,
        }

    def _fidelity(self) -> dict[str, Any]:
        found = self.fidelity.as_dict()
        check = self.oracle.as_dict() if isinstance(self.oracle, OracleCheck) else None
        if check is None and self.source.model is None:  # the source's own code is the reference itself
            check = {"name": transformers_name(), "nmse": None, "nmse_model": found["nmse"]}
        return {**found, "oracle": check, "notes": [*found["notes"], *self.notes]}


def load_reference(source: ReferenceSource, dtype: str) -> Reference | TransformersModel:
    """The torch reference, its layers streamed if they are large, or transformers' own code if no family supports the source."""
    if source.model is not None:
        wanted = DTYPES[dtype]
        streamed = source.model.parameters * wanted.itemsize > STREAMED_BYTES
        return Reference(source.model, wanted, streamed=streamed)
    if source.checkpoint is None:
        raise InputError(f"{source.path}: cannot be a reference: no family supports it, and transformers cannot run it")
    return TransformersModel(source.checkpoint)


def score_file(
    path: Path, card: CardOptions, options: RuntimeOptions, progress: StageProgress | None = None
) -> tuple[FileFacts, EngineFacts, CardReport]:
    """Run the card suite on `path`. Errors as `run_card` and `Runtime`, with the path."""
    options = replace(options, threads=options.threads or useful_threads(path.stat().st_size))
    with Runtime(path, options) as runtime:
        return facts_of(path, runtime.info), engine_facts(runtime), score(runtime, card, progress)


def score(runtime: Runtime, card: CardOptions, progress: StageProgress | None = None) -> CardReport:
    """Run the card suite on the file that `runtime` has open. Errors as `run_card`, with the path."""
    try:
        report = run_card(runtime, card, progress)
        overall(report)  # raises if no part with a weight was measured
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(runtime.path)) else f"{runtime.path}: {message}") from error
    return report


def evaluate_file(
    path: Path,
    source: ReferenceSource,
    options: RuntimeOptions,
    *,
    load: Callable[[], ReferenceLike] | None = None,
    oracles: Oracles | None = None,
    dtype: str = "f32",
    prompts: Sequence[Prompt] | None = None,
    text: str | None = None,
    n_generate: int = 100,
    speed: bool = True,
    progress: StageProgress | None = None,
) -> Evaluation:
    """Run `path` with llama.cpp and compare it with `source`.

    `load` returns a reference that several files share; `oracles` compares the reference with other code first.
    Errors as `evaluate_fidelity`, `Oracles.check` and `Runtime`.
    """
    threads = options.threads or useful_threads(path.stat().st_size)
    torch.set_num_threads(threads)
    with Runtime(path, replace(options, threads=threads)) as runtime:
        if source.model and runtime.info.n_vocab != source.model.spec.vocab_size:
            raise InputError(
                f"{path}: has a vocabulary of {runtime.info.n_vocab} tokens, but the reference {source.path} has "
                f"{source.model.spec.vocab_size}; give the checkpoint that the file was made from"
            )
        found = oracles.check(source, runtime, prompts, text) if oracles else None
        reference = load() if load else load_reference(source, dtype)
        fidelity = evaluate_fidelity(
            runtime,
            reference,
            source.encode,
            prompts,
            n_generate,
            text=text,
            piece_tokens=options.context_length or TEXT_CHUNK,
            progress=progress,
        )
        measured = runtime.speed() if speed else None
        facts, engine = facts_of(path, runtime.info), engine_facts(runtime)
    return Evaluation(facts, engine, source, fidelity, measured, found)


@dataclass(frozen=True, kw_only=True)
class FidelityRequest:
    """Options of the fidelity suite; see `find_reference`, `parse_oracle` and `evaluate_file`."""

    reference: Path | None = None
    adapters: tuple[GivenAdapter, ...] = ()
    operate: Operate | None = None
    dtype: str = "f32"
    prompts: Sequence[Prompt] | None = None
    text: str | None = None
    n_generate: int = 100
    speed: bool = True
    oracle: str = "none"


@dataclass(frozen=True)
class FileScores:
    """The measurements of one file: fidelity, card, or both."""

    model: FileFacts
    engine: EngineFacts
    evaluation: Evaluation | None
    card: CardReport | None

    def as_dict(self) -> dict[str, Any]:
        """The measurements as JSON data."""
        found = {"model": vars(self.model), "engine": self.engine.as_dict()}
        found |= self.evaluation.as_dict() if self.evaluation else {}
        return found | ({"card": card_dict(self.card)} if self.card else {})


@dataclass(frozen=True)
class FileFailure:
    """A file that llama.cpp failed on while other files were measured, and the error."""

    path: str
    message: str


def measure_files(
    paths: Sequence[Path],
    options: RuntimeOptions,
    fidelity: FidelityRequest | None = None,
    card: CardOptions | None = None,
    progress: StageProgress | None = None,
    failed: list[FileFailure] | None = None,
) -> Iterator[FileScores]:
    """Measure the files one after another; a reference that several share is loaded once.

    All files and references are checked before the first is run, so that a wrong path fails early. A file that llama.cpp
    fails on is added to `failed` and the next one is measured; without such a list that is a LlamaError.
    """
    for path in paths:
        refuse_adapter(headers_to_run(path)[0])
    oracles = Oracles(parse_oracle(fidelity.oracle)) if fidelity else None
    shared = Checkpoints()
    sources = [
        find_reference(path, fidelity.reference, fidelity.operate, shared, fidelity.adapters) if fidelity else None
        for path in paths
    ]
    loaded: dict[object, ReferenceLike] = {}  # one at most
    for n, (path, source) in enumerate(zip(paths, sources, strict=True), 1):
        evaluation = report = None
        tell = _of_file(progress, f"{path.name}, {n} of {len(paths)}") if len(paths) > 1 else progress
        try:
            if fidelity and source:
                # A reference rebuilt from the file's own tensors cannot be shared.
                own = path if source.origin == "rebuilt" else None
                adapters = source.checkpoint.adapter_identity if source.checkpoint else ()
                key = (source.path.resolve(), adapters, source.recipe, own)

                def load(
                    source: ReferenceSource = source, key: object = key, dtype: str = fidelity.dtype
                ) -> ReferenceLike:
                    if key not in loaded:
                        loaded.clear()
                        loaded[key] = load_reference(source, dtype)
                    return loaded[key]

                evaluation = evaluate_file(
                    path,
                    source,
                    options,
                    load=load,
                    oracles=oracles,
                    prompts=fidelity.prompts,
                    text=fidelity.text,
                    n_generate=fidelity.n_generate,
                    speed=fidelity.speed,
                    progress=tell,
                )
                facts, engine = evaluation.model, evaluation.engine
            if card:
                facts, engine, report = score_file(path, card, options, tell)
            if evaluation is None and report is None:
                facts, engine = file_facts(path, options)
        except LlamaError as error:
            if failed is None:
                raise
            failed.append(FileFailure(str(path), str(error)))
        else:
            yield FileScores(facts, engine, evaluation, report)


def _of_file(progress: StageProgress | None, name: str) -> StageProgress | None:
    """Progress whose stages begin with the file's name and number."""
    return None if progress is None else lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def file_facts(path: Path, options: RuntimeOptions) -> tuple[FileFacts, EngineFacts]:
    """The facts of a file without measuring it, and how it would be run."""
    with Runtime(path, options) as runtime:
        return facts_of(path, runtime.info), engine_facts(runtime)


def facts_of(path: Path, info: ModelInfo) -> FileFacts:
    """The facts of a file over all its parts; bits per weight are computed from the bytes of tensor data."""
    parts = read_parts(path)
    kind = parts[0].get(keys.TYPE)
    if not isinstance(kind, str):
        kind = info.file_type.removeprefix("(guessed) ")
    size = sum(part.path.stat().st_size for part in parts)
    requantized = parts[0].get(keys.REQUANTIZED_FROM)
    return FileFacts(
        path=str(path),
        arch=info.arch,
        type=kind,
        bpw=info.bits_per_weight,
        bytes=size,
        layers=info.n_layer,
        requantized_from=requantized if isinstance(requantized, str) else None,
        recipe=recorded_recipe(parts[0]),
    )
