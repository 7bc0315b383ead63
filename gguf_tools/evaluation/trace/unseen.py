"""What differs between a file and its source without showing in the points: embeddings of tokens that were not read, learned
positions beyond the text, experts that no token selects, values of the metadata without an effect, and changes of weights that
rounding hides."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from gguf_tools.evaluation.trace.compare import EXACT, FACTOR
from gguf_tools.evaluation.trace.expected import as_file
from gguf_tools.evaluation.trace.feeding import FEEDS
from gguf_tools.evaluation.trace.stated import stated_otherwise
from gguf_tools.evaluation.trace.tensors import listed, told_apart
from gguf_tools.evaluation.trace.work import Work
from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.model.spec import Model
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.error import nmse
from quant.encode import FloatArray, decode_rows, encode_rows
from quant.types import TensorType

EFFECTLESS = frozenset({"context_length", "vocab_size", "tied", "positions"})
"""Fields of the spec that change nothing that is computed, or show in the tensors."""
EXACT_TYPES = frozenset({"f32", "f16", "bf16"})
SLACK = 1e-6
"""Relative difference of values that are computed (norms, decays), which converters round differently."""
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
    return (*_stated(clean, work.own), *_weights(work, clean, work.own))


def _stated(clean: Model, own: Model) -> Iterator[Unseen]:
    """Values of the metadata, each once, at the first layer that has it."""
    found: dict[str, int | None] = {}
    for text, _ in stated_otherwise(replace(clean.spec, layers=()), replace(own.spec, layers=())):
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


def _weights(work: Work, clean: Model, own: Model) -> Iterator[Unseen]:
    """Tensors outside the layers, and then those of each layer.

    Rows of the embedding and of learned positions, and experts, that were not read count for themselves.
    """
    ends = {"positions": set(range(len(work.tokens)))}
    if not clean.spec.tied:  # else the logits depend on every row
        ends["embedding"] = set(work.tokens)
    for role in clean.tensors:
        if text := _unlike(work, OUTSIDE, role, (clean.tensors, own.tensors), ends.get(role)):
            yield Unseen(layer=None, point=_fed(role), text=text, tensors=work.names(OUTSIDE, role))
    selected = work.selected()
    for n, (mine, theirs) in enumerate(zip(clean.layer_tensors, own.layer_tensors, strict=False)):
        used = set(map(int, np.unique(selected[n]))) if n in selected else None
        for role in mine:
            read = used if role in ("moe.gate", "moe.up", "moe.down") else None
            if text := _unlike(work, n, role, (mine, theirs), read):
                yield Unseen(layer=n, point=_fed(role), text=text, tensors=work.names(n, role))


def _fed(role: str) -> str:
    """The point that a role feeds."""
    if role in ("embedding", "positions") or role.startswith("embedding_norm"):
        return "embedding"
    if role.startswith("output"):
        return "final_norm" if "norm" in role else "logits"
    bare = role.removesuffix("_bias")
    return next((point for point, roles in FEEDS.items() if bare in roles), bare).replace("moe.", "expert.")


def _unlike(
    work: Work,
    n: int,
    role: str,
    both: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    read: Collection[int] | None,
) -> str:
    """How a tensor of the file differs from what it should hold, by more than its type explains; "" if it does not.

    Floating-point types have one rounding, so that all values of a matrix must be equal; others depend on an importance matrix,
    so that only the rows (or experts) besides those `read` are compared, by their error. None are all.
    """
    mine, theirs = (tensors.get(role) for tensors in both)
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return ""
    stored = [work.source.tensors.get(name) for name in work.names(n, role)]
    kind = next((one.entry.type for one in stored if isinstance(one, GGUFTensor)), None)
    exact = kind is None or kind.name in EXACT_TYPES
    if not exact and (read is None or len(read) >= mine.shape[0]):
        return ""
    width = mine.size // mine.shape[0]
    step, bad = max(1, PIECE // width), []
    for start in range(0, mine.shape[0], step):
        stop = min(start + step, mine.shape[0])
        a, b = (one.flat(start * width, stop * width).reshape(-1, width) for one in (mine, theirs))
        rounded = _rounded(a, kind, mine.columns)
        unequal = rounded != b if len(mine.shape) > 1 else ~np.isclose(rounded, b, rtol=SLACK, atol=0.0)
        for row in np.flatnonzero(unequal.any(axis=1)):
            allowed = EXACT + FACTOR * nmse(a[row], rounded[row])
            if exact or (start + int(row) not in (read or ()) and not nmse(a[row], b[row]) <= allowed):
                bad.append(start + int(row))
    if not bad:
        return ""
    label = work.label(n, role, both[1])
    if exact:
        spec = work.expected.model.spec.layers[n] if n != OUTSIDE else None
        held = torch.from_numpy(_rounded(mine.array(), kind, mine.columns))
        return f"{label}: {told_apart(held, torch.from_numpy(theirs.array()), spec, role)}"
    name = "expert" if len(mine.shape) == 3 else "row"
    return f"{label}: {listed(name, bad)} differ{'' if len(bad) > 1 else 's'} from the source's"


def _rounded(values: FloatArray, kind: TensorType | None, columns: int) -> FloatArray:
    """The values after encoding to a type."""
    if kind is None or kind.name == "f32" or not kind.encodes:
        return values
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, columns)
    return decode_rows(encode_rows(rows, kind), kind, columns).reshape(values.shape)
