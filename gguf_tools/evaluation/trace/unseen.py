"""What differs between a file and its source where the text that was read does not reach: embeddings of other tokens, learned
positions beyond its end, experts that no token selects, and values of the metadata that have no effect on it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gguf_tools.evaluation.trace.compare import EXACT, FACTOR
from gguf_tools.evaluation.trace.expected import Expected, as_file
from gguf_tools.evaluation.trace.points import Doubles
from gguf_tools.evaluation.trace.stated import stated_otherwise
from gguf_tools.evaluation.trace.tensors import listed
from gguf_tools.formats.gguf.source import GGUFSource, GGUFTensor
from gguf_tools.model.spec import Model
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.error import ratio
from quant.encode import decode_rows, encode_rows
from quant.types import TensorType

EFFECTLESS = frozenset({"context_length", "vocab_size", "tied", "positions"})
"""Fields of the spec that change nothing that is computed, or show in the tensors."""
PIECE = 1 << 20
"""Elements of a tensor that are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """One difference in words, with the point that it would show at, of layer `layer` (None outside the layers), and the file's
    tensors that it is in."""

    layer: int | None
    point: str
    text: str
    tensors: tuple[str, ...] = ()


def unseen(
    source: GGUFSource, expected: Expected, own: Model, tokens: Sequence[int], chosen: Mapping[int, Doubles]
) -> tuple[Unseen, ...]:
    """The differences of a file in which every point is explained; `chosen` are the experts that were selected, by layer."""
    clean = as_file(source, expected.lowered, {})
    rows = _rows(source, expected, clean, own, tokens)
    return (*_stated(clean, own), *rows, *_experts(source, expected, clean, own, chosen))


def _stated(clean: Model, own: Model) -> Iterator[Unseen]:
    """Values of the metadata, each once, at the first layer that has it."""
    found: dict[str, int | None] = {}
    bare = (replace(model.spec, layers=()) for model in (clean, own))
    for text, _ in stated_otherwise(next(bare), next(bare)):
        if text.split()[0] not in EFFECTLESS:
            found.setdefault(text, None)
    for n, (spec, stated) in enumerate(zip(clean.spec.layers, own.spec.layers, strict=False)):
        for text, _ in stated_otherwise(spec, stated):
            found.setdefault(text, n)
    for text, layer in found.items():
        yield Unseen(layer=layer, point=_point(text), text=text)


def _point(text: str) -> str:
    """The point at which a value of the spec acts, by its name."""
    name = text.split()[0]
    for part, point in POINTS.items():
        if part in name:
            return point
    return "layer_out"


POINTS = {
    "embedding": "embedding",
    "logit": "logits",
    "output_norm": "final_norm",
    "qk_norm": "attn.q_normed",
    "rope": "attn.q_rope",
    "mixer_norm": "mixer_norm",
    "ffn_norm": "ffn_norm",
    "state_space": "ssm.scan",
    "beside": "ssm.scan",
    "router": "moe.weights",
    "feed_forward": "ffn_out",
    "residual": "mixer_residual",
    "mixer": "attn.shares",
}


def _rows(source: GGUFSource, expected: Expected, clean: Model, own: Model, tokens: Sequence[int]) -> Iterator[Unseen]:
    """Rows of the embedding and of the learned positions that were not read; the logits of a tied model depend on all rows."""
    read = {"positions": set(range(len(tokens)))} | ({} if clean.spec.tied else {"embedding": set(tokens)})
    for role, rows in read.items():
        for text, names in _unlike(source, expected, OUTSIDE, role, (clean.tensors, own.tensors), rows, "row"):
            yield Unseen(layer=None, point="embedding", text=text, tensors=names)


def _experts(
    source: GGUFSource, expected: Expected, clean: Model, own: Model, chosen: Mapping[int, Doubles]
) -> Iterator[Unseen]:
    """Experts that were not selected."""
    for n, (mine, theirs) in enumerate(zip(clean.layers, own.layers, strict=False)):
        if n not in chosen:
            continue
        used = set(map(int, np.unique(chosen[n])))
        for role in ("moe.gate", "moe.up", "moe.down"):
            both = (mine.tensors, theirs.tensors)
            for text, names in _unlike(source, expected, n, role, both, used, "expert"):
                yield Unseen(layer=n, point=role.replace("moe.", "expert."), text=text, tensors=names)


def _unlike(
    source: GGUFSource,
    expected: Expected,
    n: int,
    role: str,
    both: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    read: Collection[int],
    name: str,
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which rows (or experts) of a tensor, those that were `read` left out, differ by more than its type explains, in words."""
    mine, theirs = (tensors.get(role) for tensors in both)
    if mine is None or theirs is None or mine.shape != theirs.shape or len(read) >= mine.shape[0]:
        return
    names = expected.names(n, role)
    stored = source.tensors.get(names[0]) if names else None
    kind = stored.entry.type if isinstance(stored, GGUFTensor) else None
    width = mine.size // mine.shape[0]
    step, bad = max(1, PIECE // width), []
    for start in range(0, mine.shape[0], step):
        stop = min(start + step, mine.shape[0])
        a, b = (one.flat(start * width, stop * width).reshape(-1, width) for one in (mine, theirs))
        for row in np.flatnonzero((a != b).any(axis=1)):
            exact, found = a[row].astype(np.float64), b[row].astype(np.float64)
            allowed = EXACT + FACTOR * _rounding(exact, kind, mine.columns)
            if start + int(row) not in read and not _error(exact, found) <= allowed:
                bad.append(start + int(row))
    if bad:
        text = f"{expected.label(n, role)}: {listed(name, bad)} differ{'' if len(bad) > 1 else 's'} from the source's"
        yield text, names


def _rounding(values: Doubles, kind: TensorType | None, columns: int) -> float:
    """The NMSE of values after encoding to a type."""
    if kind is None or kind.name == "f32" or not kind.encodes:
        return 0.0
    rows = values.astype(np.float32).reshape(-1, columns)
    return _error(values, decode_rows(encode_rows(rows, kind), kind, columns).reshape(-1).astype(np.float64))


def _error(a: Doubles, b: Doubles) -> float:
    return ratio(float(np.square(a - b).sum()), float(np.square(a).sum()))
