"""The result of `describe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import ThresholdError
from gguf_tools.sources.hub import shown_source
from gguf_tools.tables import Block, Facts, Shown

if TYPE_CHECKING:
    from gguf_tools.description.solver.solution import Solution


@dataclass(frozen=True, kw_only=True, repr=False)
class DescribeResult(Shown):
    """The result of `describe`: `text` is the description as TOML.

    `solution` is what the evidence settled, None without evidence; `left` are tensors without a role.
    """

    path: Path
    text: str
    solution: Solution | None
    left: tuple[str, ...] = ()

    @property
    def solved(self) -> bool | None:
        """Whether the description explains the evidence; None without evidence."""
        return None if self.solution is None else self.solution.solved

    @property
    def usable(self) -> bool:
        """Whether there is a description to write: not where evidence contradicts every one."""
        return self.solved is not False

    def require(self) -> DescribeResult:
        """The result itself; raises ThresholdError, naming the stage, if no choice explains the evidence."""
        solution = self.solution
        if solution is not None and not solution.solved:
            raise ThresholdError(
                f"{self.path}: no choice explains these logits; stage {solution.stage}: {solution.reason} (NMSE "
                f"{solution.error:.1e}); nothing is written"
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq describe --json` writes."""
        solution = self.solution
        return {
            "path": str(self.path),
            "solved": self.solved,
            "nmse": solution.error if solution else None,
            "nmse_held_out": solution.held if solution else None,
            "stage": solution.stage or None if solution else None,
            "reason": solution.reason or None if solution else None,
            "choices": solution.as_dict() if solution else {},
            "not_told_apart": [{"choice": name, "others": text} for name, text in solution.open] if solution else [],
            "unused": list(self.left),
            "description": self.text if self.usable else None,
        }

    def blocks(self) -> Sequence[Block]:
        """What was found, for a terminal."""
        facts = [("checkpoint", shown_source(self.path))]
        solution = self.solution
        if solution is None:
            facts.append(("solved", "no evidence given: see the candidates in the description, or give --golden"))
        else:
            facts += [("solved", "yes" if solution.solved else f"no: {solution.stage}: {solution.reason}")]
            facts += [("NMSE", f"{solution.error:.1e} on what was solved from")]
            if solution.held is not None:
                facts += [("", f"{solution.held:.1e} on the prompt held out")]
            facts += [("note", note) for note in solution.notes]
        facts += [("unused", name) for name in self.left]
        return [Facts(facts)]
