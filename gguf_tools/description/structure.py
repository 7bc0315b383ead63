"""Finds the repetition in a checkpoint's tensor names: layers, experts, and the tensors outside of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gguf_tools.description.buffers import is_computed
from gguf_tools.description.schema import EXPERT, layer_mark
from gguf_tools.errors import UnsupportedError
from gguf_tools.model.norms import Shape
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.text import shortened

PADDED = 4096
"""Rows that an embedding may have beyond those of the tokens."""
LEAST = 3
"""Tensors of a layer at least."""
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Slot:
    """Tensors that are named alike: `{n}` and `{e}` in `name` stand for the layer's and the expert's number.

    `shape` is that of one tensor; of `experts` tensors it has their number as its first axis. `layers` are those with it.
    """

    name: str
    shape: Shape
    layers: frozenset[int] = frozenset()
    experts: int = 0

    @property
    def squeezed(self) -> Shape:
        """The shape without axes of length 1."""
        return tuple(size for size in self.shape if size != 1)

    @property
    def module(self) -> str:
        """What comes before the last dot of the name: the module that has the tensor as a parameter."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A checkpoint's tensors by their place: `outside` the layers, and `inside` the `count` layers.

    The embedding has the shape (rows, hidden): one row for each token of the vocabulary, and perhaps more that no token has.
    `computed` are the names, with `{n}`, of tensors that the model computes, such as masks and rope tables.
    """

    outside: tuple[Slot, ...]
    inside: tuple[Slot, ...]
    count: int
    vocabulary: int
    hidden: int
    rows: int
    computed: tuple[str, ...] = ()

    def groups(self) -> list[tuple[tuple[int, ...], tuple[Slot, ...]]]:
        """The layers that have tensors of the same names, with these."""
        found: dict[tuple[Slot, ...], list[int]] = defaultdict(list)
        for n in range(self.count):
            found[tuple(slot for slot in self.inside if n in slot.layers)].append(n)
        return [(tuple(layers), slots) for slots, layers in found.items()]


def find_structure(checkpoint: Checkpoint, vocabulary: int | None = None) -> Structure:
    """The structure of a checkpoint; `vocabulary` is the number of tokens, where it is known.

    Raises UnsupportedError where no name repeats with a number, or no matrix can be the embedding.
    """
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items() if 0 not in tensor.shape}
    layers, count = _layers(list(shapes))
    if not count:
        first = shortened(", ".join(list(shapes)[:4]), 160)
        raise UnsupportedError(
            f"{checkpoint.path}: no names repeat with the numbers 0, 1, 2 … of layers ({first} …), so that a description has to "
            "be written by hand"
        )
    computed = {name for name in shapes if is_computed(checkpoint.tensors[name])}
    patterns = (layers[name][0] if name in layers else name for name in computed)
    shapes = {name: shape for name, shape in shapes.items() if name not in computed}
    outside = tuple(Slot(name, shape) for name, shape in shapes.items() if name not in layers)
    inside = _with_experts(_slots({name: place for name, place in layers.items() if name in shapes}, shapes))
    rows, hidden = _embedding(checkpoint, outside, inside, vocabulary)
    return Structure(
        outside=outside,
        inside=inside,
        count=count,
        vocabulary=vocabulary or rows,
        hidden=hidden,
        rows=rows,
        computed=tuple(dict.fromkeys(patterns)),
    )


def _prefixes(names: Iterable[str]) -> dict[str, set[int]]:
    """What precedes a number in some name → the numbers that follow it."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        for match in _NUMBER.finditer(name):
            found[name[: match.start()]].add(int(match[0]))
    return found


def _counts(numbers: set[int]) -> bool:
    return numbers == set(range(len(numbers)))


def _run(prefix: str, numbers: set[int], names: Sequence[str]) -> range:
    """The numbers that may be those of layers: without the first and last ones with fewer tensors than a layer can have.

    They are those of an embedding, a norm and an output projection in one list with the layers. Empty if they do not count.
    """
    own = Counter(int(match[1]) for name in names if (match := re.match(rf"{re.escape(prefix)}(\d+)", name)))
    large = [number for number in numbers if own[number] >= LEAST]
    first, last = (min(large), max(large)) if large else (min(numbers), max(numbers))
    inside = {number for number in numbers if first <= number <= last}
    return range(first, last + 1) if len(inside) == last + 1 - first else range(0)


def _layers(names: Sequence[str]) -> tuple[dict[str, tuple[str, int]], int]:
    """Name → its pattern with `{n}` and the layer's number from 0 on, and the number of layers.

    The layers are what the prefix with most tensors counts; other prefixes with the same numbers count layers as well.
    """
    prefixes = {prefix: _run(prefix, numbers, names) for prefix, numbers in _prefixes(names).items()}
    weight = Counter({prefix: sum(name.startswith(prefix) for name in names) for prefix in prefixes})
    counting = [prefix for prefix, numbers in prefixes.items() if numbers]
    if not counting:
        return {}, 0
    first = max(counting, key=lambda prefix: (weight[prefix], -len(prefix)))
    count, begin = len(prefixes[first]), prefixes[first].start
    also = {prefix for prefix in counting if count > 1 and prefixes[prefix] == prefixes[first]}
    found = {}
    for name in names:
        for match in _NUMBER.finditer(name):
            prefix = name[: match.start()]
            if (prefix == first or prefix in also) and int(match[0]) in prefixes[first]:
                found[name] = f"{prefix}{layer_mark(begin)}{name[match.end() :]}", int(match[0]) - begin
                break
    return found, count


def _slots(layers: Mapping[str, tuple[str, int]], shapes: Mapping[str, Shape]) -> tuple[Slot, ...]:
    """One slot for each pattern and shape, in the order of the checkpoint."""
    found: dict[tuple[str, Shape], set[int]] = defaultdict(set)
    for name, (pattern, n) in layers.items():
        found[pattern, shapes[name]].add(n)
    return tuple(Slot(pattern, shape, frozenset(numbers)) for (pattern, shape), numbers in found.items())


def _with_experts(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """The slots with those of numbered experts as one: at least two matrices, of the same shapes under each number."""
    under: dict[str, dict[int, dict[str, Slot]]] = defaultdict(lambda: defaultdict(dict))
    for slot in slots:
        for match in _NUMBER.finditer(slot.name):
            under[slot.name[: match.start()]][int(match[0])][slot.name[match.end() :]] = slot
    out = list(slots)
    for prefix, numbered in under.items():
        alike = {
            frozenset((rest, slot.shape, slot.layers) for rest, slot in rests.items()) for rests in numbered.values()
        }
        matrices = [slot for slot in numbered.get(0, {}).values() if len(slot.shape) == 2]
        if len(numbered) < 2 or not _counts(set(numbered)) or len(alike) != 1 or len(matrices) < 2:
            continue
        taken = {slot for rests in numbered.values() for slot in rests.values()}
        if not taken <= set(out):
            continue
        merged = [
            replace(slot, name=f"{prefix}{EXPERT}{rest}", shape=(len(numbered), *slot.shape), experts=len(numbered))
            for rest, slot in numbered[0].items()
        ]
        at = out.index(next(iter(numbered[0].values())))
        out[at:at] = merged
        out = [slot for slot in out if slot not in taken]
    return tuple(out)


def _embedding(
    checkpoint: Checkpoint, outside: Sequence[Slot], inside: Sequence[Slot], vocabulary: int | None
) -> tuple[int, int]:
    """(rows, hidden) of the embedding: the hidden size is the axis that most of the layers' tensors have too.

    Where no matrix has one row a token, it is the one with a few rows more: models pad them to a multiple of 64 or more.
    """
    axes = Counter(size for slot in inside for size in set(slot.shape))
    pairs = {
        (rows, columns)
        for slot in outside
        if len(slot.shape) == 2
        for rows, columns in (slot.shape, slot.shape[::-1])
        if axes[columns] and (vocabulary is None or vocabulary <= rows <= vocabulary + PADDED) and rows != columns
    }
    exact = {pair for pair in pairs if pair[0] == vocabulary}
    pairs = exact or pairs
    if not pairs:
        wanted = (
            f"{vocabulary} rows, as the logits have," if vocabulary else "one axis in common with the layers' tensors"
        )
        raise UnsupportedError(f"{checkpoint.path}: no matrix outside the layers has {wanted} to be the embedding")
    return max(pairs, key=lambda pair: (axes[pair[1]], pair[0]))
