"""Continuous unknowns, by Gauss–Newton on their logarithms, and their rounding to the numbers that people write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import torch

from gguf_tools.description.choices import Choices, number, with_numbers

Residual = Callable[[Choices], torch.Tensor]
"""Choices → (logits − golden) / |golden|."""
STEP = 1e-5
"""Of a logarithm, for derivatives by differences."""
ITERATIONS = 12
FAR = 100.0
"""How far beyond the limit the NMSE of a rounded value has to be by the derivatives, so that it is not tried."""
MOST = 1.5
"""The largest change of a logarithm in one step."""


def nmse(residual: torch.Tensor) -> float:
    """The squared length of a residual; infinite if it is not a number."""
    found = float(residual.square().sum())
    return found if found == found else float("inf")


def value(choices: Choices, name: str) -> float:
    """A continuous choice; the scale of attention scores is 1/√head_dim where none is chosen."""
    found = number(choices, name)
    return choices.head_dim**-0.5 if found is None else found


def fit(
    residual: Residual, choices: Choices, names: Sequence[str], iterations: int = ITERATIONS
) -> tuple[Choices, float]:
    """The choices with the values of `names` fitted (Levenberg–Marquardt on their logarithms), and the NMSE."""
    names = [name for name in names if value(choices, name) > 0]
    current = residual(choices)
    best = nmse(current)
    damping = 1e-6
    for _ in range(iterations if names else 0):
        jacobian = _jacobian(residual, choices, names, current)
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
    return with_numbers(choices, moved)


def snap(
    residual: Residual,
    choices: Choices,
    names: Sequence[str],
    limit: Callable[[float], float],
    named: dict[str, Sequence[float]],
) -> tuple[Choices, float]:
    """The choices with each value of `names` replaced by the roundest number that explains the logits as well.

    One value after another is rounded while those not yet rounded are fitted again. `named` are numbers to try first. A number
    is kept if the NMSE stays below `limit` of the best; one that leaves far more by the derivatives is not tried.
    """
    free = list(names)
    best = nmse(residual(choices))
    for name in names:
        free.remove(name)
        stiff = _stiffness(residual, choices, name, free)
        for rounded in (*named.get(name, ()), *rounds(value(choices, name))):
            ratio = rounded / value(choices, name)
            if not 0.5 < ratio < 2 or best + stiff * log(ratio) ** 2 > FAR * limit(best):
                continue
            tried, found = fit(residual, with_numbers(choices, {name: rounded}), free, 6)
            if found <= limit(best):
                choices, best = tried, min(best, found)
                break
    return choices, best


def _stiffness(residual: Residual, choices: Choices, name: str, free: Sequence[str]) -> float:
    """How much the NMSE rises with the square of a change of a value's logarithm, while those in `free` are fitted again."""
    jacobian = _jacobian(residual, choices, [name, *free], residual(choices))
    normal = jacobian.T @ jacobian
    if not free:
        return float(normal[0, 0])
    rest = normal[1:, 1:] + torch.diag(normal.diagonal()[1:] * 1e-12 + 1e-30)
    return max(float(normal[0, 0] - normal[0, 1:] @ torch.linalg.solve(rest, normal[1:, 0])), 0.0)


def _jacobian(residual: Residual, choices: Choices, names: Sequence[str], current: torch.Tensor) -> torch.Tensor:
    """Derivatives of the residual, which is `current`, by the logarithms of the values, one column for each."""
    columns = [(residual(_moved(choices, {name: STEP})) - current).flatten() / STEP for name in names]
    return torch.stack(columns, dim=1)


def rounds(number: float) -> list[float]:
    """The number rounded to 1, 2, 3 … significant digits."""
    return list(dict.fromkeys(float(f"{number:.{digits}e}") for digits in range(7)))
