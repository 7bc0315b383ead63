"""The output of `tinyq eval` as text, Markdown, CSV and JSON, for one file or for several, best first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.evaluation.card.as_json import difference_dict, flat_card, to_csv
from gguf_tools.evaluation.card.compare import best_first, difference
from gguf_tools.evaluation.card.listing import answer_blocks, flip_lines
from gguf_tools.evaluation.card.notes import notes_of
from gguf_tools.evaluation.card.parts import overall
from gguf_tools.evaluation.card.report import (
    CARD_COLUMNS,
    FILE_COLUMN,
    HELD_OUT_COLUMNS,
    beside_the_best,
    card_blocks,
    card_row,
    constant_line,
    held_out_row,
    power_text,
)
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.evaluation.oracle_check import OracleCheck, magnitude, transformers_name
from gguf_tools.evaluation.report import check_thresholds, fidelity_blocks
from gguf_tools.tables import Block, Column, Lines, Table
from gguf_tools.text import human_bytes

if TYPE_CHECKING:
    from gguf_tools.evaluation.run import Evaluation, FileFailure, FileScores

RECIPE_COLUMN = Column("surgery", left=True, least=16, wrap=True)
"""The recipe of the layer surgery that a file records."""
SIZE_COLUMNS = (Column("size", human_bytes), Column("bits/weight", "{:.2f}".format))
FIDELITY_COLUMNS = (
    Column("NMSE", "{:.1e}".format),
    Column("KL mean", "{:.1e}".format),
    Column("top-1", "{:.4f}".format),
    Column("greedy exact", "{:.0%}".format),
    Column("prompt tok/s", "{:,.0f}".format, rank=1),
    Column("generate tok/s", "{:,.0f}".format, rank=1),
)
"""Columns for `fidelity_row`."""

_FLAT = ("nmse", "kl_mean", "kl_p99", "kl_max", "top1_agreement", "greedy_exact_match", "ppl_reference", "ppl_model")


def ordered(results: Sequence[FileScores]) -> list[FileScores]:
    """The results with the best first: by the card's score if there is one, else by the mean KL divergence."""
    cards = _cards(results)
    if cards:
        rank = {name: place for place, name in enumerate(best_first(cards))}
        return sorted(results, key=lambda result: rank[result.model.path])
    return sorted(results, key=lambda r: r.evaluation.fidelity.metrics.kl_mean if r.evaluation else 0.0)


def json_of(results: Sequence[FileScores], failed: Sequence[FileFailure] = ()) -> dict[str, Any]:
    """One file's report, or several under `models` with the paired differences of each two under `differences`.

    Files that llama.cpp failed on are listed under `failed`, which is absent otherwise.
    """
    if len(results) == 1 and not failed:
        return results[0].as_dict()
    cards = _cards(results)
    names = list(cards)
    pairs = [difference(one, two, cards) for at, one in enumerate(names) for two in names[at + 1 :]]
    found = {"models": [result.as_dict() for result in results], "differences": [difference_dict(d) for d in pairs]}
    return found | ({"failed": [vars(failure) for failure in failed]} if failed else {})


def blocks_of(results: Sequence[FileScores]) -> list[Block]:
    """The results as blocks: one file's reports, or tables of several files with their differences and notes."""
    if len(results) == 1:
        return _one(results[0])
    names = short_names([result.model.path for result in results])
    fidelity, cards = [result for result in results if result.evaluation], _cards(results)
    told = [f"{names[result.model.path]}: {line}" for result in results if (line := _headline(result))]
    blocks: list[Block] = [Lines("\n".join(told))] if told else []
    if fidelity:
        blocks.append(table_of(fidelity, names, card=False))
    if cards:
        blocks.append(table_of(results, names, fidelity=False))
        best = next(iter(cards))
        blocks += [Lines(constant)] if (constant := constant_line(cards[best])) else []
        about, differences = beside_the_best(cards, names)
        blocks += [Lines(f"{about}:"), differences]
        blocks += [Lines("\n".join(flip_lines(cards, names)))]
        blocks += [Lines(reach)] if (reach := power_text(cards[best])) else []
        if not cards[best].held_out:
            biased = "the best score of several is biased upwards on the questions used to select it; --held-out rest asks others"
            blocks.append(Lines(biased))
    notes = [f"note: {names[result.model.path]}: {note}" for result in results for note in _notes(result)]
    blocks += [Lines("\n".join(notes))] if notes else []
    return [part for block in blocks for part in (Lines(), block)][1:]


def answers_of(results: Sequence[FileScores]) -> list[Block]:
    """Every question with its answers and verdicts, of several files side by side; empty if no question was asked."""
    cards = _cards(results)
    return answer_blocks(cards, short_names(list(cards))) if cards else []


def markdown_of(results: Sequence[FileScores]) -> str:
    """The results as a Markdown table, with the differences between several cards."""
    names = short_names([result.model.path for result in results])
    blocks: list[Block] = [table_of(results, names)]
    cards = _cards(results)
    if len(cards) > 1:
        about, differences = beside_the_best(cards, names)
        blocks += [Lines(f"{about}:"), differences, Lines("\n".join(flip_lines(cards, names)))]
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


def csv_of(results: Sequence[FileScores]) -> str:
    """The results as CSV, one row per file."""
    rows: list[dict[str, Any]] = []
    for result in results:
        row: dict[str, Any] = dict(vars(result.model))
        if result.evaluation:
            found = result.evaluation.as_dict()
            row |= {f"fidelity.{name}": found["fidelity"][name] for name in _FLAT}
            row |= {f"speed.{name}": value for name, value in (found["speed"] or {}).items()}
        if result.card:
            row |= {f"card.{name}": value for name, value in flat_card(result.card).items()}
        rows.append(row)
    return to_csv(rows)


def shortcomings(
    results: Sequence[FileScores], bounds: Mapping[str, float | None], min_score: float | None
) -> list[str]:
    """One line per file and missed threshold; thresholds on values that were not measured are ignored."""
    found = []
    for result in results:
        path = result.model.path
        if result.evaluation:
            found += [f"{path}: {line}" for line in check_thresholds(result.evaluation.fidelity, bounds)]
        check = _check(result)
        if check and not check.agrees:
            found.append(
                f"{path}: {check.name} disagrees with the reference (NMSE {check.nmse:.2g}; expected at most {check.bound:.0e}): "
                "tinyq reads this checkpoint differently from the model's own code; please report it"
            )
        if result.card and min_score is not None and not overall(result.card) >= min_score:
            found.append(f"{path}: the card's score is {overall(result.card):.2f}; expected at least {min_score:g}")
    return found


def fidelity_row(result: Evaluation) -> tuple[float | None, ...]:
    """One table row with the columns of FIDELITY_COLUMNS."""
    metrics, speed = result.fidelity.metrics, result.speed
    return (
        metrics.nmse,
        metrics.kl_mean,
        metrics.top1_agreement,
        result.fidelity.greedy_exact_match,
        speed.prompt_tok_s if speed else None,
        speed.generate_tok_s if speed else None,
    )


def _one(result: FileScores) -> list[Block]:
    """The results of one file: the oracle's headline, facts of the file, fidelity report with notes, and card."""
    facts, headline = result.model, _headline(result)
    about = (
        f"{facts.path}: {facts.arch}, {facts.type_text}, {facts.layers} layers, {facts.bpw:.2f} bits per weight, "
        f"{human_bytes(facts.bytes)}" + (f", surgery {facts.recipe}" if facts.recipe else "")
    )
    blocks: list[Block] = [Lines(headline)] if headline else []
    blocks.append(Lines(about))
    if result.evaluation:
        blocks += [Lines(result.evaluation.source.note), Lines()]
        blocks += fidelity_blocks(result.evaluation.fidelity, result.evaluation.speed)
        blocks += [Lines(f"note: {note}") for note in result.evaluation.notes]
    if result.card:
        blocks += [Lines(), *card_blocks(result.card)]
    return blocks


def table_of(
    results: Sequence[FileScores], names: Mapping[str, str], *, fidelity: bool = True, card: bool = True
) -> Table:
    """The table with the requested columns, as far as they were measured."""
    first = results[0]
    held_out = bool(first.card and first.card.held_out)
    columns: tuple[Column, ...] = (FILE_COLUMN, RECIPE_COLUMN, *SIZE_COLUMNS)
    columns += FIDELITY_COLUMNS if fidelity and first.evaluation else ()
    columns += CARD_COLUMNS if card and first.card else ()
    columns += HELD_OUT_COLUMNS if card and held_out else ()
    rows = []
    for result in results:
        facts = result.model
        row: tuple[Any, ...] = (names[facts.path], facts.recipe, facts.bytes, facts.bpw)
        row += fidelity_row(result.evaluation) if fidelity and result.evaluation else ()
        row += card_row(result.card) if card and result.card else ()
        row += held_out_row(result.card) if card and held_out and result.card else ()
        rows.append(row)
    return Table(columns, rows)


def _notes(result: FileScores) -> list[str]:
    evaluation, card = result.evaluation, result.card
    found = [evaluation.source.note, *evaluation.notes, *evaluation.fidelity.notes] if evaluation else []
    return found + (notes_of(card) if card else [])


def _check(result: FileScores) -> OracleCheck | None:
    """The oracle's result on the file's reference, if there is one."""
    found = result.evaluation.oracle if result.evaluation else None
    return found if isinstance(found, OracleCheck) else None


def _headline(result: FileScores) -> str | None:
    """A sentence on the result of the source's own code, if it was run."""
    if check := _check(result):
        return check.sentence
    evaluation = result.evaluation
    if evaluation and evaluation.source.model is None:
        return f"{transformers_name()} is the reference: llama.cpp NMSE {magnitude(evaluation.fidelity.metrics.nmse)}"
    return None


def _cards(results: Sequence[FileScores]) -> dict[str, CardReport]:
    return {result.model.path: result.card for result in results if result.card}


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path without the parent folders that all paths share."""
    if len(paths) == 1:
        return {paths[0]: Path(paths[0]).name}
    folders = [str(Path(path).parent) for path in paths]
    common = os.path.commonpath(folders) if len({os.path.isabs(folder) for folder in folders}) == 1 else ""
    return {path: os.path.relpath(path, common) if common else path for path in paths}
