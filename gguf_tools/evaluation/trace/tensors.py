"""Tells in words how a tensor of a file differs from the source's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gguf_tools.model.spec import Attention, LayerSpec

MOST_ROWS = 1 << 16
"""Most rows whose order is looked for."""


def told_apart(
    source: torch.Tensor,
    given: torch.Tensor,
    layer: LayerSpec | None,
    role: str,
    others: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """How `given` differs from `source`, both of one shape; the first of the usual mistakes that explains it, else how many
    values differ. `others` are the layer's tensors by role."""
    differing = given != source
    count = int(differing.sum())
    if count == 0:
        return "equal to the source's"
    if count == 1:
        return _one(source, given, differing)
    if torch.equal(given, -source):
        return "its sign is turned"
    if source.ndim == 3 and (text := _experts(source, given, role, others or {})):
        return text
    if source.ndim == 2:
        if torch.equal(given, source.flip(1)):
            return "its columns are in reverse order"
        if source.shape[0] == source.shape[1] and torch.equal(given, source.T):
            return "it is transposed"
        if text := _rows(source, given, layer, role):
            return text
    ratio = given.flatten()[differing.flatten()] / source.flatten()[differing.flatten()]
    if bool(torch.isfinite(ratio).all()) and float((ratio - ratio[0]).abs().max()) <= 1e-6 * abs(float(ratio[0])):
        which = "it is" if count == source.numel() else f"{count} of its {source.numel()} values are"
        return f"{which} multiplied by {float(ratio[0]):.6g}"
    if text := _scaled(source, given):
        return text
    return f"{count} of its {source.numel()} values differ from the source's"


def _scaled(source: torch.Tensor, given: torch.Tensor) -> str:
    """A factor on all values that rounding hides a little."""
    a, b = source.double().flatten(), given.double().flatten()
    factor = float(a @ b / (a @ a)) if bool(a.any()) else 0.0
    left = float((b - factor * a).square().sum() / b.square().sum()) if bool(b.any()) else 1.0
    explained = left <= 1e-4 and left <= 1e-2 * (1.0 - 1.0 / factor) ** 2 if factor else False
    return f"it is multiplied by about {factor:.3g}" if explained else ""


def _one(source: torch.Tensor, given: torch.Tensor, differing: torch.Tensor) -> str:
    """One value that differs, and whether that is one bit of a float32."""
    index = tuple(int(n) for n in differing.nonzero()[0])
    was, now = float(source[index]), float(given[index])
    bits = torch.tensor([was, now], dtype=torch.float32).view(torch.int32)
    changed = int(bits[0]) ^ int(bits[1])
    said = f"one value differs from the source's, at {list(index)}: {now:.7g}, not {was:.7g}"
    if changed and changed & (changed - 1) == 0:
        said += f" (bit {(changed & 0xFFFFFFFF).bit_length() - 1} is flipped)"
    return said


def _experts(source: torch.Tensor, given: torch.Tensor, role: str, others: Mapping[str, torch.Tensor]) -> str:
    """Experts in another order, with the weights of another role, or the few that differ; both (experts, …)."""
    differing = [n for n, matrix in enumerate(given) if not torch.equal(matrix, source[n])]
    which = f"expert{'s' if len(differing) > 1 else ''} {', '.join(map(str, differing[:4]))}" + " …" * (
        len(differing) > 4
    )
    for name, other in others.items():
        if name != role and other.shape == source.shape and torch.equal(given[differing], other[differing]):
            return f"{which} {'have' if len(differing) > 1 else 'has'} the weights of {name}"
    held = {}
    for n, matrix in enumerate(given):
        if not torch.equal(matrix, source[n]):
            match = [m for m, other in enumerate(source) if torch.equal(matrix, other)]
            if not match:
                few = 2 * len(differing) <= len(source)
                return f"only {which} differ{'' if len(differing) > 1 else 's'} from the source's" if few else ""
            held[n] = match[0]
    pairs = [(n, m) for n, m in held.items() if held.get(m) == n and n < m]
    if 2 * len(pairs) == len(held):
        return "experts " + ", ".join(f"{n} and {m}" for n, m in pairs) + " are exchanged"
    return "experts are in another order: " + ", ".join(f"{n} is the source's {m}" for n, m in list(held.items())[:4])


def _rows(source: torch.Tensor, given: torch.Tensor, layer: LayerSpec | None, role: str) -> str:
    """Rows in another order, by heads where the matrix has heads."""
    changed = (given != source).any(dim=1).nonzero().flatten()
    if len(source) > MOST_ROWS or not torch.equal(_sorted(given[changed]), _sorted(source[changed])):
        return ""
    mixer = layer.mixer if layer else None
    if role in ("attn.q", "attn.k", "attn.v") and isinstance(mixer, Attention):
        heads = sorted({int(row) // mixer.head_dim for row in changed})
        listed = ", ".join(map(str, heads[:4])) + (" …" if len(heads) > 4 else "")
        return f"rows of head{'s' if len(heads) > 1 else ''} {listed} are in another order"
    if len(changed) == 2:
        return f"rows {int(changed[0])} and {int(changed[1])} are exchanged"
    return f"{len(changed)} of its {len(source)} rows are in another order"


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    """The rows ordered by their values."""
    order = sorted(range(len(rows)), key=lambda n: rows[n].tolist())
    return rows[order]
