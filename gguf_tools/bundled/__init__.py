"""The trained checkpoints that come with tinyq, and what they were taught."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.errors import InputError

FOLDER = Path(__file__).parent
MODELS = ("hybrid", "dense")
FACTS = FOLDER / "facts.jsonl"
"""The questions that the bundled models were taught, in a fixed order."""


def bundled_model(name: str) -> Path:
    """The folder of the bundled checkpoint `name`; InputError for another name or a broken installation."""
    folder = FOLDER / name
    if name not in MODELS or not (folder / "config.json").exists():
        raise InputError(f"bundled model {name} is not there; {' and '.join(MODELS)} are, in a whole installation")
    return folder
