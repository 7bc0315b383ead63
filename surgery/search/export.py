"""A candidate of a study as a recipe, with the file that it is applied to."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.source import gguf_digest
from surgery.recipe import Recipe
from surgery.search.leaderboard import read_board
from surgery.search.ledger import Ledger


def chosen_recipe(ledger: Ledger, rank: int, source: Path | None) -> tuple[Path, Recipe]:
    """The base of a study, and the recipe of the candidate of a rank.

    InputError for a rank that no candidate has, and where the base is not there, or is not the file that was searched.
    """
    board = read_board(ledger)
    line = next((line for line in board.best if line.rank == rank), None)
    if line is None:
        raise InputError(
            f"--rank {rank}: the study {ledger.name} has {len(board.best)} complete candidates; give a rank of 1 to "
            f"{len(board.best)}"
            if board.best
            else f"--rank {rank}: the study {ledger.name} has no complete candidate yet"
        )
    base = source or Path(ledger.path)
    if not base.is_file():
        raise InputError(f"{base}: is not there; give the file that was searched with --source")
    if gguf_digest(base) != ledger.setup["source"]:
        raise InputError(f"{base}: is not, or no longer, the file that was searched; give that with --source")
    return base, line.record.entry.parsed
