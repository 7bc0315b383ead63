"""What the solver found, and what the evidence leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf_tools.description.choices import Choices


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What was found: the choices, the NMSE on the sequences seen and on the one held out (None without one).

    `stage` is empty if the logits are explained, else the stage that failed (head, one token, attention pattern), and `reason`
    says how. `open` are choices that the evidence does not tell apart, with the other values. `tested` is the number of
    positions of the longest sequence. `rounded` is the type of logits that were computed or stored in 16 bits, else empty.
    """

    choices: Choices
    error: float
    held: float | None
    stage: str = ""
    reason: str = ""
    open: tuple[tuple[str, str], ...] = ()
    tested: int = 0
    evaluations: int = 0
    rounded: str = ""

    @property
    def solved(self) -> bool:
        """Whether the choices explain the logits."""
        return not self.stage

    @property
    def notes(self) -> list[str]:
        """What the evidence leaves open, each a sentence."""
        notes = [f"{name} is not told apart from {others}" for name, others in self.open]
        if self.solved and self.rounded:
            notes.append(
                f"the logits are {self.rounded}: epsilon is a usual value, not a solved one, and choices with little effect may "
                "be others; logits in float32 (model.float()) settle them"
            )
        if self.solved and self.held is None:
            notes.append(
                "no prompt was held out, on which the choices could be judged: give one more of another length"
            )
        if self.solved and self.tested:
            notes.append(f"tested up to {self.tested} tokens: a window or a rope scaling beyond would not show")
        return notes

    @property
    def lines(self) -> tuple[str, ...]:
        """What was found, as comments of the description."""
        found = [f"Solved from golden logits: NMSE {self.error:.1e}."] if self.solved else ["Not solved."]
        found += [f"On a prompt that the solver did not see: {self.held:.1e}."] if self.held is not None else []
        return (*found, *(f"{note[0].upper()}{note[1:]}." for note in self.notes))

    def as_dict(self) -> dict[str, Any]:
        """The choices by name, without the places of tensors, as JSON data."""
        return {name: plain(item) for name, item in vars(self.choices).items() if name not in ("forms", "placements")}


def difference(found: Choices, other: Choices) -> tuple[str, str]:
    """What two choices differ in: (the name with its value, the other value)."""
    for name, value in vars(found).items():
        new = getattr(other, name)
        if new == value:
            continue
        if name in ("forms", "placements"):
            return "which tensor of a shape is which", "an exchange"
        return f"{name} {plain(value)}", str(plain(new))
    return "", ""


def plain(item: Any) -> Any:
    """A choice as JSON data."""
    if isinstance(item, frozenset | tuple):
        return [plain(one) for one in (sorted(item) if isinstance(item, frozenset) else item)]
    return item if item is None or isinstance(item, bool | int | float | str) else repr(item)
