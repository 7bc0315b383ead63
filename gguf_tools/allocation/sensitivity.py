"""How sensitive a model's output is to the quantization of each tensor, measured by running the model.

The loss of a tensor in a type is the mean KL divergence of the next token's distribution, in nats, with only that tensor
quantized. It is measured once, with a probe type, and scaled to other types in proportion to their error: the squared
change of each weight times the mean square of the activations of its column. (For small changes the divergence is quadratic
in the change of the output, hence proportional to that error.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.metrics import kl_divergence
from gguf_tools.evaluation.prompts import default_prompts, prompt_ids, render_prompt
from gguf_tools.formats.gguf.source import GGUFSource, GGUFTensor
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.process import Runtime
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray, decode_rows, encode_rows, row_ranges
from quant.types import TensorType

SAMPLE = 1 << 17
"""Number of weights sampled from a tensor to estimate the errors of the types."""
RUN = 16
"""Consecutive rows per piece of that sample."""
OWN_TOKENS = 100
"""Length in tokens of the continuation of each prompt, if no calibration text is given."""
LOGIT_BYTES = 256 << 20
"""Memory for the unquantized model's logits, which limits the number of tokens."""


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
    """Chunks of tokens, and for each the logits of the unquantized model, shape (tokens, vocabulary)."""

    chunks: tuple[tuple[int, ...], ...]
    logits: tuple[FloatArray, ...]


def read_texts(runtime: Runtime, chunks: Sequence[Sequence[int]]) -> Texts:
    """The unquantized model's logits for as many of the first chunks as `LOGIT_BYTES` allow, at least one."""
    starts = accumulate(map(len, chunks), initial=0)
    room = LOGIT_BYTES // (4 * runtime.info.n_vocab)
    parts = tuple(tuple(chunk) for chunk, start in zip(chunks, starts, strict=False) if start < room)
    return Texts(parts, tuple(runtime.logits(parts)))


def own_texts(runtime: Runtime, chunk: int) -> list[list[int]]:
    """The built-in prompts, each with the model's own greedy continuation: in-distribution text for any model."""
    chunks = []
    for prompt in default_prompts(runtime.info.chat_template is not None):
        chunks.append(prompt_ids(runtime, render_prompt(runtime, prompt, {})))
    chunks = [ids for ids in chunks if 0 < len(ids) < chunk]
    results = runtime.greedy(chunks, [min(OWN_TOKENS, chunk - len(ids)) for ids in chunks], runtime.info.eog)
    return [[*ids, *result.tokens] for ids, result in zip(chunks, results, strict=True)]


def divergence(runtime: Runtime, texts: Texts) -> float:
    """Mean KL divergence from the unquantized model, in nats per token."""
    total, count = 0.0, 0
    for reference, model in zip(texts.logits, runtime.iter_logits(texts.chunks), strict=True):
        found = kl_divergence(reference, model)
        total += float(found.sum())
        count += found.size
    return total / count


def probed(
    runtime: Runtime,
    scratch: GGUFSource,
    sources: Mapping[str, Tensor],
    probes: Mapping[str, TensorType],
    importance: Mapping[str, FloatArray],
    texts: Texts,
    progress: CountProgress,
) -> dict[str, float]:
    """For each tensor in `probes`, the KL divergence with only that tensor rounded to its probe type, in nats per token.

    `scratch` is an F32 file of the tensors in `sources`, which `runtime` has open; each tensor is overwritten and restored.
    """
    found: dict[str, float] = {}
    with scratch.path.open("r+b") as stream:
        for done, (name, dtype) in enumerate(probes.items()):
            place = scratch.tensor(name)
            assert isinstance(place, GGUFTensor)
            start = place.data_offset + place.entry.offset
            _overwrite(stream, start, name, sources[name], dtype, importance.get(name))
            runtime.reload()
            found[name] = divergence(runtime, texts)
            _overwrite(stream, start, name, sources[name], None, None)
            progress(done + 1, len(probes))
    return found


def _overwrite(
    stream: BinaryIO, start: int, name: str, tensor: Tensor, dtype: TensorType | None, importance: FloatArray | None
) -> None:
    """Writes a tensor as float32 at byte `start`; with `dtype`, after encoding to and decoding from that type."""
    by_matrix = importance is not None and len(importance) > 1
    stream.seek(start)
    for part in row_ranges(tensor.shape, by_matrix):
        rows = tensor.flat(part.start * tensor.columns, part.stop * tensor.columns).reshape(-1, tensor.columns)
        if dtype is not None:
            care = None if importance is None else importance[part.matrix if by_matrix else 0]
            rows = decode_rows(encode_rows(rows, dtype, care, name=name), dtype, tensor.columns)
        stream.write(rows.astype("<f4", copy=False).data)
    stream.flush()
