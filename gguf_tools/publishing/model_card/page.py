"""A model card's text: tables of files and measurements, provenance, and usage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gguf_tools.evaluation.card.compare import best_first
from gguf_tools.evaluation.card.notes import ASKED, notes_of
from gguf_tools.evaluation.card.power import power_of
from gguf_tools.evaluation.card.report import (
    CARD_COLUMNS,
    HELD_OUT_COLUMNS,
    beside_the_best,
    card_row,
    held_out_row,
)
from gguf_tools.formats.gguf import keys
from gguf_tools.publishing.model_card.comparison import comparison_section
from gguf_tools.publishing.model_card.facts import CardFacts, CardFile
from gguf_tools.publishing.model_card.front_matter import front_matter
from gguf_tools.publishing.model_card.memory import memory_section
from gguf_tools.publishing.model_card.methodology import methodology_section
from gguf_tools.publishing.model_card.published import Published, check_section, types_section
from gguf_tools.publishing.model_card.surgery import surgery_section
from gguf_tools.publishing.model_card.usage import usage
from gguf_tools.tables import Column, Table, markdown_table
from gguf_tools.text import for_markdown, human_bytes, human_count


def card_page(facts: CardFacts, modelfile: Path | None, search: str = "", published: Published | None = None) -> str:
    """The whole README.md, which links to `modelfile` in the same folder or, if that is None, shows the Modelfile's text.

    `search` is a section on the search that found the surgery, in Markdown. `published` are the facts on files that are published
    together, each with a Modelfile of its own.
    """
    sections = [
        _head(facts),
        types_section(facts, published) if published else _files(facts),
        _scores(facts),
        comparison_section(facts),
        surgery_section([(file.label, file.surgery) for file in facts.files]),
        search,
        _details(facts),
        memory_section([(file.label, file.memory, file.offloaded) for file in facts.files]),
        usage(facts, modelfile is None and published is None, published),
        check_section(facts, published) if published else "",
        methodology_section(facts),
        _provenance(facts),
    ]
    return front_matter(facts) + "\n" + "\n".join(section for section in sections if section)


def _head(facts: CardFacts) -> str:
    model = facts.model
    size = f"{human_count(model.parameters)} parameters"
    if model.active_parameters not in (None, model.parameters):
        size += f", {human_count(model.active_parameters or 0)} of them active per token"
    layers = sorted({file.measured.model.layers for file in facts.files})
    counted = " or ".join(map(str, layers)) + (" layer" if layers == [1] else " layers")
    made = f", converted from {_linked(facts.base_models)}" if facts.base_models else ""
    after = " by layer surgery" if facts.operated else ""
    return f"# {_plain(facts.name)}\n\nGGUF files for llama.cpp{made}{after}: {counted}, {size}.\n"


def _linked(ids: Sequence[str]) -> str:
    return ", ".join(f"[{name}](https://huggingface.co/{name})" for name in ids)


def _files(facts: CardFacts) -> str:
    """The table of files: type, size, KL divergence and top-1 agreement if measured."""
    rows = []
    for file in facts.files:
        found = file.measured.model
        row = [_link(file), _plain(found.type_text), f"{found.bpw:.2f}", human_bytes(found.bytes)]
        if file.measured.evaluation:
            metrics = file.measured.evaluation.fidelity.metrics
            row += [f"{metrics.kl_mean:.2g}", f"{metrics.top1_agreement:.2%}"]
        rows.append(row)
    head = ["File", "Type", "Bits/weight", "Size"]
    told = "Bits per weight count all bytes of the tensors. "
    evaluation = facts.files[0].measured.evaluation
    if evaluation:
        head += ["KL (nats)", "Top-1"]
        metrics = evaluation.fidelity.metrics
        told += (
            "KL is the mean divergence from the reference, and top-1 the share of positions with the same most likely token, "
            f"over {metrics.n_tokens:,} positions of {metrics.n_prompts} sequences; the reference is the original checkpoint in "
            f"torch, the file runs in llama.cpp with a cache of {facts.files[0].measured.engine.kv_type.upper()}. "
        )
    other = [_plain(file.label) for file in facts.files if _is_from_elsewhere(file)]
    if other:
        told += f"The reference is not, or no longer, the source that {', '.join(other)} records. "
    return f"## Files\n\n{markdown_table(head, rows, '<<>')}\n{told.rstrip()}\n"


def _is_from_elsewhere(file: CardFile) -> bool:
    """Whether the file records a source other than the one that it was compared with."""
    evaluation = file.measured.evaluation
    return evaluation is not None and evaluation.source.is_source is False


def _scores(facts: CardFacts) -> str:
    """The table of card scores, best first, with differences from the best and notes; "" if no card was measured."""
    cards = {file.label: file.measured.card for file in facts.files if file.measured.card}
    if not cards:
        return ""
    cards = {name: cards[name] for name in best_first(cards)}
    first = next(iter(cards.values()))
    columns = (Column("File", left=True, key=True), *CARD_COLUMNS, *(HELD_OUT_COLUMNS if first.held_out else ()))
    rows = [[name, *card_row(card), *(held_out_row(card) if card.held_out else ())] for name, card in cards.items()]
    by = "" if first.mode == "plain" else " by the file's own chat template"
    weights = ", ".join(f"{name.replace('_', '-')} {weight:g}" for name, weight in first.weights.items())
    asked = "1 question" if len(first.answers) == 1 else f"{len(first.answers)} questions"
    lines = [
        "## Score\n",
        f"{asked} of the set {_plain(Path(first.set_name).name)}, asked{by} {ASKED[first.mode]}, "
        f"greedily; weights of the score's components: {weights}. Intervals are 95% confidence intervals.\n",
        Table(columns, rows).markdown() + "\n",
    ]
    if len(cards) > 1:
        about, differences = beside_the_best(cards, {name: name for name in cards})
        lines += [
            f"{_plain(about[0].upper() + about[1:])}:\n",
            differences.markdown() + "\n",
        ]
    if said := power_of(first).sentences():
        lines += ["What these items can show:\n", *(f"- {line}" for line in said), ""]
    lines += [f"- {_plain(name)}: {_plain(note)}" for name, card in cards.items() for note in notes_of(card)]
    return "\n".join(lines).rstrip() + "\n"


def _details(facts: CardFacts) -> str:
    """The table of the model's architecture, sizes, vocabulary and context."""
    model = facts.model
    rows: list[tuple[str, Any]] = [
        ("Architecture", facts.files[0].measured.model.arch),
        ("Parameters", f"{model.parameters:,}"),
        ("Layers", model.layers if model.layers is not None else None),
        ("Hidden size", model.hidden),
        *((key.capitalize(), text) for key, text in model.details.items()),
        ("Vocabulary", f"{model.vocabulary.size:,} tokens" if model.vocabulary else None),
        ("Context", f"{model.context:,} tokens" if model.context else None),
    ]
    kept = [[name, _plain(value)] for name, value in rows if value is not None]
    return f"## Model\n\n{markdown_table(['', ''], kept, '<')}"


def _provenance(facts: CardFacts) -> str:
    """The table of the first file's provenance (its `tinyq.*` keys), and of the versions that it was measured with."""
    found = facts.files[0].provenance
    rows = [("Converted with", f"tinyq {found[keys.VERSION]}") if keys.VERSION in found else None]
    labels = {
        keys.FAMILY: "Checkpoint",
        keys.TARGET: "Target",
        keys.SOURCE_REPOSITORY: "Source on the hub",
        keys.SOURCE_COMMIT: "Commit",
        keys.SOURCE_DIGEST: "Digest of config and weights",
        keys.ADAPTERS: "Adapters merged",
        keys.ADAPTERS_SCALES: "Their scales",
        keys.ADAPTERS_DIGESTS: "SHA-256 of each adapter's config and weights",
        keys.MADE_FROM_TYPE: "Made from a file of type",
        keys.MADE_FROM_DIGEST: "SHA-256 of that file",
        keys.REQUANTIZED_FROM: "Requantized from",
        keys.REWRITES: "Rewrites",
        keys.APPROXIMATE: "Approximated",
        keys.TOKENIZER_APPROXIMATE: "Tokenizer approximated",
        keys.NOTES: "Notes",
    }
    for key, label in labels.items():
        value = found.get(key)
        if value:
            rows.append((label, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)))
    engine, card = facts.files[0].measured.engine, facts.files[0].measured.card
    rows += [("Measured with", engine.versions), ("Settings", engine.sentence)]
    if card:
        rows += [(f"SHA-256 of the {name}", card.digests[name]) for name in ("questions", "text")]
    kept = [[name, _plain(text)] for name, text in filter(None, rows)]
    return f"## Provenance\n\n{markdown_table(['', ''], kept, '<')}"


def _link(file: CardFile) -> str:
    """A Markdown link to a file, by its path relative to the card's folder."""
    return f"[{_plain(file.label)}]({quote(os.fsencode(file.place))})"


def _plain(text: object) -> str:
    return for_markdown(str(text))
