"""What differs between a file and its source where the text that was read does not reach: embeddings of other tokens, learned
positions beyond its end, experts that no token selects, and values of the metadata that have no effect on it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gguf_tools.evaluation.trace.compare import EXACT, FACTOR
from gguf_tools.evaluation.trace.expected import as_file
from gguf_tools.evaluation.trace.points import Doubles
from gguf_tools.evaluation.trace.stated import stated_otherwise
from gguf_tools.evaluation.trace.tensors import listed
from gguf_tools.evaluation.trace.work import Work
from gguf_tools.formats.gguf.source import GGUFTensor
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


def unseen(work: Work) -> tuple[Unseen, ...]:
    """The differences of a file in which every point is explained."""
    if work.own is None:
        return ()
    clean = as_file(work.source, work.expected.lowered, {})
    return (*_stated(clean, work.own), *_rows(work, clean, work.own), *_experts(work, clean, work.own))


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


def _rows(work: Work, clean: Model, own: Model) -> Iterator[Unseen]:
    """Rows of the embedding and of the learned positions that were not read; the logits of a tied model depend on all rows."""
    read = {"positions": set(range(len(work.tokens)))} | ({} if clean.spec.tied else {"embedding": set(work.tokens)})
    for role, rows in read.items():
        if bad := _unlike(work, OUTSIDE, role, (clean.tensors, own.tensors), rows):
            text = f"{work.label(OUTSIDE, role, own.tensors)}: {_said('row', bad)}"
            yield Unseen(layer=None, point="embedding", text=text, tensors=work.names(OUTSIDE, role))


def _experts(work: Work, clean: Model, own: Model) -> Iterator[Unseen]:
    """Experts that were not selected."""
    for n, chosen in work.selected().items():
        both = clean.layer_tensors[n], own.layer_tensors[n] if n < len(own.layer_tensors) else {}
        for role in ("moe.gate", "moe.up", "moe.down"):
            if bad := _unlike(work, n, role, both, set(map(int, np.unique(chosen)))):
                text = f"{work.label(n, role, both[1])}: {_said('expert', bad)}"
                yield Unseen(layer=n, point=role.replace("moe.", "expert."), text=text, tensors=work.names(n, role))


def _said(name: str, numbers: list[int]) -> str:
    return f"{listed(name, numbers)} differ{'' if len(numbers) > 1 else 's'} from the source's"


def _unlike(
    work: Work, n: int, role: str, both: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], read: Collection[int]
) -> list[int]:
    """Which rows (or experts) of a tensor, those that were `read` left out, differ by more than its type explains."""
    mine, theirs = (tensors.get(role) for tensors in both)
    if mine is None or theirs is None or mine.shape != theirs.shape or len(read) >= mine.shape[0]:
        return []
    stored = [work.source.tensors.get(name) for name in work.names(n, role)]
    kind = next((one.entry.type for one in stored if isinstance(one, GGUFTensor)), None)
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
    return bad


def _rounding(values: Doubles, kind: TensorType | None, columns: int) -> float:
    """The NMSE of values after encoding to a type."""
    if kind is None or kind.name == "f32" or not kind.encodes:
        return 0.0
    rows = values.astype(np.float32).reshape(-1, columns)
    return _error(values, decode_rows(encode_rows(rows, kind), kind, columns).reshape(-1).astype(np.float64))


def _error(a: Doubles, b: Doubles) -> float:
    return ratio(float(np.square(a - b).sum()), float(np.square(a).sum()))
