"""Reads golden folders, and dumps of an engine in the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden.values import Array
from gguf_tools.evaluation.golden.write import DATA, FACTS, FORMAT
from gguf_tools.evaluation.golden_logits import SUFFIXES, read_arrays
from gguf_tools.formats.text_file import Kind, check_regular, is_finite, load_json, read_bytes
from gguf_tools.text import one_line, shortened


@dataclass(frozen=True, kw_only=True)
class GoldenPrompt:
    """One prompt of a golden folder: token ids, text if there is one, the ids of the greedy continuation, and its text up to the
    first control token or incomplete character, if it is known."""

    tokens: tuple[int, ...]
    text: str | None
    greedy: tuple[int, ...]
    continuation: str | None = None


@dataclass(frozen=True, kw_only=True)
class GoldenFiles:
    """A golden folder: its prompts, its arrays, and the tolerances by arithmetic and name."""

    folder: Path
    prompts: tuple[GoldenPrompt, ...]
    arrays: Mapping[str, Array]
    tolerances: Mapping[str, Mapping[str, float]]
    vocab_size: int


def read_golden_files(folder: Path) -> GoldenFiles:
    """Read a golden folder. Raises InputError, naming the file, if one is missing or broken, or they contradict each other."""
    facts_path, data_path = folder / FACTS, folder / DATA
    for path in (facts_path, data_path):
        if not path.is_file():
            raise InputError(f"{path}: is missing; give a folder that tinyq golden wrote")
    try:
        facts = load_json(read_bytes(facts_path, Kind.GOLDEN, InputError))
        if not isinstance(facts, dict) or facts["format"] != FORMAT:
            raise ValueError(f"format is {shortened(repr(facts.get('format')))}, {FORMAT} expected")
        prompts = tuple(
            GoldenPrompt(
                tokens=_ids(one["tokens"]),
                text=_text(one["text"]),
                greedy=_ids(one["greedy"]),
                continuation=_text(one.get("continuation")),
            )
            for one in facts["prompts"]
        )
        limits = {
            str(kind): {str(name): finite(value) for name, value in values.items()}
            for kind, values in facts["tolerances"].items()
        }
        size = facts["model"]["vocab_size"]
        if type(size) is not int or not prompts:
            raise ValueError("there are no prompts, or the vocabulary has no size")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = shortened(one_line(str(error)), 160)
        raise InputError(f"{facts_path}: is not what tinyq golden writes ({text}); write it again") from error
    arrays = read_dump(data_path)
    empty = next((name for name, array in arrays.items() if not array.ndim or not array.size), None)
    if empty is not None:
        raise InputError(f"{data_path}: {empty} has no tokens; write it again")
    for n, prompt in enumerate(prompts):
        logits = arrays.get(f"logits_{n}")
        if logits is None or logits.shape != (len(prompt.tokens), size):
            raise InputError(
                f"{data_path}: logits_{n} is missing or has another shape than golden.json says; write it again"
            )
    return GoldenFiles(folder=folder, prompts=prompts, arrays=arrays, tolerances=limits, vocab_size=size)


def finite(value: Any) -> float:
    """A finite number as a float; ValueError for anything else."""
    if not is_finite(value):
        raise ValueError(f"{shortened(repr(value))} is not a finite number")
    return float(value)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError("a list of token ids is expected")
    return tuple(value)


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("a prompt's text is expected")
    return value


def read_dump(path: Path) -> dict[str, Array]:
    """All arrays of a .npz or .safetensors file. Raises InputError if it cannot be read."""
    check_regular(path, InputError)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: its name ends in {path.suffix or 'nothing'}; expected .safetensors or .npz")
    arrays = {name: array for name, (array, _) in read_arrays(path, "the arrays").items()}
    for name, array in arrays.items():
        if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
            raise InputError(
                f"{path}: the arrays cannot be read ({name} holds {array.dtype}, numbers expected); write them with numpy.savez"
            )
    return arrays
