"""Measures candidates: on texts by the engine or by llama.cpp, on questions by llama.cpp, on files in a scratch folder.

The scratch folder lies in memory (/dev/shm) where that has room for two variants. A file is written only where llama.cpp has to
run it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import InputError, UnsupportedError, named_instead
from gguf_tools.evaluation.card.parts import overall, parts_of
from gguf_tools.evaluation.card.questions import CardSet, Choice
from gguf_tools.evaluation.card.results import CardReport, Passage
from gguf_tools.evaluation.card.statistics import Float
from gguf_tools.evaluation.card.suite import CardOptions, run_card
from gguf_tools.evaluation.metrics import next_token_nll
from gguf_tools.evaluation.prompts import predicted_bytes, text_pieces
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.formats.scratch import working_folder
from gguf_tools.model.spec import Model
from gguf_tools.quantization.plan import Quantization, QuantizeRequest, prepare
from gguf_tools.quantization.write import execute
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import lift
from surgery.algebra import Stack
from surgery.gguf.layers import LayeredFile, open_layered
from surgery.gguf.rewrite import GGUFPlan, plan_gguf, write_plan
from surgery.recipe import Recipe
from surgery.search.engine import Engine, LayerProfile, Scores
from surgery.search.items import Items
from surgery.search.records import Entry, Measured
from surgery.search.space import expected_loss

MEMORY = Path("/dev/shm")
"""A folder in memory, on Linux."""
ROUNDS, READ, WRITTEN = 6, 16, 64
"""Paired measurements of the speed, the tokens that are read in each, and the tokens that are generated after them."""
KL_TOKENS = 256
"""Tokens of the text on which the KL divergence is measured, at least; whole texts are taken."""


@dataclass(frozen=True)
class Read:
    """A passage in pieces of two tokens at least, and the UTF-8 bytes that are predicted in it."""

    pieces: tuple[tuple[int, ...], ...]
    bytes: int


class Bench:
    """The base model of a search with everything that measuring its variants needs; a context manager."""

    def __init__(
        self,
        source: Path,
        items: Items,
        card: CardOptions,
        *,
        options: RuntimeOptions,
        teacher: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Read the header of `source`; weights are read when they are needed. InputError for a file that is no GGUF of layers."""
        self.source = source
        self.items = items
        self.file: LayeredFile = open_layered(source)
        self._card = card
        self._options = options
        self._teacher = teacher
        self._device = device
        self._read: dict[str, tuple[Passage, ...]] = {}
        self._bytes: dict[str, int] = {}
        self._made = ExitStack()
        self._folder = self._made.enter_context(working_folder("tinyq-search", _scratch(2 * source.stat().st_size)))

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    @property
    def count(self) -> int:
        """Number of layers of the base."""
        return len(self.file.layers)

    def plan(self, recipe: Recipe) -> GGUFPlan:
        """The surgery on the base; InputError or UnsupportedError where it is not possible."""
        return plan_gguf(self.file, recipe)

    def planned_bytes(self, recipe: Recipe) -> int:
        """Bytes of the file that the surgery would write, but for a few of its metadata; planned once for each recipe.

        InputError or UnsupportedError where the surgery is not possible.
        """
        text = str(recipe)
        if text not in self._bytes:
            _, data_bytes = self.plan(recipe).entries
            self._bytes[text] = self.file.header.data_offset + data_bytes
        return self._bytes[text]

    @cached_property
    def passages(self) -> tuple[Read, ...]:
        """The passages that candidates are chosen by, as the card suite reads them; those without a prediction are left out."""
        with Runtime(self.source, replace(self._options, vocab_only=True)) as runtime:
            found = (_read(runtime, passage) for passage in self.items.chosen.passages)
            return tuple(passage for passage in found if passage.pieces)

    @cached_property
    def pieces(self) -> list[tuple[int, ...]]:
        """The tokens of all passages, in their pieces."""
        return [piece for passage in self.passages for piece in passage.pieces]

    @cached_property
    def engine(self) -> Engine | None:
        """The engine, or None where the torch reference does not know the architecture."""
        try:
            model = lift(open_gguf(self.source))
            teacher = self._lifted_teacher(model)
        except UnsupportedError:
            return None
        pieces = self.pieces
        lengths = np.cumsum([len(piece) for piece in pieces])
        enough = int(np.searchsorted(lengths, KL_TOKENS)) + 1
        kl_texts = len(pieces) if teacher is not None else min(enough, len(pieces))
        return Engine(model, pieces, kl_texts=kl_texts, teacher=teacher, device=self._device)

    def _lifted_teacher(self, model: Model) -> Model | None:
        if self._teacher is None:
            return None
        found = lift(open_gguf(self._teacher))
        if found.spec.vocab_size != model.spec.vocab_size:
            raise InputError(
                f"{self._teacher}: has a vocabulary of {found.spec.vocab_size} tokens, and {self.source} one of "
                f"{model.spec.vocab_size}; give a teacher with the same tokenizer"
            )
        return found

    @cached_property
    def profile(self) -> tuple[LayerProfile, ...]:
        """What each layer of the base does to the residual stream: by the engine, else by llama.cpp (without the angles)."""
        if self.engine is not None:
            return self.engine.profile()
        with Runtime(self.source, self._options) as runtime:
            found = runtime.layer_changes(self.pieces)
        return tuple(
            LayerProfile(norm, influence, float("nan"))
            for norm, influence in zip(found.update_norm, found.influence, strict=True)
        )

    def expected(self, stack: Stack) -> float:
        """What a stack is expected to lose by the update norms of the layers."""
        return expected_loss(stack, [layer.update_norm for layer in self.profile])

    def size(self, entry: Entry) -> int:
        """Bytes of the candidate's file, but for a few that its metadata record of the surgery."""
        return self._quantization(entry.type).size if entry.type else self.planned_bytes(entry.parsed)

    def by_update_norm(self, entry: Entry) -> Measured:
        """The expected loss alone, as one item, and the size of the file."""
        stack = entry.stack(self.count)
        loss = self.expected(stack)
        return Measured(np.array([loss]), {"expected": loss, "bytes": self.size(entry), "layers": len(stack)})

    def by_kl(self, entry: Entry) -> Measured:
        """The mean KL divergence on each of the first texts; of all texts where a teacher is given."""
        assert self.engine is not None
        found = self._scores(self.engine, entry, slice(self.engine.kl_texts))
        return Measured(found.kl, {"kl": float(found.kl.mean())})

    def by_text(self, entry: Entry) -> Measured:
        """Bits a byte of each passage."""
        read = self._passages(entry)
        bits, sizes = (np.array(values) for values in zip(*((p.nats / np.log(2), p.bytes) for p in read), strict=True))
        rows = np.stack([bits, sizes], axis=1)
        return Measured(bits / sizes, {"bits_per_byte": float(bits.sum() / sizes.sum())}, {"passages": rows.tolist()})

    def _passages(self, entry: Entry) -> tuple[Passage, ...]:
        """The passages as the candidate predicts them: by the engine, else by llama.cpp. Read once, and kept."""
        if entry.key not in self._read:
            if self.engine is not None:
                bits = self._scores(self.engine, entry, slice(None)).bits
            else:
                with self.variant(entry) as path, Runtime(path, self._options) as runtime:
                    bits = _bits(runtime, self.pieces)
            left = iter(bits * np.log(2))
            self._read[entry.key] = tuple(
                Passage(
                    math.fsum(next(left) for _ in passage.pieces),
                    sum(map(len, passage.pieces)) - len(passage.pieces),
                    passage.bytes,
                    len(passage.pieces),
                )
                for passage in self.passages
            )
        return self._read[entry.key]

    def _scores(self, engine: Engine, entry: Entry, texts: slice) -> Scores:
        """The engine's scores; the base quantized to another type is read back from its file."""
        if not entry.type:
            return engine.score(entry.stack(self.count), texts=texts)
        with self.variant(entry) as path:
            return engine.score_model(lift(open_gguf(path)), texts=texts)

    def by_questions(self, entry: Entry) -> Measured:
        """The card suite on the items that candidates are chosen by; the passages are those that `by_text` has read."""
        report, size = self._card_report(entry, replace(self.items.chosen, passages=()))
        return _measured(replace(report, passages=self._passages(entry)), size)

    def by_held_out(self, entry: Entry) -> Measured:
        """The card suite on the held-out items, all of them by llama.cpp; without questions, the text alone."""
        return _measured(*self._card_report(entry, self.items.held_out))

    def _card_report(self, entry: Entry, items: CardSet) -> tuple[CardReport, int]:
        """The card suite on a candidate's file, and the file's size in bytes."""
        with self.variant(entry) as path:
            size = path.stat().st_size
            with Runtime(path, self._options) as runtime:
                return run_card(runtime, replace(self._card, choice=Choice(items), probes=0)), size

    def by_function(self, function: Callable[[Path], float]) -> Callable[[Entry], Measured]:
        """The user's own scoring of a GGUF, larger is better."""

        def measure(entry: Entry) -> Measured:
            with self.variant(entry) as path:
                value = function(path)
                size = path.stat().st_size
            if not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(f"--objective: gave {value!r} for {entry.name}; expected a finite number")
            return Measured(np.array([-float(value)]), {"function": float(value), "bytes": size})

        return measure

    def by_speed(self, entry: Entry) -> Measured:
        """How many times as fast as the base's file the candidate's generates tokens, the two measured in turn.

        The figure is the median of the rounds' ratios; the median of all rounds that could be run lies between the smallest and
        the largest of six with a probability of 97% (1 − 2⁻⁵). The base is held against itself, which shows the noise.
        """
        tokens: list[tuple[float, float]] = []
        with (
            self.variant(entry) as path,
            Runtime(self.source, self._options) as base,
            Runtime(path, self._options) as own,
        ):
            for n in range(ROUNDS):
                # Who comes first takes turns: a processor that warms up, or slows down, favours neither.
                pair = [runtime.speed(READ, WRITTEN, 1).generate_tok_s for runtime in ((base, own), (own, base))[n % 2]]
                tokens.append((pair[n % 2], pair[1 - n % 2]))
        rates = np.array(tokens)
        ratios = rates[:, 1] / rates[:, 0]
        speed = float(np.median(ratios))
        figures = {"speed": speed, "low": float(ratios.min()), "high": float(ratios.max())}
        figures |= {"tok_s": float(np.median(rates[:, 1])), "base_tok_s": float(np.median(rates[:, 0]))}
        # One item: the interval says which speeds are equal, and prunes nothing.
        return Measured(np.array([-speed]), figures)

    def _quantization(self, name: str) -> Quantization:
        """The plan that quantizes the base to a type."""
        return prepare(QuantizeRequest(source=self.source, type=name, allow_requantize=True))

    @contextmanager
    def variant(self, entry: Entry) -> Iterator[Path]:
        """The candidate's file, in the scratch folder as long as the context lasts; the base's own file for the base."""
        if entry.always and not entry.type:
            yield self.source
            return
        path = self._folder / f"{entry.key}.gguf"
        try:
            self.write(entry, path)
            with named_instead(path, self.source, f"the candidate {entry.name} does not run"):
                yield path
        finally:
            path.unlink(missing_ok=True)

    def write(self, entry: Entry, out: Path) -> None:
        """Write the candidate's file, as `tinyq surgery` or `tinyq quantize` does."""
        threads = self._options.threads or 1
        if entry.type:
            execute(self._quantization(entry.type), out, threads=threads)
        else:
            write_plan(self.plan(entry.parsed), out, threads=threads)


def _measured(report: CardReport, size: int) -> Measured:
    """A card report as losses by question (by passage where none was asked), figures, and the results of the items."""
    right = [answer.right for answer in report.answers]
    passages = [[passage.nats / np.log(2), passage.bytes] for passage in report.passages]
    bits = sum(row[0] for row in passages) / max(sum(row[1] for row in passages), 1)
    figures: dict[str, float] = {"bytes": size, "bits_per_byte": float(bits)}
    if right:
        figures |= {"right": sum(right), "asked": len(right), "score": overall(report)}
        figures |= {name: part.score for name, part in parts_of(report).items()}
    losses = [1.0 - float(value) for value in right] or [row[0] / row[1] for row in passages]
    items: dict[str, Any] = {"right": right, "passages": passages}
    return Measured(np.array(losses, dtype=np.float64), figures, items)


def _read(runtime: Runtime, passage: str) -> Read:
    """A passage as the card suite reads it: in pieces of tokens, with the bytes that are predicted."""
    pieces = [tuple(ids) for ids in text_pieces(runtime, passage)]
    return Read(tuple(ids for ids in pieces if len(ids) > 1), predicted_bytes(runtime, passage, pieces))


def _bits(runtime: Runtime, pieces: Sequence[Sequence[int]]) -> Float:
    """The bits of each piece's predicted tokens by llama.cpp."""
    found = [
        next_token_nll(logits, np.asarray(ids), "the text").sum()
        for ids, logits in zip(pieces, runtime.iter_logits(pieces), strict=True)
    ]
    bits: Float = np.array(found, dtype=np.float64) / np.log(2)
    return bits


def _scratch(size: int) -> Path | None:
    """A folder in memory with room for `size` bytes and as much again, or None for the usual temporary folder."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 * size:
        return MEMORY
    return None
