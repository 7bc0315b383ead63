"""Traces a file: every named intermediate of llama.cpp against the torch reference's, and the first that is not explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gguf_tools.errors import InputError, TinyqError
from gguf_tools.evaluation.prompts import base_prompts
from gguf_tools.evaluation.reference_source import Operate, find_reference
from gguf_tools.evaluation.trace.budget import Budget, budget_of
from gguf_tools.evaluation.trace.causes import Cause, find_cause
from gguf_tools.evaluation.trace.compare import FLOORS, QUANTIZED, PointError, error
from gguf_tools.evaluation.trace.expected import expected_of
from gguf_tools.evaluation.trace.points import NAMES, Graph
from gguf_tools.evaluation.trace.routing import Routing, routing_of
from gguf_tools.evaluation.trace.unseen import Unseen, unseen
from gguf_tools.evaluation.trace.work import Work
from gguf_tools.formats.gguf.source import GGUFSource, open_gguf
from gguf_tools.formats.watch import Watch
from gguf_tools.model.spec import Model
from gguf_tools.progress import StageProgress
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.inputs import source_files
from gguf_tools.targets.registry import lift

TOKENS = 48
"""Tokens that are read by default."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The errors of all points, in order of computation: embedding, layers, final norm, logits.

    `first` is the first point whose local error is not explained, and `cause` what was found out about it. `decode` has the
    points whose values differ most between reading all tokens at once and one by one, as local errors; None if that was not
    tried. `unnamed` are points of the reference that llama.cpp's graph has no name for. `unseen` is what differs in the file
    where the text does not reach, looked for if no point is bad.
    """

    path: Path
    reference: Path
    architecture: str
    types: str
    tokens: tuple[int, ...]
    points: tuple[PointError, ...]
    first: PointError | None = None
    cause: Cause | None = None
    decode: tuple[PointError, ...] | None = None
    routing: tuple[Routing, ...] = ()
    budget: Budget | None = None
    unnamed: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def logits(self) -> PointError | None:
        """The errors of the logits."""
        return next((point for point in self.points if point.point == "logits"), None)

    @property
    def layers(self) -> tuple[PointError, ...]:
        """The outputs of the layers."""
        return tuple(point for point in self.points if point.point == "layer_out")

    @property
    def verdict(self) -> str:
        """What is wrong with the file, in words with its cause; "" if nothing is."""
        if self.first is not None:
            return f"{self.first.name} is not what the reference computes{self.because}"
        if self.unseen:
            return f"differs from the source where this text does not show it: {self.unseen[0].text}"
        return ""

    @property
    def because(self) -> str:
        """The cause of the first bad point, to be put behind a sentence on it; "" if it was not found."""
        return f": {self.cause.text}" if self.cause and self.cause.text else ""

    def _first_bad(self) -> dict[str, Any] | None:
        """The first bad point, or what differs unseen; None if there is neither."""
        if self.first is None:
            if not self.unseen:
                return None
            one = self.unseen[0]
            tensors = list(one.tensors)
            return {"layer": one.layer, "point": one.point, "cause": one.text, "where": "file", "tensors": tensors}
        found = self.first.as_dict()
        cause = self.cause or Cause(text=None, nmse=None, where="unknown")
        return {
            "layer": found.pop("layer"),
            "point": found.pop("point"),
            "cause": cause.text,
            "nmse_left": cause.nmse,
            "where": cause.where,
            "tensors": list(cause.tensors),
            **found,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": str(self.path),
            "reference": str(self.reference),
            "architecture": self.architecture,
            "type": self.types,
            "n_tokens": len(self.tokens),
            "tokens": list(self.tokens),
            "first_bad": self._first_bad(),
            "points": [point.as_dict() for point in self.points],
            "decode": None if self.decode is None else [point.as_dict() for point in self.decode],
            "routing": [one.as_dict() for one in self.routing],
            "budget": self.budget.as_dict() if self.budget else None,
            "unnamed": list(self.unnamed),
            "unseen": [asdict(one) for one in self.unseen],
            "notes": list(self.notes),
        }


def trace(
    path: Path,
    reference: Path | None = None,
    *,
    text: str | None = None,
    tokens: int = TOKENS,
    position: int | None = None,
    decode: bool = False,
    routing: bool = False,
    budget: bool = False,
    operate: Operate | None = None,
    threads: int | None = None,
    progress: StageProgress = lambda *_: None,
) -> Trace:
    """Compare every intermediate of a GGUF in llama.cpp with the torch reference's of `reference`.

    `reference` is found as `tinyq eval` finds it, if it is not given. The first `tokens` tokens of `text` are read, by default of
    built-in prompts. `position` limits the comparison to that token; `decode` also reads the tokens one by one, and `budget`
    rounds each tensor alone. Errors as `find_reference`, UnsupportedError if the reference has no intermediates that could be
    compared, and CheckpointError if a file changes meanwhile.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    found = find_reference(path, reference, operate)
    watch = Watch.over([*source_files(path), *source_files(found.path)])
    source = open_gguf(path)
    expected = expected_of(found, source)
    with Runtime(path, RuntimeOptions(threads=threads)) as runtime:
        ids = _tokens(runtime, text, tokens)
        if position is not None and not 0 <= position < len(ids):
            raise InputError(
                f"position {position} is not one of the {len(ids)} tokens that are read; give one of 0 to {len(ids) - 1}"
            )
        progress("running llama.cpp", 0, 1)
        step = runtime.info.batch
        prompt = Graph(runtime.intermediates(ids, NAMES), source.architecture, expected.model.spec, len(ids), step)
        single = None
        if decode:
            one_by_one = runtime.intermediates(ids, NAMES, step=1)
            single = Graph(one_by_one, source.architecture, expected.model.spec, len(ids), 1)
    own, contradiction = _own(source)
    work = Work(source, expected, own, prompt, ids, position, progress)
    points, unnamed = work.run()
    first = next((point for point in points if point.bad), None)
    cause = None
    if first is not None:
        progress("trying causes", 0, 1)
        n = OUTSIDE if first.layer is None else first.layer
        cause, left = find_cause(work, n, first)
        if contradiction:
            more = f"; it would also be explained if {cause.text}" if cause.text else ""
            cause = replace(cause, text=f"{contradiction[0]}{more}", nmse=None)
        first = replace(first, own=left)
        points = [first if point.name == first.name else point for point in points]
    types = work.types
    made = Trace(
        path=path,
        reference=found.path,
        architecture=source.architecture,
        types=", ".join(sorted(set(types.values()))),
        tokens=tuple(ids),
        points=tuple(points),
        first=first,
        cause=cause,
        decode=_against_each_other(prompt, single, points, expected.gelu, types) if single else None,
        routing=routing_of(work.chosen, prompt, expected.model.spec) if routing else (),
        budget=budget_of(source, expected, ids, threads, progress) if budget else None,
        unnamed=tuple(unnamed),
        unseen=() if first else unseen(work),
        notes=(*expected.notes, found.note, *contradiction),
    )
    watch.check()
    return made


def _own(source: GGUFSource) -> tuple[Model | None, tuple[str, ...]]:
    """The model that the file holds; None, and why, if its metadata contradict its tensors."""
    try:
        return lift(source), ()
    except InputError as error:
        return None, (f"the file cannot be read as a model: {error}",)


def first_bad(path: Path, reference: Path | None, operate: Operate | None, threads: int | None) -> str:
    """The first bad point of a file and its cause, in words; "" if there is none, or no intermediates to compare."""
    try:
        found = trace(path, reference, operate=operate, threads=threads)
    except TinyqError:
        return ""  # the measurement stands without it
    if found.first is None:
        return f"{path}: {found.verdict}" if found.verdict else ""
    return f"{path}: the first bad point is {found.first.name}{found.because}"


def _tokens(runtime: Runtime, text: str | None, count: int) -> list[int]:
    """The first `count` tokens of the text, as many as the context and a batch hold."""
    if text is None:
        text = " ".join(prompt.text for prompt in base_prompts())
    ids = runtime.tokenize(text, add_special=True)
    if not ids:
        raise InputError("the text has no tokens; give a longer one")
    return ids[: min(count, runtime.context_limit)]


def _against_each_other(
    prompt: Graph, single: Graph, points: Sequence[PointError], gelu: float, types: Mapping[int, str]
) -> tuple[PointError, ...]:
    """Each point of one-by-one reading against that of reading all at once, both from the tokens on, worst first."""
    made = []
    tolerance = max(FLOORS.get(kind, QUANTIZED) for kind in types.values()) + gelu
    for point in points:
        n = OUTSIDE if point.layer is None else point.layer
        width = prompt.width(n, point.point)
        one, other = prompt.values(n, point.point, width), single.values(n, point.point, width)
        if one is None or other is None or point.point == "moe.chosen" or len(one) != len(other):
            continue
        found = error(one, other)
        made.append(replace(point, local=found, whole=found, predicted=0.0, tolerance=tolerance))
    return tuple(sorted(made, key=lambda one: -one.local.nmse))
