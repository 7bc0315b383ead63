"""Engines that are held to golden values: llama.cpp on a GGUF, and a command that prints token ids."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden.check import Check, FirstBad, check_arrays, check_greedy
from gguf_tools.evaluation.golden.program import printed
from gguf_tools.evaluation.golden.read import GoldenFiles
from gguf_tools.evaluation.golden.values import Array
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import all_targets
from gguf_tools.text import shortened


def check_gguf(golden: GoldenFiles, path: Path, kind: str, most: float | None, threads: int | None) -> Check:
    """Run a GGUF in llama.cpp with its most exact settings, and compare logits and continuations.

    Where llama.cpp's own arithmetic is coarser than float32's, as for GELU, the architecture's bound counts.
    """
    dump: dict[str, Array] = {}
    notes: tuple[str, ...] = ()
    with Runtime(path, RuntimeOptions(threads=threads)) as runtime:
        if runtime.info.n_vocab != golden.vocab_size:
            raise InputError(f"{path}: has {runtime.info.n_vocab} tokens, the golden values {golden.vocab_size}")
        target = next((one for one in all_targets() if one.name == runtime.info.arch and one.nmse), None)
        if target and most is None:
            most = max(target.nmse, golden.tolerances.get(kind, {}).get("logits", 0.0))
            notes = (f"an NMSE up to {most:.0e} is allowed: {target.why}",)
        prompts = [list(prompt.tokens) for prompt in golden.prompts]
        counts = [len(prompt.greedy) for prompt in golden.prompts]
        for n, logits in enumerate(runtime.iter_logits(prompts)):
            dump[f"logits_{n}"] = logits
        for n, result in enumerate(runtime.greedy(prompts, counts)):
            dump[f"greedy_{n}"] = np.array(result.tokens, np.int64)
    found = check_arrays(golden, dump, f"llama.cpp on {path}", kind, most)
    return replace(found, notes=(*notes, *found.notes))


def check_command(golden: GoldenFiles, command: str, model: str) -> Check:
    """Run a program for each prompt; the token ids on its stdout must be the golden continuation, after the prompt or without.

    `{model}`, `{tokens}` (ids joined by commas) and `{count}` in the command are replaced. Raises InputError if the program
    fails, or prints no numbers.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise InputError(
            f"the command {shortened(command, 120)!r} cannot be split into words ({error}); close its quotes"
        ) from error
    if not any("{tokens}" in part for part in parts):
        raise InputError(f"the command {command!r} has no {{tokens}}, where the ids of the prompt are put; give it one")
    first: FirstBad | None = None
    total = 0
    for n, prompt in enumerate(golden.prompts):
        values = {"{model}": model, "{tokens}": ",".join(map(str, prompt.tokens)), "{count}": str(len(prompt.greedy))}
        line = [_filled(part, values) for part in parts]
        ids = [int(text) for text in re.findall(r"[0-9]{1,9}", printed(line))]
        if not ids and prompt.greedy:
            raise InputError(
                f"the command {line[0]} printed no token ids for prompt {n}; expected {len(prompt.greedy)}"
            )
        if tuple(ids[: len(prompt.tokens)]) == prompt.tokens and len(ids) > len(prompt.tokens):
            ids = ids[len(prompt.tokens) :]
        total += len(ids)
        first = first or check_greedy(golden, n, ids)
    notes = ("only the greedy continuation is compared, since a command prints token ids",)
    return Check(engine=f"command {parts[0]}", compared=(), first=first, notes=notes, greedy=total)


def _filled(part: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        part = part.replace(key, value)
    return part
