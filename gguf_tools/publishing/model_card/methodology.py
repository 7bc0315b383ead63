"""The section of a model card on how its figures were measured, with what was asked."""

from __future__ import annotations

from gguf_tools.evaluation.card.power import power_of
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.publishing.model_card.facts import CardFacts
from gguf_tools.tables import Column, Table
from gguf_tools.text import for_markdown


def methodology_section(facts: CardFacts) -> str:
    """Settings, items, limits and tests of the measurements that were made; "" if there are none."""
    measured = facts.files[0].measured
    if measured.card is None and measured.evaluation is None:
        return ""
    lines = ["## Methodology\n", f"- Engine: {for_markdown(measured.engine.versions)}; {measured.engine.sentence}."]
    if measured.evaluation:
        metrics = measured.evaluation.fidelity.metrics
        lines.append(
            f"- Fidelity: the logits of {metrics.n_tokens:,} positions of {metrics.n_prompts} sequences, compared with those of "
            f"the torch reference; {for_markdown(measured.evaluation.source.note)}."
        )
    if measured.card:
        lines += _card_lines(measured.card)
    cards = {
        file.label: file.measured.card for file in (*facts.files, *facts.baselines) if file.measured.card is not None
    }
    return "\n".join(lines) + "\n" + (f"\n{_asked(cards)}" if cards else "")


def _card_lines(card: CardReport) -> list[str]:
    """What was asked and measured, its limits, and what the items can show, as a list."""
    limits = ", ".join(f"{count:,} tokens for {name.replace('_', ' ')}" for name, count in card.tokens.items())
    held_out = f", and {len(card.held_out)} held-out ones that do not count" if card.held_out else ""
    lines = [
        f"- Questions: {len(card.answers)}{held_out}, decoded greedily; at most {limits}. An answer is right if an accepted "
        "answer occurs in it as whole words, not negated and not among alternatives.",
        f"- Texts: {len(card.completions)} openings are continued as plain text; {len(card.passages)} passages are evaluated "
        "for the perplexity, each by itself.",
    ]
    if card.probes:
        other = "with" if card.mode == "direct" else "without"
        lines.append(f"- The other mode: the first {len(card.probes)} questions are asked again {other} thinking.")
    lines.append(
        "- Differences: paired by item; McNemar's exact test for counts, a permutation test and a bootstrap interval otherwise."
    )
    lines += [f"- What these items can show: {for_markdown(sentence)}." for sentence in power_of(card).sentences()]
    return lines


def _asked(cards: dict[str, CardReport]) -> str:
    """The questions, and which files answered each right, to be unfolded."""
    first = next(iter(cards.values()))
    columns = [Column("Question", left=True, key=True), *(Column(name, left=True) for name in cards)]
    rows = []
    for n, item in enumerate(first.answers):
        answers = [card.answers[n] if n < len(card.answers) else None for card in cards.values()]
        right = [
            None if other is None or other.question != item.question else ("right" if other.right else "wrong")
            for other in answers
        ]
        rows.append((item.question, *right))
    return (
        f"<details><summary>What was asked</summary>\n\n{Table(columns, rows).markdown()}\n\n</details>\n"
        if rows
        else ""
    )
