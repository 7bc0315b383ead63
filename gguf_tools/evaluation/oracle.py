"""Compares the torch reference with an oracle: independent code that computes the same model's logits.

The torch reference and the conversion use the same spec, so they share the error if a family misreads a config. An oracle
does not use the spec: it is the model's class in the transformers library, a function of the user, or logits in a file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden_logits import SUFFIXES, Golden, read_golden
from gguf_tools.evaluation.metrics import Logits
from gguf_tools.evaluation.oracle_check import OracleCheck
from gguf_tools.evaluation.prompts import Prompt, default_prompts, prompt_ids, render_prompt, text_pieces
from gguf_tools.evaluation.reference_source import ReferenceSource
from gguf_tools.evaluation.transformers_model import FLOAT32, TransformersModel, fits
from gguf_tools.reference import Reference
from gguf_tools.runtime.interface import RuntimeLike
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.error import ratio
from gguf_tools.text import one_line, shortened

Kind = Literal["auto", "none", "transformers", "function", "golden"]
Sequences = tuple[tuple[int, ...], ...]
Function = Callable[[list[int]], Any]

SHORT = 16
"""Maximum number of tokens in the prompt of the default check (`auto`)."""
SHORT_TEXT = "The first snow fell on the 12th of November, and by noon the whole valley was white and still."


@dataclass(frozen=True)
class OracleChoice:
    """The value of `--oracle`; `auto` uses transformers on one short prompt, if it can run the source."""

    kind: Kind
    value: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An oracle's logits for token sequences, each (length, vocabulary), and the largest NMSE that its rounding explains."""

    name: str
    sequences: Sequences
    logits: tuple[Logits, ...]
    arithmetic: str
    bound: float
    notes: tuple[str, ...] = ()


def parse_oracle(text: str) -> OracleChoice:
    """Parse `auto`, `none`, `transformers`, a file of golden logits (by its suffix), or MODULE:FUNCTION.

    Raises InputError for anything else.
    """
    if text == "auto":
        return OracleChoice("auto")
    if text in ("none", "transformers"):
        return OracleChoice("none" if text == "none" else "transformers")
    if text.endswith(SUFFIXES):
        return OracleChoice("golden", text)
    module, _, function = text.partition(":")
    if all(part.isidentifier() for part in (*module.split("."), function)):
        return OracleChoice("function", text)
    raise InputError(
        f"oracle {shortened(text)!r} is not known; expected transformers, MODULE:FUNCTION, a file of golden logits "
        f"({', '.join(SUFFIXES)}) or none"
    )


class Oracles:
    """The oracle for all files of a run; for a source that several files share it is run once."""

    def __init__(self, choice: OracleChoice) -> None:
        """Load the function or the golden logits. Raises InputError if that fails."""
        self.choice = choice
        self._function = _load_function(choice.value) if choice.kind == "function" else None
        self._golden = read_golden(Path(choice.value)) if choice.kind == "golden" else []
        self._held: dict[tuple[object, Sequences], tuple[Answer, OracleCheck]] = {}

    def sequences(self, runtime: RuntimeLike, prompts: Sequence[Prompt] | None, text: str | None) -> Sequences:
        """The token sequences to compare: the suite's prompts and the given text, or one short prompt for `auto`.

        Golden logits have their own sequences. Raises InputError if no sequence has a token.
        """
        if self._golden:
            return tuple(golden.tokens for golden in self._golden)
        if self.choice.kind == "auto":
            return (tuple(prompt_ids(runtime, SHORT_TEXT)[: min(SHORT, runtime.context_limit)]) or (0,),)
        if prompts is None:
            prompts = default_prompts(runtime.info.chat_template is not None)
        found = [prompt_ids(runtime, render_prompt(runtime, prompt, {})) for prompt in prompts]
        found += text_pieces(runtime, text) if text else []
        kept = tuple(tuple(ids[: runtime.context_limit]) for ids in found if ids)
        if not kept:
            raise InputError(
                "no prompt has a token, so there is nothing to compare with the oracle; give other prompts"
            )
        return kept

    def check(
        self,
        source: ReferenceSource,
        runtime: RuntimeLike,
        prompts: Sequence[Prompt] | None = None,
        text: str | None = None,
    ) -> OracleCheck | str | None:
        """Compare the source's reference and llama.cpp with the oracle.

        Returns a sentence if `auto` could not run transformers, None if there is nothing to compare with. Raises InputError
        if a requested oracle is not available or does not fit the model.
        """
        if self.choice.kind == "auto" and source.checkpoint is None:
            return None  # the file's own weights: only the engine is compared
        sequences = self.sequences(runtime, prompts, text)
        check = self.check_source(source, sequences)
        if source.recipe or not isinstance(check, OracleCheck):
            return check
        answer, _ = self._hold(source, sequences)
        return replace(check, nmse_model=nmse(runtime.iter_logits(answer.sequences), answer, "llama.cpp"))

    def check_source(self, source: ReferenceSource, sequences: Sequences) -> OracleCheck | str | None:
        """Like `check`, for the source's reference only."""
        if self.choice.kind == "none" or (source.model is None and self.choice.kind in ("auto", "transformers")):
            return None  # transformers is the reference already
        try:
            return self._hold(source, sequences)[1]
        except InputError as error:
            if self.choice.kind != "auto":
                raise
            return f"the reference is not compared with other code: {error}"

    def _hold(self, source: ReferenceSource, sequences: Sequences) -> tuple[Answer, OracleCheck]:
        """The oracle's logits, compared with the reference of the source before any surgery; cached for the next file."""
        adapters = source.checkpoint.adapter_identity if source.checkpoint else ()
        key = (source.path.resolve(), adapters), sequences
        if key not in self._held:
            answer = self._ask(source.checkpoint, sequences, source.path)
            self._held[key] = answer, hold_reference(source, answer)
        return self._held[key]

    def _ask(self, checkpoint: Checkpoint | None, sequences: Sequences, path: Path) -> Answer:
        if self._golden:
            return _golden_answer(self.choice.value, self._golden)
        if self._function is not None:
            return _function_answer(self.choice.value, self._function, sequences)
        if checkpoint is None:
            raise InputError(
                f"{path}: transformers needs the checkpoint that the file was made from; give it with --reference"
            )
        return transformers_answer(checkpoint, sequences)


def transformers_answer(checkpoint: Checkpoint, sequences: Sequences) -> Answer:
    """The logits of the checkpoint's class in transformers. Raises InputError as `TransformersModel` does."""
    loaded = TransformersModel(checkpoint)
    logits = tuple(loaded.logits(sequences))
    return Answer(
        name=loaded.name,
        sequences=sequences,
        logits=_checked(logits, sequences, loaded.name),
        arithmetic=loaded.arithmetic,
        bound=loaded.bound,
        notes=loaded.notes,
    )


def hold_reference(source: ReferenceSource, answer: Answer) -> OracleCheck:
    """Compare the source's reference, before any surgery, with the oracle; in float64 if the weights fit into memory.

    Raises InputError if there is no reference, or if its logits have another shape than the oracle's.
    """
    model = source.unchanged or source.model
    reference: Reference | TransformersModel
    if model is not None:
        wide, vocabulary = fits(model.parameters, 8), model.spec.vocab_size
        reference = Reference(model, torch.float64 if wide else torch.float32)
    elif source.checkpoint is not None:
        reference = TransformersModel(source.checkpoint)
        wide, vocabulary = reference.dtype == torch.float64, reference.vocab_size
    else:
        raise InputError(f"{source.path}: there is no reference to compare with {answer.name}")
    if any(not 0 <= token < vocabulary for sequence in answer.sequences for token in sequence):
        raise InputError(f"{answer.name}: has token ids beyond the model's vocabulary of {vocabulary} tokens")
    ours = (reference.logits([sequence])[0] for sequence in answer.sequences)
    arithmetic = answer.arithmetic if wide else f"{answer.arithmetic}, the reference in float32"
    return OracleCheck(
        name=answer.name,
        nmse=nmse(ours, answer, "the reference"),
        nmse_model=None,
        bound=answer.bound if wide else max(answer.bound, FLOAT32),
        arithmetic=arithmetic,
        n_sequences=len(answer.sequences),
        n_tokens=sum(map(len, answer.sequences)),
        notes=answer.notes,
    )


def nmse(logits: Iterable[Logits], answer: Answer, whose: str) -> float:
    """Σ|logits − oracle|² / Σ|oracle|² over all positions of all sequences, in float64."""
    difference = energy = 0.0
    for found, wanted in zip(logits, answer.logits, strict=True):
        if found.shape != wanted.shape:
            raise InputError(
                f"{answer.name}: gives logits of shape {wanted.shape}, but {whose} of {found.shape}; give an oracle of "
                "the same model"
            )
        for ours, theirs in zip(found, wanted, strict=True):  # row by row: no second copy in float64
            row = theirs.astype(np.float64)
            difference += float(np.square(ours.astype(np.float64) - row).sum())
            energy += float(np.square(row).sum())
    return ratio(difference, energy)


def _checked(logits: Sequence[Logits], sequences: Sequences, name: str) -> tuple[Logits, ...]:
    for index, (values, tokens) in enumerate(zip(logits, sequences, strict=True)):
        if values.ndim != 2 or len(values) != len(tokens):
            raise InputError(
                f"{name}: gives an array of shape {values.shape} for {len(tokens)} tokens; expected ({len(tokens)}, vocabulary)"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{name}: gives NaN or infinite logits for sequence {index}; expected finite logits")
    return tuple(logits)


def _bound(dtype: str) -> float:
    """The largest NMSE that rounding explains for logits of that dtype, computed in float32 at best."""
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0.0)  # largest relative rounding error
    return max(FLOAT32, half**2)


def _golden_answer(name: str, golden: Sequence[Golden]) -> Answer:
    kinds = {one.dtype for one in golden}
    return Answer(
        name=Path(name).name,
        sequences=tuple(one.tokens for one in golden),
        logits=tuple(one.logits for one in golden),
        arithmetic=f"stored as {' and '.join(sorted(kinds))}",
        bound=max(map(_bound, kinds)),
    )


def called(text: str, sequences: Sequences) -> tuple[tuple[Logits, ...], tuple[str, ...]]:
    """The logits of the function MODULE:FUNCTION for each sequence, and the types in which it gave them.

    Raises InputError if it cannot be imported, fails, or gives something else.
    """
    if parse_oracle(text).kind != "function":
        raise InputError(f"oracle {shortened(text)!r} is not a function; expected MODULE:FUNCTION")
    function = _load_function(text)
    given = [_array(text, function(list(tokens))) for tokens in sequences]
    return _checked([values for values, _ in given], sequences, f"oracle {text}"), tuple(kind for _, kind in given)


def _load_function(text: str) -> Function:
    """Import the function that the user named; modules may be in the working directory. Raises InputError."""
    module, _, name = text.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise InputError(f"oracle {text}: cannot be imported ({_reason(error)})") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise InputError(f"oracle {text}: is a {type(found).__name__}; expected a function of a list of token ids")
    return partial(_call, found, text)


def _call(function: Function, text: str, tokens: list[int]) -> Any:
    try:
        return function(tokens)
    except (Exception, SystemExit) as error:
        raise InputError(f"oracle {text}: failed on {len(tokens)} tokens ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    return shortened(f"{type(error).__name__}: {one_line(str(error))}", 200)


def _function_answer(name: str, function: Function, sequences: Sequences) -> Answer:
    given = [_array(name, function(list(tokens))) for tokens in sequences]
    logits, kinds = tuple(values for values, _ in given), {dtype for _, dtype in given}
    return Answer(
        name=name,
        sequences=sequences,
        logits=_checked(logits, sequences, f"oracle {name}"),
        arithmetic=f"given as {' and '.join(sorted(kinds))}",
        bound=max(map(_bound, kinds)),
    )


def _array(name: str, values: Any) -> tuple[Logits, str]:
    """A function's result (an array or a torch tensor) as a numpy array, and its original dtype."""
    try:
        if isinstance(values, torch.Tensor):
            dtype = str(values.dtype).removeprefix("torch.")
            return values.detach().double().cpu().numpy(), dtype
        found = np.asarray(values)
        return (found, str(found.dtype)) if found.dtype.kind == "f" else (found.astype(np.float64), "float64")
    except (TypeError, ValueError) as error:
        raise InputError(f"oracle {name}: gives a {type(values).__name__}; expected an array of logits") from error
