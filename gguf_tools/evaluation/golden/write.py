"""Writes golden folders: `golden.safetensors`, `golden.json`, and a README for readers without tinyq."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import TokenType

from gguf_tools import __version__
from gguf_tools.errors import InputError, is_read_error
from gguf_tools.evaluation.golden.meanings import MEANINGS, readme
from gguf_tools.evaluation.golden.values import Array, Prompt, Values, golden_values, kind_of, tolerances
from gguf_tools.evaluation.prompts import base_prompts
from gguf_tools.evaluation.reference_source import encoded
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.families.registry import build_model
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.formats.gguf.source import gguf_digest, open_gguf
from gguf_tools.formats.output import GOLDEN
from gguf_tools.formats.safetensors import Stored, write_safetensors
from gguf_tools.model.spec import Model
from gguf_tools.reference.decoder import frequency_limits
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.targets.registry import lift
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer

FORMAT = 1
DATA, FACTS, README = "golden.safetensors", GOLDEN, "README.md"
PROMPTS = 3
"""Prompts that are used by default."""
TOKENS = 24
"""Most tokens of a default prompt."""
NEW = 8
"""Tokens generated after each prompt."""
_SEED = 3


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What was written: the folder, the arrays with shapes, the tolerances, and the bytes of the data."""

    folder: Path
    arrays: Mapping[str, tuple[int, ...]]
    tolerances: Mapping[str, Mapping[str, float]]
    prompts: int
    nbytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "prompts": self.prompts,
            "arrays": {name: list(shape) for name, shape in self.arrays.items()},
            "tolerances": {name: dict(values) for name, values in self.tolerances.items()},
            "bytes": self.nbytes,
        }

    def __str__(self) -> str:
        logits = ", ".join(f"{name} {values['logits']:.0e}" for name, values in self.tolerances.items())
        return "\n".join(
            [
                f"folder      {self.folder}",
                f"prompts     {self.prompts}",
                f"arrays      {len(self.arrays)}, {self.nbytes:,} bytes",
                f"tolerances  NMSE of the logits: {logits}",
            ]
        )


def opened(source: Path) -> tuple[Model, Tokenizer | None, str]:
    """The model of a checkpoint or GGUF, its tokenizer if it has one that can be converted, and its digest."""
    if source.is_file() and is_gguf(source):
        return lift(open_gguf(source)), None, gguf_digest(source)
    checkpoint = open_checkpoint(source)
    model = build_model(checkpoint, check_type=check_model_type)
    try:
        tokenizer = load_tokenizer(checkpoint.folder, model.spec.vocab_size, config=checkpoint.config, drop_tokens=True)
    except InputError as error:
        if is_read_error(error):
            raise
        return model, None, checkpoint.digest()
    return model, tokenizer, checkpoint.digest()


def prompts_for(
    model: Model, tokenizer: Tokenizer | None, texts: Sequence[str] | None, most_bytes: int | None = None
) -> list[Prompt]:
    """The texts as prompts; without a tokenizer, sequences of random tokens that depend on the vocabulary's size only.

    Prompts that are not given are cut, to `TOKENS` tokens and so that their float32 logits take at most `most_bytes`. LongRoPE's
    frequencies depend on the length, and in llama.cpp on that of the context, a multiple of 256: where prompts and their
    continuations would have both, all are beyond the limit.
    """
    fitting = TOKENS if most_bytes is None else most_bytes // (4 * PROMPTS * model.spec.vocab_size)
    most = max(1, min(TOKENS, fitting, model.spec.context_length - NEW))
    room = min(most + NEW, model.spec.context_length - NEW)
    limits = [limit for limit in frequency_limits(model.spec) if limit < room]
    least = max(limits, default=0) + 1
    most = max(most, least)
    if tokenizer is None:
        rng = np.random.default_rng(_SEED)
        lengths = [max(least, length) for length in (most, most // 2, 1)]
        return [Prompt(tokens=tuple(rng.integers(0, model.spec.vocab_size, length).tolist())) for length in lengths]
    given = texts or [prompt.text for prompt in base_prompts()[:PROMPTS]]
    made = []
    for text in given:
        ids = tuple(encoded(tokenizer, text, True))
        if texts is None and ids and not least <= len(ids) <= most:  # no text stands for a part of it, nor for more
            made.append(Prompt(tokens=tuple(islice(cycle(ids), max(least, min(most, len(ids)))))))
        elif ids:
            made.append(Prompt(tokens=ids, text=text))
    return made


def write_golden(
    source: Path,
    folder: Path,
    *,
    points: bool = False,
    texts: Sequence[str] | None = None,
    new_tokens: int = NEW,
    most_bytes: int | None = None,
) -> Golden:
    """Write the golden files of `source` into the existing folder; `most_bytes` limits the logits of prompts that are not given.

    Errors as opening the source; InputError for more tokens than the context holds, and for texts without a tokenizer.
    """
    model, tokenizer, digest = opened(source)
    if texts is not None and tokenizer is None:
        raise InputError(
            f"{source}: has no tokenizer that --prompts can be read with (of a GGUF it is not read); give a checkpoint with one, "
            "or leave --prompts out"
        )
    prompts = prompts_for(model, tokenizer, texts, most_bytes)
    longest, context = max((len(prompt.tokens) for prompt in prompts), default=0), model.spec.context_length
    if new_tokens > max(NEW, context - longest):
        raise InputError(
            f"{new_tokens} tokens after a prompt of {longest} do not fit into the context of {context}; give fewer --tokens"
        )
    values = golden_values(model, prompts, new_tokens, points=points)
    allowed = tolerances(model, values)
    arrays = _arrays(values)
    write_safetensors(folder / DATA, [_stored(name, array) for name, array in arrays.items()], {"format": "golden"})
    facts = {
        "format": FORMAT,
        "tinyq": __version__,
        "source": {"name": source.resolve().name, "digest": digest, "family": model.family},
        "model": {
            "vocab_size": model.spec.vocab_size,
            "hidden": model.spec.hidden,
            "layers": len(model.spec.layers),
            "pattern": model.spec.pattern,
        },
        "prompts": [
            {
                "tokens": list(one.prompt.tokens),
                "text": one.prompt.text,
                "greedy": list(one.greedy),
                "continuation": continuation(tokenizer, one) if tokenizer and one.prompt.text else None,
            }
            for one in values
        ],
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "meaning": meaning_of(name)}
            for name, array in arrays.items()
        },
        "tolerances": allowed,
    }
    # Names of files may contain bytes that are not UTF-8; they become escapes, which are valid in JSON.
    (folder / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")
    (folder / README).write_text(readme(facts), "utf-8", "backslashreplace")
    return Golden(
        folder=folder,
        arrays={name: array.shape for name, array in arrays.items()},
        tolerances=allowed,
        prompts=len(values),
        nbytes=(folder / DATA).stat().st_size,
    )


def continuation(tokenizer: Tokenizer, values: Values) -> str | None:
    """The text of the greedy tokens up to the first control token or incomplete character; None if there is none."""
    kinds = tokenizer.token_types
    greedy = list(takewhile(lambda token: kinds[token] != TokenType.CONTROL, values.greedy))
    before = tokenizer.decode(values.prompt.tokens)
    whole = tokenizer.decode([*values.prompt.tokens, *greedy])
    if not whole.startswith(before):  # the prompt ends within a character
        return None
    return whole.removeprefix(before).partition("\ufffd")[0] or None


def _arrays(values: Sequence[Values]) -> dict[str, Array]:
    """The arrays of a golden file by name; numbers in float32, ids in int64."""
    arrays: dict[str, Array] = {}
    for n, one in enumerate(values):
        arrays[f"tokens_{n}"] = np.array(one.prompt.tokens, np.int64)
        for point, array in one.points.items():
            whole = point.endswith("moe.chosen")
            arrays[f"points_{n}.{point}"] = array.astype(np.int64 if whole else np.float32)
        arrays[f"logits_{n}"] = one.logits.astype(np.float32)
        arrays[f"greedy_{n}"] = np.array(one.greedy, np.int64)
        arrays[f"margins_{n}"] = np.array(one.margins, np.float32)
    return arrays


def _stored(name: str, array: Array) -> Stored:
    kind, width = ("I64", 8) if array.dtype == np.int64 else ("F32", 4)
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return Stored(name=name, dtype=kind, shape=array.shape, width=width, pieces=[data])


def meaning_of(name: str) -> str:
    """What an array of a golden file is."""
    kind, _, point = name.partition(".")
    return MEANINGS.get(kind_of(point) if point else kind.partition("_")[0], "")
