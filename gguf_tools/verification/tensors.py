"""Compares one tensor of a file with the expected one, streamed in blocks of rows over several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import NARROW, InMemory, Tensor
from gguf_tools.tensors.low_rank import ByRows
from gguf_tools.tensors.views import Columns, Joined, Mapped, Reshaped, Taken
from gguf_tools.verification.consistency import ALARM, Evidence, chance, examine, objection
from quant.ahead import map_ahead
from quant.encode import (
    Block,
    ByteArray,
    FloatArray,
    RowRange,
    can_decode,
    decode_rows,
    encode_block,
    encode_rows,
    row_ranges,
)
from quant.grids import grid_of
from quant.types import BF16, F16, F32, Q8_0, TensorType

Verdict = Literal["identical", "consistent", "different", "unknown"]
T = TypeVar("T")
U = TypeVar("U")

ROUNDING = 2.0**-21
"""Largest relative difference in a computed tensor by float32 arithmetic in another order: four units in the last place."""
SAMPLE = 1 << 14
"""Number of weights, in each of two places of a tensor, on which the ways are tried before one is applied to all of it."""
EXACTLY = "packed exactly"
"""The way of a quantized tensor that decodes to the source's numbers, whatever its scales."""
UNRELATED = 1.0
"""Relative error from which a tensor has other contents, whatever the encoder: zeros would have a smaller error."""


@dataclass(frozen=True)
class Way:
    """A possible conversion of the source's weights: optionally rounded to the type `through` first, then encoded with the
    given importance matrix or without one."""

    through: TensorType | None = None
    importance: bool = False

    def __str__(self) -> str:
        parts = [f"via {self.through}" if self.through else "", "with the importance matrix" * self.importance]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class TensorFinding:
    """The verdict on one tensor.

    `detail` describes the result in words. `error` is the RMS of the differences from the source divided by the RMS of its
    weights, over the differing blocks, and `expected_error` the same for the type's encoder; None if nothing differs or nothing
    could be compared. `differing` of `blocks` blocks differ (weights for plain types). `matrices` are the indices of the
    experts (entries of the first of three axes) that differ.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    verdict: Verdict
    detail: str = ""
    way: str = ""
    error: float | None = None
    expected_error: float | None = None
    differing: int = 0
    blocks: int = 0
    matrices: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON; an error that is not finite becomes None."""
        values: dict[str, object] = {"name": self.name, "type": self.type, "shape": list(self.shape)}
        values |= {"verdict": self.verdict, "detail": self.detail, "way": self.way}
        for key in ("error", "expected_error"):
            value = getattr(self, key)
            values[key] = value if value is not None and np.isfinite(value) else None
        return values | {
            "differing_blocks": self.differing,
            "blocks": self.blocks,
            "differing_matrices": list(self.matrices),
        }


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The result of a pass over a tensor or a part of it; two can be added. `rounding` is the largest relative difference."""

    evidence: Evidence = field(default_factory=Evidence)
    rounding: float = 0.0
    matrices: frozenset[int] = frozenset()

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            evidence=self.evidence + other.evidence,
            rounding=max(self.rounding, other.rounding),
            matrices=self.matrices | other.matrices,
        )

    @property
    def same(self) -> bool:
        """Whether every byte is as expected."""
        return not self.evidence.blocks


class Comparison:
    """Compares tensors on `threads` threads; a context manager that waits for the threads at its end.

    At most twice as many row blocks as threads are in memory, about 4 MB each.
    """

    def __init__(self, threads: int, progress: ByteProgress) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tinyq-verify")
        self._window = 2 * threads
        self._progress = progress
        self._last = Way()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def skip(self, count: int) -> None:
        """Report `count` bytes that are not compared to the progress callback."""
        self._progress(count)

    def judge(self, given: GGUFTensor, source: Tensor, importance: FloatArray | None = None) -> TensorFinding:
        """The verdict on a tensor of the file; `source` is the expected tensor, `importance` has shape (matrices, columns)."""
        entry = given.entry
        finding = TensorFinding(name=entry.name, type=entry.type.name, shape=entry.shape, verdict="unknown")
        if _squeezed(source.shape) != _squeezed(entry.shape):
            self._progress(entry.nbytes)
            shape = "×".join(map(str, source.shape))
            return replace(finding, verdict="different", detail=f"the source's shape is {shape}")
        source = Reshaped(source, entry.shape)
        finding = replace(finding, blocks=source.size // entry.type.block)
        if not entry.type.plain and can_decode(entry.type) and self._equal(given, source):
            return replace(finding, verdict="identical", way=EXACTLY)
        if not entry.type.encodes or not (entry.type.plain or grid_of(entry.type)):
            return self._decoded(finding, given, source)
        way, seen = self._best(given, source, importance)
        return _verdict(finding, given, source, way, seen, importance is not None)

    def _equal(self, given: GGUFTensor, source: Tensor) -> bool:
        """Whether the file's tensor decodes to the source's numbers, as a tensor that was packed exactly does."""
        parts = list(row_ranges(source.shape, by_matrix=False))
        work = partial(_difference, given, source)
        for part in {0: parts[0], len(parts) // 2: parts[len(parts) // 2]}.values() if parts else ():
            if not work(_start(part, source.columns)).same:
                return False
        same = self._pass(given, work, parts, report=False).same
        if same:
            self._progress(given.entry.nbytes)
        return same

    def _best(self, given: GGUFTensor, source: Tensor, importance: FloatArray | None) -> tuple[Way, Seen]:
        """The way that explains the tensor best, and the result of a pass over the whole tensor with it."""
        parts = list(row_ranges(source.shape, by_matrix=source.columns > 0))
        sample = [_start(parts[n], source.columns) for n in sorted({0, len(parts) // 2})]
        ways = _ways(given.entry.type, source, importance is not None)
        ways.sort(key=lambda way: way != self._last)
        sampled: dict[Way, Seen] = {}
        whole: dict[Way, Seen] = {}
        for way in ways:
            work = partial(_compared, given, source, importance, way)
            sampled[way] = sum(self._map(work, sample), Seen())
            if sampled[way].same:
                whole[way] = self._pass(given, work, parts, not whole)
                if whole[way].same:
                    self._last = way
                    return way, whole[way]
        way = max(ways, key=lambda way: _score(whole.get(way, sampled[way])))
        if way not in whole:
            whole[way] = self._pass(given, partial(_compared, given, source, importance, way), parts, not whole)
        return way, whole[way]

    def _pass(
        self, given: GGUFTensor, work: Callable[[RowRange], Seen], parts: Sequence[RowRange], report: bool
    ) -> Seen:
        total = Seen()
        row = given.entry.nbytes // max(1, given.size // max(1, given.columns))
        for part, seen in zip(parts, self._map(work, parts), strict=True):
            total += seen
            if report:
                self._progress((part.stop - part.start) * row)
        return total

    def _decoded(self, finding: TensorFinding, given: GGUFTensor, source: Tensor) -> TensorFinding:
        """The finding for a type whose encoding is not compared, by its error alone."""
        dtype = given.entry.type
        if not can_decode(dtype) or dtype.name == "f64":
            self._progress(given.entry.nbytes)
            return replace(finding, detail=f"tinyq cannot decode {dtype}")
        parts = list(row_ranges(source.shape, by_matrix=False))
        seen = self._pass(given, partial(_difference, given, source), parts, True)
        error = seen.evidence.relative_error
        detail = f"tinyq cannot encode {dtype}, so only the error is known"
        verdict: Verdict = "unknown"
        if not error < UNRELATED:
            verdict, detail = "different", "the weights are unrelated to the source's"
        return replace(finding, verdict=verdict, detail=detail, error=error)

    def _map(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """`function` of each item, in order, on the pool of threads."""
        return map_ahead(self._pool, self._window, function, items)


def _start(part: RowRange, columns: int) -> RowRange:
    """The first rows of a range, with which the ways are tried."""
    return replace(part, stop=min(part.stop, part.start + max(1, SAMPLE // columns)))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape[:-1] if size != 1) + shape[-1:]


def _ways(dtype: TensorType, source: Tensor, importance: bool) -> list[Way]:
    """The ways to try: directly, and through the types that files are commonly quantized from."""
    through: list[TensorType | None] = [None]
    through += [kind for kind in (BF16, F16) if kind is not dtype and kind is not source.stored]
    if not dtype.plain and dtype is not Q8_0 and source.columns % Q8_0.block == 0:
        through.append(Q8_0)
    matters = importance and dtype is not Q8_0 and not dtype.plain
    return [Way(kind, use) for kind in through for use in ((True, False) if matters else (False,))]


def _score(seen: Seen) -> tuple[bool, int, int]:
    """A sort key, larger for ways that explain more: first by equal blocks beyond chance, then by fewer odd blocks."""
    found = seen.evidence
    telling = chance(found.equal, found.equal + found.blocks) < ALARM or not found.blocks
    return telling, -found.odd, found.equal if telling else 0


def _compared(given: GGUFTensor, source: Tensor, importance: FloatArray | None, way: Way, part: RowRange) -> Seen:
    """Compares a range of rows, encoded in the file's type, with the file's bytes."""
    dtype = given.entry.type
    try:
        block = _block(given, source, way, part)
        row = None
        if way.importance and importance is not None:
            row = importance[part.matrix if len(importance) > 1 else 0]
        expected = encode_block(replace(block, imatrix=row)).raw
    except CheckpointError:
        raise  # the source cannot be read
    except InputError:
        # Weights too large for the type or not finite rule out this way.
        return _impossible(given, source, part)
    raw = _raw(given, part, expected.shape[1])
    if np.array_equal(raw, expected):
        # Blocks of zeros are equal in every way and so are no evidence.
        assert not callable(block.rows)
        telling = block.rows.reshape(raw.size // dtype.block_bytes, -1).any(axis=1)
        return Seen(evidence=Evidence(equal=int(np.count_nonzero(telling))))
    rows = _floats(block, source.columns)
    if grid_of(dtype) is None:
        return _plain(rows, raw, expected, dtype, part)
    own = expected if row is None else encode_rows(rows, dtype)
    first = part.start * source.columns // dtype.block
    found = examine(rows, raw, expected, own, dtype, first)
    return Seen(evidence=found, matrices=frozenset((part.matrix,)) if found.blocks else frozenset())


def _block(given: GGUFTensor, source: Tensor, way: Way, part: RowRange) -> Block:
    """The source's rows for the encoder, after rounding to the way's intermediate type."""
    start, stop = part.start * source.columns, part.stop * source.columns
    stored = source.stored if source.stored in NARROW and way.through is None else F32
    if stored is not F32:
        raw = source.raw(start, stop).reshape(-1, source.columns)
        return Block(name=given.entry.name, type=given.entry.type, rows=raw, source=stored)
    rows = source.flat(start, stop).reshape(-1, source.columns)
    if way.through:
        between = encode_rows(rows, way.through, name=given.entry.name)
        rows = decode_rows(between, way.through, source.columns)
    return Block(name=given.entry.name, type=given.entry.type, rows=rows)


def _floats(block: Block, columns: int) -> FloatArray:
    assert not callable(block.rows)
    if block.source is F32:
        return np.asarray(block.rows, np.float32)
    return decode_rows(np.ascontiguousarray(block.rows).view(np.uint8), block.source, columns)


def _raw(given: GGUFTensor, part: RowRange, row: int) -> ByteArray:
    return given.read(part.start * row, (part.stop - part.start) * row).reshape(-1, row)


def _impossible(given: GGUFTensor, source: Tensor, part: RowRange) -> Seen:
    count = (part.stop - part.start) * source.columns // given.entry.type.block
    at = part.start * source.columns // given.entry.type.block
    found = Evidence(blocks=count, odd=count, first_odd=at, error=float("inf"))
    return Seen(evidence=found, rounding=float("inf"), matrices=frozenset((part.matrix,)))


def _plain(rows: FloatArray, raw: ByteArray, expected: ByteArray, dtype: TensorType, part: RowRange) -> Seen:
    """Compares rows of a plain type (one value per weight)."""
    columns = rows.shape[1]
    differ = (raw.reshape(rows.size, -1) != expected.reshape(rows.size, -1)).any(axis=1)
    found, wanted = (
        decode_rows(data, dtype, columns).reshape(-1)[differ].astype(np.float64) for data in (raw, expected)
    )
    exact = rows.reshape(-1)[differ].astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.nan_to_num(np.square(found - exact), nan=np.inf, posinf=np.inf)
        away = np.nan_to_num(np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-30), nan=np.inf, posinf=np.inf)
    evidence = Evidence(
        blocks=int(differ.sum()),
        equal=int(differ.size - differ.sum()),
        sum_sq=float(np.square(exact).sum()),
        error=float(error.sum()),
        own_error=float(np.square(wanted - exact).sum()),
    )
    return Seen(evidence=evidence, rounding=float(away.max(initial=0.0)), matrices=frozenset((part.matrix,)))


def _difference(given: GGUFTensor, source: Tensor, part: RowRange) -> Seen:
    start, stop = part.start * source.columns, part.stop * source.columns
    exact, found = source.flat(start, stop).astype(np.float64), given.flat(start, stop).astype(np.float64)
    with np.errstate(all="ignore"):
        error = float(np.nan_to_num(np.square(found - exact), nan=np.inf, posinf=np.inf).sum())
    different = int(np.count_nonzero(found != exact))
    return Seen(evidence=Evidence(blocks=different, sum_sq=float(np.square(exact).sum()), error=error))


def computed(tensor: Tensor) -> bool:
    """Whether a tensor's values are computed from the source's, and not just copied or rearranged."""
    match tensor:
        case Mapped() | InMemory() | ByRows():
            return True
        case Reshaped(base=base) | Taken(base=base):
            return computed(base)
        case Joined(parts=parts) | Columns(parts=parts):
            return any(map(computed, parts))
    return False


def _verdict(
    finding: TensorFinding, given: GGUFTensor, source: Tensor, way: Way, seen: Seen, importance: bool
) -> TensorFinding:
    """The finding with its verdict, from the result `seen` of a pass by `way`; `importance`: an importance matrix was given.

    Plain types and Q8_0, which ignore the importance matrix, must be equal up to `ROUNDING`; others are tested by `objection`.
    """
    found, dtype = seen.evidence, given.entry.type
    if seen.same:
        return replace(finding, verdict="identical", way=str(way))
    if not np.isfinite(found.error) and found.odd == found.blocks == finding.blocks:
        return replace(finding, verdict="different", detail=f"the source's weights cannot be stored as {dtype}")
    matrices = tuple(sorted(seen.matrices)) if len(finding.shape) > 2 else ()
    finding = replace(
        finding,
        way=str(way),
        error=found.relative_error,
        expected_error=found.own_relative_error,
        differing=found.blocks,
        matrices=matrices,
    )
    if dtype.plain or dtype is Q8_0:
        if seen.rounding <= ROUNDING and computed(source):
            detail = f"float32 rounding in another order of operations: relative differences up to {seen.rounding:.1e}"
            return replace(finding, verdict="consistent", detail=detail)
        what = "weights" if dtype.plain else "blocks"
        return replace(finding, verdict="different", detail=f"{found.blocks} of {finding.blocks} {what} differ")
    reason = objection(found)
    if reason:
        return replace(finding, verdict="different", detail=reason)
    another = "another importance matrix than the one given" if importance else "an unknown importance matrix"
    return replace(finding, verdict="consistent", detail=f"explained by {another}")
