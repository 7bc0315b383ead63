"""What any engine must compute for a model: logits, greedy continuations, and named intermediates, by the torch reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.tensors.error import nmse

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
"""The arithmetic that a tolerance is given for."""
ROOM = 10.0
"""A tolerance is this times the error of the reference itself in that arithmetic."""
LEAST = {"f32": 1e-10, "bf16": 1e-4, "f16": 1e-6}
"""The least tolerance (NMSE) of each arithmetic."""

Array = NDArray[np.generic]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids, and the text that they are tokenized from, if there is one."""

    tokens: tuple[int, ...]
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Values:
    """The golden values of one prompt.

    `logits` are (tokens, vocabulary), of every position. `greedy` are the tokens of the greedy continuation, and `margins` the
    difference of the two largest logits at each. `points` are named intermediates, (tokens, …), in order of computation.
    """

    prompt: Prompt
    logits: Doubles
    greedy: tuple[int, ...]
    margins: tuple[float, ...]
    points: Mapping[str, Doubles] = field(default_factory=dict)


def point_name(n: int, point: str) -> str:
    """The name of a point of layer n (`OUTSIDE` for none) in golden files."""
    return point if n == OUTSIDE else f"layers.{n}.{point}"


def golden_values(model: Model, prompts: Sequence[Prompt], new_tokens: int, *, points: bool) -> list[Values]:
    """The golden values of each prompt in float64; `points` includes the intermediates."""
    reference = Reference(model, torch.float64)
    made = []
    for prompt in prompts:
        found = _run(reference, prompt.tokens)
        logits = found.pop("logits")
        greedy, margins = _greedy(reference, prompt.tokens, new_tokens)
        kept = found if points else {}
        made.append(Values(prompt=prompt, logits=logits, greedy=greedy, margins=margins, points=kept))
    return made


def _run(reference: Reference, tokens: Sequence[int]) -> dict[str, Doubles]:
    """The points of one sequence, the logits last."""
    found: dict[str, Doubles] = {}
    with torch.inference_mode():
        reference.forward(
            torch.tensor([list(tokens)]),
            lambda n, point, values: found.update({point_name(n, point): values[0].double().numpy()}),
        )
    return found


def _greedy(reference: Reference, tokens: Sequence[int], count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The greedy continuation and its margins; the lowest id among equal logits."""
    ids, margins = list(tokens), []
    for _ in range(count):
        last = reference.logits([ids])[0][-1]
        second, first = np.partition(last, -2)[-2:]
        ids.append(int(last.argmax()))
        margins.append(float(first - second))
    return tuple(ids[len(tokens) :]), tuple(margins)


def tolerances(model: Model, values: Sequence[Values]) -> dict[str, dict[str, float]]:
    """For each arithmetic the largest NMSE that it explains, by name: `logits`, and each point without its layer.

    Measured by running the reference in that arithmetic. An arithmetic that the reference overflows in, that explains any
    logits, or that torch lacks for one of its operations, is left out; so are points of which expert selection decides (those
    whose tolerance would be 1 or more).
    """
    found: dict[str, dict[str, float]] = {}
    for name, dtype in TYPES.items():
        worst: dict[str, float] = {}
        try:
            reference = Reference(model, dtype)
            for one in values:
                run = _run(reference, one.prompt.tokens)
                for point, expected in {**one.points, "logits": one.logits}.items():
                    kind = kind_of(point)
                    worst[kind] = max(worst.get(kind, 0.0), nmse(expected, run[point]))
        except RuntimeError:  # torch has no kernel of this type for an operation
            continue
        if ROOM * worst["logits"] < 1.0:
            found[name] = {kind: max(ROOM * error, LEAST[name]) for kind, error in worst.items() if ROOM * error < 1.0}
    return found


def kind_of(point: str) -> str:
    """A point's name without its layer."""
    return point.split(".", 2)[2] if point.startswith("layers.") else point
