"""Tells in words how a tensor of a file differs from the source's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gguf_tools.model.spec import Attention, LayerSpec

MOST_ROWS = 1 << 16
"""Most rows whose order is looked for."""
MOST_LISTED = 4
"""Most rows, columns or heads that are listed."""


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
    if text := _as_a_whole(source, given):
        return text
    for name, other in (others or {}).items():
        if name != role and other.shape == source.shape and torch.equal(given, other):
            return f"it has the weights of {name}"
    if source.ndim == 3 and (text := _experts(source, given, role, others or {})):
        return text
    if source.ndim == 2 and source.shape[0] == source.shape[1] and torch.equal(given, source.T):
        return "it is transposed"
    if source.ndim == 1 and (text := _order(source, given, "value", 0)):
        return text
    if source.ndim == 2:
        if text := _order(source, given, "row", _head_size(layer, role)):
            return text
        if text := _order(source.T, given.T, "column", _head_size(layer, role, of_columns=True)):
            return text
    if source.ndim == 2 and (text := _part(source, given, differing, _head_size(layer, role))):
        return text
    if text := _ratio(source[differing], given[differing]):
        which = "it is" if count == source.numel() else f"{count} of its {source.numel()} values are"
        return f"{which} {text}"
    if text := _scaled(source, given):
        return text
    return f"{count} of its {source.numel()} values differ from the source's"


def _as_a_whole(source: torch.Tensor, given: torch.Tensor) -> str:
    """Mistakes that concern all values."""
    if torch.equal(given, -source):
        return "its sign is turned"
    if not bool(given.any()):
        return "all its values are zero"
    first = given.flatten()[0]
    if bool((given == first).all()):
        return f"all its values are {float(first):.6g}"
    if torch.equal(given, source.flip(-1)):
        return f"its {'values' if source.ndim == 1 else 'columns'} are in reverse order"
    shift = (given - source).flatten()
    if float((shift - shift[0]).abs().max()) <= 1e-6 * abs(float(shift[0])):
        return f"{float(shift[0]):.6g} is added to all its values"
    return ""


def _ratio(source: torch.Tensor, given: torch.Tensor) -> str:
    """A factor on all of some values."""
    if torch.equal(given, -source):
        return "multiplied by -1"
    if not bool(given.any()):
        return "zero"
    ratio = given.flatten() / source.flatten()
    if bool(torch.isfinite(ratio).all()) and float((ratio - ratio[0]).abs().max()) <= 1e-6 * abs(float(ratio[0])):
        return f"multiplied by {float(ratio[0]):.6g}"
    return ""


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
    changed = (int(bits[0]) ^ int(bits[1])) & 0xFFFFFFFF
    said = f"one value differs from the source's, at {list(index)}: {now:.7g}, not {was:.7g}"
    if changed and changed & (changed - 1) == 0:
        said += f" (bit {changed.bit_length() - 1} is flipped)"
    return said


def _experts(source: torch.Tensor, given: torch.Tensor, role: str, others: Mapping[str, torch.Tensor]) -> str:
    """Experts in another order, with the weights of another role, or the few that differ; both (experts, …)."""
    differing = [n for n, matrix in enumerate(given) if not torch.equal(matrix, source[n])]
    which = listed("expert", differing)
    for name, other in others.items():
        if name != role and other.shape == source.shape and torch.equal(given[differing], other[differing]):
            return f"{which} {'have' if len(differing) > 1 else 'has'} the weights of {name}"
    held = {}
    for n in differing:
        match = [m for m, other in enumerate(source) if torch.equal(given[n], other)]
        if not match:
            few = 2 * len(differing) <= len(source)
            text = _ratio(source[differing], given[differing])
            verb = "differ" if len(differing) > 1 else "differs"
            return f"only {which} {verb} from the source's{f': {text}' * bool(text)}" if few else ""
        held[n] = match[0]
    pairs = [(n, m) for n, m in held.items() if held.get(m) == n and n < m]
    if 2 * len(pairs) == len(held):
        return "experts " + ", ".join(f"{n} and {m}" for n, m in pairs) + " are exchanged"
    moved = ", ".join(f"{n} is the source's {m}" for n, m in list(held.items())[:MOST_LISTED])
    return f"experts are in another order: {moved}"


def _head_size(layer: LayerSpec | None, role: str, *, of_columns: bool = False) -> int:
    """The rows (or columns) of a head in the matrix of this role, 0 if it has no heads."""
    mixer = layer.mixer if layer else None
    if role not in (("attn.o",) if of_columns else ("attn.q", "attn.k", "attn.v")) or not isinstance(mixer, Attention):
        return 0
    return mixer.value_size if role in ("attn.v", "attn.o") else mixer.head_dim


def _order(source: torch.Tensor, given: torch.Tensor, name: str, size: int) -> str:
    """Rows, which `name` names, in another order; by heads of `size` rows, if that is not 0."""
    source, given = source.reshape(len(source), -1), given.reshape(len(given), -1)
    changed = (given != source).any(dim=1).nonzero().flatten()
    if len(source) > MOST_ROWS or not torch.equal(_sorted(given[changed]), _sorted(source[changed])):
        return ""
    if size:
        heads = sorted({int(row) // size for row in changed})
        if len(heads) == 2:
            one, other = (slice(n * size, (n + 1) * size) for n in heads)
            if torch.equal(given[one], source[other]) and torch.equal(given[other], source[one]):
                return f"heads {heads[0]} and {heads[1]} are exchanged"
        return f"{name}s of {listed('head', heads)} are in another order"
    if len(changed) == 2:
        return f"{name}s {int(changed[0])} and {int(changed[1])} are exchanged"
    return f"{len(changed)} of its {len(source)} {name}s are in another order"


def _part(source: torch.Tensor, given: torch.Tensor, differing: torch.Tensor, head: int) -> str:
    """A few rows, columns or heads that alone differ."""
    for axis, name in ((1, "row"), (0, "column")):
        lines = differing.any(dim=axis).nonzero().flatten()
        if len(lines) > MOST_LISTED and name == "row" and head:
            heads = sorted({int(row) // head for row in lines})
            if 2 * len(heads) <= len(source) // head:
                return _only(listed("head", heads), source[lines], given[lines], len(heads))
        if len(lines) <= MOST_LISTED and 2 * len(lines) <= source.shape[1 - axis]:
            mine, theirs = (one.index_select(1 - axis, lines) for one in (source, given))
            return _only(listed(name, lines.tolist()), mine, theirs, len(lines))
    return ""


def _only(which: str, source: torch.Tensor, given: torch.Tensor, count: int) -> str:
    text = _ratio(source, given)
    return f"only {which} differ{'' if count > 1 else 's'} from the source's{f': {text}' * bool(text)}"


def listed(name: str, numbers: list[int]) -> str:
    """Numbers of rows, heads or experts after their name, the first few of them."""
    said = ", ".join(map(str, numbers[:MOST_LISTED])) + (" …" if len(numbers) > MOST_LISTED else "")
    return f"{name}{'s' if len(numbers) > 1 else ''} {said}"


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    """The rows ordered by their values."""
    order = sorted(range(len(rows)), key=lambda n: rows[n].tolist())
    return rows[order]
