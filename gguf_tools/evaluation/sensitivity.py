"""How sensitive a model's output is to the quantization of each tensor, measured by running the model.

The loss of a tensor in a type is the mean KL divergence of the next token's distribution, in nats, with only that tensor
quantized. It is measured once, with a probe type, and scaled to other types in proportion to their error: the squared
change of each weight times the mean square of the activations of its column. (For small changes the divergence is quadratic
in the change of the output, hence proportional to that error.)

`measured` is the one measurement, of `tinyq trace --budget` (each tensor in its type in a file) and of the types selected for a
size (each tensor in a coarse type). It guarantees: the divergence of a group of tensors is that with them alone rounded to their
probes, over all tokens of the chunks, and each has the share of it that its own error has in theirs; the file is restored; a
tensor that its probe does not change has the divergence 0, and predicted losses only for types that do not change it either.
Groups are single tensors, unless the model is so large that the caller limits the runs (`effort`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.effort import grouped
from gguf_tools.evaluation.metrics import Float, kl_from, log_softmax
from gguf_tools.evaluation.prompts import default_prompts, prompt_ids, render_prompt
from gguf_tools.formats.gguf.source import GGUFSource, GGUFTensor
from gguf_tools.progress import CountProgress, StageProgress
from gguf_tools.runtime.process import Runtime
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray, decode_rows, encode_rows, row_ranges
from quant.types import (
    F16,
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TensorType,
)

CANDIDATES = (Q8_0, Q6_K, Q5_K, Q5_0, Q5_1, Q4_K, Q4_0, Q4_1, Q3_K, Q2_K, IQ4_NL, IQ4_XS)
"""The types whose loss is predicted: those that need no importance matrix and are encoded in reasonable time."""
SAMPLE = 1 << 17
"""Number of weights sampled from a tensor to estimate the errors of the types."""
RUN = 16
"""Consecutive rows per piece of that sample."""
OWN_TOKENS = 100
"""Length in tokens of the continuation of each prompt, if no calibration text is given."""
SHORT = 64
"""The same with the prompt, if fewer tokens are wanted than that gives."""
LOGIT_BYTES = 512 << 20
"""Memory for the unquantized model's log-probabilities, which limits the number of tokens."""

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
"""Tensors that the forward pass looks up instead of multiplying, so that they have no activations."""

Sources = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sensitivity:
    """For each measured tensor, the KL divergence that each type is predicted to cause, in nats per token.

    `divergences` are measurements on `tokens` tokens with only that tensor quantized, to its type in `probes`, or shares of
    measurements of groups, if there were fewer `runs` than tensors. `sizes` are the root mean squares of the tensors' weights
    (`rms`), by which the measurement of another model is recognised.
    """

    losses: Mapping[str, Mapping[TensorType, float]]
    divergences: Mapping[str, float]
    probes: Mapping[str, TensorType]
    tokens: int
    sizes: Mapping[str, float]
    runs: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tokens": self.tokens,
            "runs": self.runs,
            "tensors": {
                name: {
                    "probe": self.probes[name].name,
                    "kl": kl,
                    "rms": self.sizes[name],
                    "losses": {dtype.name: loss for dtype, loss in self.losses[name].items()},
                }
                for name, kl in self.divergences.items()
            },
        }


def fitting_candidates(shape: tuple[int, ...]) -> list[TensorType]:
    """The types whose block size divides the row length: quantized types, and F16."""
    return [dtype for dtype in (*CANDIDATES, F16) if shape[-1] % dtype.block == 0]


def measured(
    runtime: Runtime,
    scratch: GGUFSource,
    sources: Sources,
    probes: Mapping[str, Sequence[TensorType]],
    importance: Mapping[str, FloatArray],
    chunks: Sequence[Sequence[int]],
    progress: StageProgress,
    most_runs: int | None = None,
) -> Sensitivity:
    """The divergence that each tensor in `probes` causes alone, and the predicted loss in each type that fits it.

    `scratch` is an F32 file of the tensors in `sources`, which `runtime` has open; its tensors are overwritten one at a time and
    then restored. A tensor's probe is the first of its types in `probes` that changes it. `importance` has the importance matrix
    of each tensor for the encoder, shape (matrices, columns). Tensors that the forward pass does not use (multi-token prediction
    layers) are left out. With `most_runs`, tensors are measured in groups where each alone would take more runs of the model.
    """
    chunks = readable(chunks, runtime.info.n_vocab)
    used = runtime.activations(chunks, process_output=True)
    reached = [name for name in probes if name in used or name in EMBEDDINGS]
    found: dict[str, dict[TensorType, float]] = {}
    chosen: dict[str, TensorType] = {}
    for done, name in enumerate(reached):
        tensor, kinds = sources[name], probes[name]
        activations = used[name].importance.reshape(-1, tensor.columns) if name in used else None
        wanted = list(dict.fromkeys([*fitting_candidates(tensor.shape), *kinds]))
        found[name] = errors(tensor, wanted, activations, importance.get(name), name)
        chosen[name] = next((kind for kind in kinds if found[name].get(kind)), kinds[0])
        progress("comparing types", done + 1, len(reached))
    changing = {name: probe for name, probe in chosen.items() if found[name].get(probe)}
    groups = grouped(list(changing), len(changing) if most_runs is None else most_runs)
    together = probed(runtime, scratch, sources, changing, groups, importance, chunks, partial(progress, "measuring"))
    kl: dict[str, float] = {}
    for group, divergence in zip(groups, together, strict=True):
        parts = {name: found[name][changing[name]] * sources[name].size / sources[name].columns for name in group}
        kl |= {name: divergence * part / sum(parts.values()) for name, part in parts.items()}
    losses = {}
    for name, error in found.items():
        scale = kl[name] / error[chosen[name]] if name in changing else 0.0
        losses[name] = {kind: scale * one for kind, one in error.items() if name in changing or not one}
    divergences, sizes = {name: kl.get(name, 0.0) for name in reached}, {name: rms(sources[name]) for name in reached}
    return Sensitivity(losses, divergences, chosen, sum(map(len, chunks)), sizes, len(groups))


def errors(
    tensor: Tensor,
    kinds: Sequence[TensorType],
    activations: FloatArray | None,
    importance: FloatArray | None,
    name: str,
) -> dict[TensorType, float]:
    """Error of each type, averaged over a sample of rows: squared changes times mean squared activations, summed over columns.

    `activations` and `importance` have shape (matrices, columns); `importance` is the importance matrix passed to the encoder.
    Types whose range is too small for the weights (F16) are omitted.
    """
    totals = dict.fromkeys(kinds, 0.0)
    seen = 0
    for matrix, rows in _sample(tensor):
        weights = None if activations is None else activations[matrix if len(activations) > 1 else 0]
        care = None if importance is None else importance[matrix if len(importance) > 1 else 0]
        seen += len(rows)
        for dtype in list(totals):
            try:
                change = decode_rows(encode_rows(rows, dtype, care, name=name), dtype, tensor.columns)
            except InputError:
                del totals[dtype]
                continue
            np.subtract(change, rows, out=change)
            by_column = np.square(change, dtype=np.float64).sum(axis=0)
            totals[dtype] += float(by_column.sum() if weights is None else by_column @ weights.astype(np.float64))
    return {dtype: total / seen for dtype, total in totals.items()}


def rms(tensor: Tensor) -> float:
    """The root mean square of a tensor's weights, from the sample that `errors` takes."""
    total, count = 0.0, 0
    for _, rows in _sample(tensor):
        total += float(np.square(rows, dtype=np.float64).sum())
        count += rows.size
    return float(np.sqrt(total / count))


def _sample(tensor: Tensor) -> Iterator[tuple[int, FloatArray]]:
    """Runs of consecutive rows at even distances over the tensor: (index of the matrix or expert, rows (n, columns))."""
    per_matrix = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    runs = list(row_ranges(tensor.shape, by_matrix=True, weights=RUN * tensor.columns))
    count = max(1, SAMPLE // (RUN * tensor.columns))
    step = max(1.0, len(runs) / count)
    for at in np.arange(0, len(runs), step).astype(int):
        part = runs[at]
        flat = tensor.flat(part.start * tensor.columns, part.stop * tensor.columns)
        yield part.start // per_matrix, flat.reshape(-1, tensor.columns)


@dataclass(frozen=True)
class Texts:
    """Chunks of tokens, and for each the log-probabilities of the unquantized model, shape (tokens, vocabulary)."""

    chunks: tuple[tuple[int, ...], ...]
    expected: tuple[Float, ...]


def readable(chunks: Sequence[Sequence[int]], n_vocab: int) -> tuple[tuple[int, ...], ...]:
    """As many of the first chunks as `LOGIT_BYTES` allow, at least one."""
    starts = accumulate(map(len, chunks), initial=0)
    room = LOGIT_BYTES // (8 * n_vocab)
    return tuple(tuple(chunk) for chunk, start in zip(chunks, starts, strict=False) if start < room)


def read_texts(runtime: Runtime, chunks: Sequence[Sequence[int]]) -> Texts:
    """The unquantized model's log-probabilities for the chunks that are `readable`."""
    parts = readable(chunks, runtime.info.n_vocab)
    return Texts(parts, tuple(map(log_softmax, runtime.iter_logits(parts))))


def own_texts(runtime: Runtime, chunk: int, most: int, progress: CountProgress = lambda *_: None) -> list[list[int]]:
    """The built-in prompts, each with the model's own greedy continuation: in-distribution text for any model.

    They have at most `chunk` tokens each, and about `most` in all: fewer prompts with shorter continuations if `most` is below
    what all of them give.
    """
    prompts = [
        prompt_ids(runtime, render_prompt(runtime, prompt, {}))
        for prompt in default_prompts(runtime.info.chat_template is not None)
    ]
    prompts = [ids for ids in prompts if 0 < len(ids) < chunk]
    wanted = [min(OWN_TOKENS, chunk - len(ids)) for ids in prompts]
    if sum(map(len, prompts)) + sum(wanted) > most:
        prompts = prompts[:: max(1, len(prompts) * SHORT // most)]
        wanted = [min(max(SHORT - len(ids), SHORT // 4), chunk - len(ids)) for ids in prompts]
    results = runtime.greedy(prompts, wanted, runtime.info.eog, progress)
    return [[*ids, *result.tokens] for ids, result in zip(prompts, results, strict=True)]


def divergence(runtime: Runtime, texts: Texts) -> float:
    """Mean KL divergence from the unquantized model, in nats per token."""
    total, count = 0.0, 0
    for expected, model in zip(texts.expected, runtime.iter_logits(texts.chunks), strict=True):
        found = kl_from(expected, model)
        total += float(found.sum())
        count += found.size
    return total / count


def probed(
    runtime: Runtime,
    scratch: GGUFSource,
    sources: Mapping[str, Tensor],
    probes: Mapping[str, TensorType],
    groups: Sequence[Sequence[str]],
    importance: Mapping[str, FloatArray],
    chunks: Sequence[Sequence[int]],
    progress: CountProgress,
) -> list[float]:
    """For each group of tensors, the KL divergence with only these rounded to their types in `probes`, in nats per token.

    `scratch` is an F32 file of the tensors in `sources`, which `runtime` has open; the tensors are overwritten and restored.
    `progress` counts the runs of the model; the first is that of the unquantized one, by which the time can be estimated.
    """
    found: list[float] = []
    progress(0, len(groups) + 1)
    texts = read_texts(runtime, chunks)
    for group in groups:
        progress(len(found) + 1, len(groups) + 1)
        some = {name: sources[name] for name in group}
        overwrite(scratch, some, {name: probes[name] for name in group}, importance)
        runtime.reload()
        found.append(divergence(runtime, texts))
        overwrite(scratch, some)
    progress(len(groups) + 1, len(groups) + 1)
    return found


def overwrite(
    scratch: GGUFSource,
    sources: Sources,
    types: Mapping[str, TensorType] | None = None,
    importance: Mapping[str, FloatArray] | None = None,
) -> None:
    """Write tensors of `sources` into an F32 file; those in `types` after encoding to and decoding from that type."""
    types, importance = types or {}, importance or {}
    with scratch.path.open("r+b") as stream:
        for name, tensor in sources.items():
            place = scratch.tensor(name)
            assert isinstance(place, GGUFTensor)
            stream.seek(place.data_offset + place.entry.offset)
            _write(stream, name, tensor, types.get(name), importance.get(name))


def _write(
    stream: BinaryIO, name: str, tensor: Tensor, dtype: TensorType | None, importance: FloatArray | None
) -> None:
    """Write a tensor as float32; with `dtype`, after encoding to and decoding from that type."""
    by_matrix = importance is not None and len(importance) > 1
    for part in row_ranges(tensor.shape, by_matrix):
        rows = tensor.flat(part.start * tensor.columns, part.stop * tensor.columns).reshape(-1, tensor.columns)
        if dtype is not None:
            care = None if importance is None else importance[part.matrix if by_matrix else 0]
            rows = decode_rows(encode_rows(rows, dtype, care, name=name), dtype, tensor.columns)
        stream.write(rows.astype("<f4", copy=False).data)
