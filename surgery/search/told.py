"""A search as a section of a model card, in Markdown."""

from __future__ import annotations

from gguf_tools.text import for_markdown
from surgery.search.leaderboard import Board
from surgery.search.report import SHOWN, confirmation, leaderboard, summary


def search_section(board: Board) -> str:
    """The verdict, what was searched, the leaderboard beside the base, and what held-out items confirmed."""
    parts = ["## Search", for_markdown(board.verdict)]
    parts += [f"- {name}: {for_markdown(value)}" for name, value in summary(board) if name != "study"]
    text = [parts[0], "", parts[1], "", *parts[2:], "", leaderboard(board, most=SHOWN).markdown()]
    if any(line.confirmed for line in board.best):
        text += ["", "On held-out items, beside the base:", "", confirmation(board).markdown()]
    return "\n".join([*text, ""])
