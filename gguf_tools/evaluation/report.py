"""A fidelity report as text for a terminal, and checks of its thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguf_tools.errors import InputError
from gguf_tools.evaluation.fidelity import FidelityReport, FirstDifference
from gguf_tools.runtime.interface import Speed
from gguf_tools.tables import Block, Column, Facts, Lines, Table

_MAX_DIFFERENCES = 10

_THRESHOLDS = ("min_top1", "max_nmse", "max_kl", "min_greedy")


def fidelity_blocks(report: FidelityReport, speed: Speed | None = None) -> list[Block]:
    """The report as labelled lines, followed by first differences and notes if there are any."""
    m = report.metrics
    kl = f"mean {_number(m.kl_mean)}   p99 {_number(m.kl_p99)}   max {_number(m.kl_max)} nats"
    mean_prefix = f"{report.greedy_mean_prefix:.1f} of {report.n_generate} tokens equal on average"
    rows = [
        ("compared", f"{m.n_prompts} sequences, {m.n_tokens} positions"),
        ("logits", f"NMSE {_number(m.nmse)}   largest difference {_number(m.max_abs_diff)}"),
        ("KL divergence", kl),
        ("top-1", f"{_share(m.top1_agreement)} of positions agree"),
    ]
    if m.ppl_reference is not None and m.ppl_model is not None:
        change = f" ({m.ppl_model / m.ppl_reference - 1:+.3%})" if m.ppl_reference < float("inf") else ""
        rows.append(("perplexity", f"reference {m.ppl_reference:.4g}   model {m.ppl_model:.4g}{change}"))
    rows.append(("greedy", f"{_share(report.greedy_exact_match)} of continuations exact, {mean_prefix}"))
    if report.tokens_equal is not None:
        rows.append(("tokenizer", f"{_share(report.tokens_equal)} of prompts encoded alike"))
    if speed is not None:
        rows.append(("speed", f"prompt {speed.prompt_tok_s:.1f} tok/s   generation {speed.generate_tok_s:.1f} tok/s"))
    blocks: list[Block] = [Facts(rows, 1 + max(len(name) for name, _ in rows))]
    if report.first_differences:
        blocks += [Lines(), *_differences(report.first_differences)]
    if report.notes:
        blocks += [Lines(), *(Lines(f"note: {note}") for note in report.notes)]
    return blocks


_DIFFERENCES = (
    Column("prompt", key=True),
    Column("token", key=True),
    Column("llama.cpp chose", left=True),
    Column("llama.cpp's logits", left=True, rank=1),
    Column("reference chose", left=True),
    Column("reference's logits", left=True, rank=1),
    Column("margin", lambda value: _number(value)),
    Column("verdict", left=True),
)


def _differences(differences: Sequence[FirstDifference]) -> list[Block]:
    """One row per prompt: both candidates with both sides' logits, faults first."""
    ordered = sorted(differences, key=lambda d: (d.verdict == "tie", -d.margin))
    rows = []
    for d in ordered[:_MAX_DIFFERENCES]:
        rows.append(
            (
                d.prompt,
                d.position,
                _token(d.model.text),
                _order(d.model.logit_model, d.reference.logit_model),
                _token(d.reference.text),
                _order(d.reference.logit_reference, d.model.logit_reference),
                d.margin,
                d.verdict,
            )
        )
    ties = sum(d.verdict == "tie" for d in differences)
    more = f"; {_MAX_DIFFERENCES} are shown:" if len(differences) > _MAX_DIFFERENCES else ":"
    title = (
        f"first differences of {len(differences)} continuations ({ties} ties, {len(differences) - ties} faults){more}"
    )
    return [Lines(title), Table(_DIFFERENCES, rows)]


def _token(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 18 else shown[:16] + "…'"


def _order(first: float, second: float) -> str:
    """Two logits and their order, which may differ from the selected token because llama.cpp decoded token by token."""
    sign = ">" if first > second else "<" if first < second else "="
    return f"{first:.6g} {sign} {second:.6g}"


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.2e}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4g}"


def _share(value: float) -> str:
    """A share in percent that is never rounded up to 100 %."""
    text = f"{value:.2%}"
    return "<100%" if text == "100.00%" and value < 1 else text.replace("100.00%", "100%")


def check_thresholds(report: FidelityReport, thresholds: Mapping[str, float | None]) -> list[str]:
    """One line per missed threshold: min_top1, max_nmse, max_kl (for the mean), min_greedy (for the exact-match share).

    A threshold of None is not checked; an unknown name raises InputError.
    """
    unknown = sorted(set(thresholds) - set(_THRESHOLDS))
    if unknown:
        raise InputError(f"threshold {unknown[0]!r} is not known; expected one of {', '.join(_THRESHOLDS)}")
    measured = {
        "min_top1": ("top-1 agreement", report.metrics.top1_agreement),
        "max_nmse": ("NMSE", report.metrics.nmse),
        "max_kl": ("mean KL divergence", report.metrics.kl_mean),
        "min_greedy": ("greedy exact match", report.greedy_exact_match),
    }
    short: list[str] = []
    for name, (label, value) in measured.items():
        bound = thresholds.get(name)
        if bound is None:
            continue
        if name.startswith("min") and not value >= bound:
            short.append(f"{label} is {value:.6g}; expected at least {bound:g}")
        elif name.startswith("max") and not value <= bound:
            short.append(f"{label} is {value:.6g}; expected at most {bound:g}")
    return short
