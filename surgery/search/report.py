"""A search as tables: the verdict, the leaderboard, the front of score and size, and how the stages pruned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.text import human_bytes
from surgery.search.leaderboard import Board, Line
from surgery.search.records import HELD_OUT, KL, TEXT

SHOWN = 15
"""Candidates of the leaderboard that are shown as text."""


@dataclass(frozen=True, repr=False)
class SearchReport(Shown):
    """A study as it stands, as text, Markdown, CSV, HTML and JSON."""

    board: Board

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq search --json` writes."""
        return self.board.as_dict()

    def blocks(self) -> Sequence[Block]:
        """The verdict first, then what was searched, the leaderboard, what was confirmed, the front, and what was pruned."""
        board = self.board
        found: list[Block] = [Lines(board.verdict), Lines(), Facts(list(summary(board)), width=10), Lines()]
        found.append(leaderboard(board))
        if any(line.confirmed for line in board.best):
            found += [Lines(), Lines("on held-out items, beside the base:"), confirmation(board)]
        if len(board.front) > 1:
            found += [
                Lines(),
                Lines(f"not beaten by anything in {_objectives(board)} and size at once: " + "; ".join(board.front)),
            ]
        stopped = pruned(board)
        if stopped.rows:
            found += [Lines(), stopped]
        found += [Lines(f"expected from update norms: {text}") for text in _predictions(board)]
        return found


def summary(board: Board) -> Iterator[tuple[str, str]]:
    """What was searched, and how far it came."""
    setup = board.setup
    states = [line.record.state for line in (*board.best, *board.others)]
    counts = [(state, states.count(state)) for state in ("complete", "pruned", "failed", "running", "waiting")]
    yield "study", board.study
    yield "tried", f"{board.tried}: " + ", ".join(f"{count} {state}" for state, count in counts if count)
    yield "objective", ", ".join(_titled(objective.name) for objective in board.objectives)
    yield "strategy", ", ".join(setup["strategies"])
    (asked, held_out), (read, held_out_read) = setup["questions"], setup["passages"]
    yield "items", f"{asked} questions and {read} passages ({setup['set']}); held out {held_out} and {held_out_read}"


def _titled(name: str) -> str:
    return {
        "card": "card score (0 to 100)",
        "perplexity": "bits per byte",
        "kl": "KL divergence in nats",
        "speed": "speed of generating (base: 1)",
    }.get(name, name)


def _objectives(board: Board) -> str:
    return "objective" if len(board.objectives) == 1 else ", ".join(_heading(o.name) for o in board.objectives)


def leaderboard(board: Board, most: int | None = None) -> Table:
    """The base, its quantizations and the complete candidates, best first; `most` of them."""
    columns = [
        Column("rank", key=True),
        Column("recipe", left=True, key=True, least=24, wrap=True),
        *(Column(_heading(objective.name), _decimals(objective.name)) for objective in board.objectives),
        Column("speed 97%", lambda range_: "{:.2f}–{:.2f}".format(*range_), rank=1),
        Column("lost", rank=1),
        Column("gained", rank=1),
        Column("bits/byte − base", "{:+.4f}".format, rank=1),
        Column("p", "{:.2g}".format, rank=1),
        Column("layers", rank=2),
        Column("size", human_bytes, rank=2),
    ]
    lines = [line for line in (board.base, *board.rivals) if line is not None]
    return Table(columns, [_row(line) for line in (*lines, *board.best[:most])], most=SHOWN + len(lines))


def _row(line: Line) -> tuple[Any, ...]:
    """A row of the leaderboard."""
    questions = line.against.questions if line.against else None
    bits = line.against.bits if line.against else None
    tests = line.against.p_values() if line.against else []
    return (
        line.rank,
        line.name,
        *line.values,
        line.speeds,
        questions.first_only if questions else None,
        questions.second_only if questions else None,
        bits.estimate if bits else None,
        min(tests, default=None),
        line.layers,
        line.bytes,
    )


def confirmation(board: Board) -> Table:
    """The best candidates on the held-out items: lost and gained answers, bits a byte, and what survives the correction."""
    columns = [
        Column("rank", key=True),
        Column("recipe", left=True, key=True, least=24, wrap=True),
        Column("right", lambda pair: "{:.0f}/{:.0f}".format(*pair)),
        Column("lost", rank=1),
        Column("gained", rank=1),
        Column("bits/byte − base", "{:+.4f}".format),
        Column("p (Holm)", "{:.2g}".format),
        Column("shrinkage", "{:+.3f}".format, rank=1),
        Column("verdict", left=True),
    ]
    rows = []
    for line in board.best:
        found = line.confirmed
        if found is not None:
            questions, bits = found.against.questions, found.against.bits
            asked = found.figures.get("asked")
            rows.append(
                (
                    line.rank,
                    line.name,
                    (found.figures["right"], asked) if asked else None,
                    questions.first_only if questions else None,
                    questions.second_only if questions else None,
                    bits.estimate if bits else None,
                    found.p_value if found.p_value is not None else found.worse,
                    found.shrinkage,
                    "better" if found.survives else "worse" if found.is_worse else "no difference",
                )
            )
    return Table(columns, rows)


def pruned(board: Board) -> Table:
    """How many candidates each stage measured, and how many it ended."""
    stages: dict[str, list[int]] = {}
    for line in (*board.best, *board.others):
        for stage in line.record.results:
            stages.setdefault(stage, [0, 0, 0])[0] += 1
        last = next(reversed(list(line.record.results)), None)
        if last is not None and line.record.state in ("pruned", "failed"):
            stages[last][1 if line.record.state == "pruned" else 2] += 1
    columns = [
        Column("stage", left=True, key=True),
        Column("measured"),
        Column("pruned after it"),
        Column("failed after it"),
    ]
    return Table(columns, [(stage, *counts) for stage, counts in stages.items() if stage != HELD_OUT])


def _predictions(board: Board) -> Iterator[str]:
    what = {KL: "the KL divergence", TEXT: "the bits per byte"}
    for stage, value in board.predicted.items():
        yield f"rank correlation {value:.2f} with {what[stage]} of the candidates that were measured"


def _heading(name: str) -> str:
    return {"card": "score", "perplexity": "bits/byte", "kl": "KL"}.get(name, name)


def _decimals(name: str) -> Any:
    return {"card": "{:.2f}", "perplexity": "{:.4f}", "kl": "{:.2e}", "speed": "{:.2f}×"}.get(name, "{:.4g}").format
