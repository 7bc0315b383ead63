"""Continuous unknowns, by Gauss–Newton on their logarithms, and their rounding to the numbers that people write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from gguf_tools.description.choices import Choices

Residual = Callable[[Choices], torch.Tensor]
"""Choices → (logits − golden) / |golden|."""
STEP = 1e-5
"""Of a logarithm, for derivatives by differences."""
ITERATIONS = 12
MOST = 1.5
"""The largest change of a logarithm in one step."""


def nmse(residual: torch.Tensor) -> float:
    """The squared length of a residual; infinite if it is not a number."""
    found = float(residual.square().sum())
    return found if found == found else float("inf")


def value(choices: Choices, name: str) -> float:
    """A continuous choice; the scale of attention scores is 1/√head_dim where none is chosen."""
    found = getattr(choices, name)
    return float(choices.head_dim**-0.5 if found is None else found)


def fit(
    residual: Residual, choices: Choices, names: Sequence[str], iterations: int = ITERATIONS
) -> tuple[Choices, float]:
    """The choices with the values of `names` fitted (Levenberg–Marquardt on their logarithms), and the NMSE."""
    names = [name for name in names if value(choices, name) > 0]
    current = residual(choices)
    best = nmse(current)
    damping = 1e-6
    for _ in range(iterations if names else 0):
        columns = [(residual(_moved(choices, {name: STEP})) - current).flatten() / STEP for name in names]
        jacobian = torch.stack(columns, dim=1)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ current.flatten()
        before = best
        for _ in range(6):
            damped = normal + damping * torch.diag(normal.diagonal() + 1e-30)
            step = -torch.linalg.lstsq(damped, slope[:, None]).solution[:, 0]
            step = step.clamp(-MOST, MOST)
            tried = _moved(choices, dict(zip(names, step.tolist(), strict=True)))
            new = residual(tried)
            if nmse(new) < best:
                choices, current, best = tried, new, nmse(new)
                damping = max(damping / 10, 1e-12)
                break
            damping = min(damping * 10, 1e6)
        if best > before * 0.999 or best < 1e-29:
            break
    return choices, best


def _moved(choices: Choices, steps: dict[str, float]) -> Choices:
    """The choices with values multiplied by the exponentials of the steps."""
    moved = {
        name: value(choices, name) * float(torch.tensor(step, dtype=torch.float64).exp())
        for name, step in steps.items()
    }
    return replace(choices, **moved)  # type: ignore[arg-type]


def snap(
    residual: Residual,
    choices: Choices,
    names: Sequence[str],
    limit: Callable[[float], float],
    named: dict[str, Sequence[float]],
) -> tuple[Choices, float]:
    """The choices with each value of `names` replaced by the roundest number that explains the logits as well.

    One value after another is rounded while those not yet rounded are fitted again. `named` are numbers to try first. A number
    is kept if the NMSE stays below `limit` of the best.
    """
    free = list(names)
    best = nmse(residual(choices))
    for name in names:
        free.remove(name)
        for rounded in (*named.get(name, ()), *rounds(value(choices, name))):
            if not 0.5 < rounded / value(choices, name) < 2:
                continue
            tried, found = fit(residual, replace(choices, **{name: rounded}), free, 6)  # type: ignore[arg-type]
            if found <= limit(best):
                choices, best = tried, min(best, found)
                break
    return choices, best


def rounds(number: float) -> list[float]:
    """The number rounded to 1, 2, 3 … significant digits."""
    return list(dict.fromkeys(float(f"{number:.{digits}e}") for digits in range(7)))
