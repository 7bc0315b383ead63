"""The sections of a model card that only files published together have: one table of all types, and how to check the files."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from gguf_tools.evaluation.card.as_json import part_facts
from gguf_tools.evaluation.card.compare import difference, score_interval
from gguf_tools.evaluation.card.parts import overall
from gguf_tools.evaluation.card.report import changed_value
from gguf_tools.publishing.folder import CHECKSUMS
from gguf_tools.publishing.model_card.facts import CardFacts, CardFile
from gguf_tools.tables import MISSING, markdown_table
from gguf_tools.text import for_markdown, human_bytes


@dataclass(frozen=True, kw_only=True)
class Published:
    """Files published together: `repository` on the hub, if any, and for each file its tag there and its SHA-256.

    `modelfiles` are the files' Modelfiles; `source` is what `tinyq verify --source` is told, and `imatrix` the name of the
    importance matrix among the published files, if one was used.
    """

    repository: str | None
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    modelfiles: tuple[str, ...]
    source: str
    imatrix: str | None

    @property
    def chosen(self) -> int:
        """The file that the examples use: Q4_K_M, which is also what the hub's tools take without a tag, or else the first."""
        return self.tags.index("Q4_K_M") if "Q4_K_M" in self.tags else 0


def types_section(facts: CardFacts, published: Published) -> str:
    """The table of all types: size, error against the original, score, and the paired difference from the largest file."""
    files = facts.files
    columns: list[tuple[str, list[str | None]]] = [
        ("File", [f"[{for_markdown(f.label)}]({quote(os.fsencode(f.place))})" for f in files]),
        ("Tag", [f"`{tag}`" for tag in published.tags]),
        ("Bits/weight", [f"{file.measured.model.bpw:.2f}" for file in files]),
        ("Size", [human_bytes(file.measured.model.bytes) for file in files]),
        *_fidelity(files),
        *_scores(files, published.tags[0]),
    ]
    rows = [[values[n] or MISSING for _, values in columns] for n in range(len(files))]
    table = markdown_table([name for name, _ in columns], rows, "<<>")
    return f"## Files\n\n{table}\n{' '.join(_told(facts))}\n"


def _fidelity(files: Sequence[CardFile]) -> list[tuple[str, list[str | None]]]:
    found = [file.measured.evaluation.fidelity.metrics if file.measured.evaluation else None for file in files]
    if not any(found):
        return []
    return [
        ("NMSE", [f"{m.nmse:.1e}" if m else None for m in found]),
        ("KL (nats)", [f"{m.kl_mean:.2g}" if m else None for m in found]),
        ("Top-1", [f"{m.top1_agreement:.2%}" if m else None for m in found]),
    ]


def _scores(files: Sequence[CardFile], largest: str) -> list[tuple[str, list[str | None]]]:
    """Score with its interval, the difference from the first file on the same items, and the perplexity."""
    cards = {file.label: file.measured.card for file in files if file.measured.card}
    if len(cards) != len(files):
        return []
    first = files[0].label
    scores, changes, perplexities = [], [], []
    for name, card in cards.items():
        low, high = score_interval(card).as_list()
        scores.append(f"{overall(card):.2f} ({low:.1f}–{high:.1f})")
        test = None if name == first else difference(first, name, cards).score
        text = changed_value(test, 2)
        changes.append(f"**{text}**" if text and test and test.shown else text)
        value = part_facts(card).get("perplexity", {}).get("perplexity")
        perplexities.append(None if value is None else f"{value:.4g}")
    named: list[tuple[str, list[str | None]]] = [("Score (95%)", [*scores])]
    named += [(f"Δ {largest}", changes)] if len(files) > 1 else []
    return [*named, ("Perplexity", perplexities)]


def _told(facts: CardFacts) -> list[str]:
    """What the columns mean."""
    told = ["Bits per weight count all bytes of the tensors."]
    if evaluation := facts.files[0].measured.evaluation:
        metrics = evaluation.fidelity.metrics
        told.append(
            "NMSE (of the logits), KL (mean divergence) and top-1 (share of positions with the same most likely token) compare "
            f"each file in llama.cpp with the original checkpoint in torch, over the same {metrics.n_tokens:,} positions of "
            f"{metrics.n_prompts} sequences: prompts, and the original's own greedy texts after them."
        )
    if len(facts.files) > 1 and all(file.measured.card for file in facts.files):
        told.append(
            f"Δ is the score minus that of {for_markdown(facts.files[0].label)} on the same items, with the 95% interval; a "
            "difference that chance does not explain (p < 0.05) is bold."
        )
    return told


def check_section(facts: CardFacts, published: Published) -> str:
    """How to check that the files arrived whole, and that they are what the source gives."""
    matrix = f" --imatrix {shlex.quote(published.imatrix)}" if published.imatrix else ""
    lines = [
        f"tinyq verify {shlex.quote(file.place)} --source {shlex.quote(published.source)}{matrix}"
        for file in facts.files
    ]
    rows = [
        [for_markdown(file.label), f"`{digest}`"] for file, digest in zip(facts.files, published.digests, strict=True)
    ]
    return "\n".join(
        [
            "## Check the files\n",
            markdown_table(["File", "SHA-256"], rows, "<<"),
            f"`sha256sum -c {CHECKSUMS}` checks all of them. That they are, byte for byte, what the source gives:\n",
            "```bash",
            *lines,
            "```\n",
        ]
    )
