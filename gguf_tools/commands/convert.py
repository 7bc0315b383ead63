"""`tinyq convert`: a checkpoint into a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.common import (
    force_option,
    human_bytes,
    human_count,
    json_option,
    progress_bar,
    quiet_option,
    table,
    threads_option,
    write_json,
)

if TYPE_CHECKING:
    from gguf_tools.convert import Conversion, Request, Result


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "type_name",
    default="auto",
    metavar="TYPE",
    show_default=True,
    help="auto is the smallest that is exact; or f32 f16 bf16 q8_0 q6_k q5_k_m q4_k_m … in either case.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the tokenizer, where it does not lie in SOURCE.",
)
@click.option("--target", metavar="NAME", help="Force a llama.cpp architecture instead of the cheapest exact one.")
@click.option("--add-bos/--no-add-bos", default=None, help="Whether BOS comes first, against what the tokenizer says.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@force_option
@threads_option
@json_option
@quiet_option
def convert(
    source: Path,
    out: Path,
    type_name: str,
    tokenizer: Path | None,
    target: str | None,
    add_bos: bool | None,
    dry_run: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Turn the checkpoint SOURCE (a folder in Hugging Face layout) into OUT, a GGUF that stock llama.cpp runs.

    At the end a probe text is tokenized by both sides; the file appears only if they agree.
    """
    from gguf_tools.convert import Request, execute
    from gguf_tools.prove import prove_vocabulary
    from gguf_tools.writer import check_output

    if not dry_run:
        check_output(out, force)
    request = Request(source, type_name.lower(), tokenizer, target, add_bos, threads or 0)
    conversion = _prepared(request, quiet)
    if dry_run:
        write_json(plan_dict(conversion), json_path)
        if json_path != "-":
            click.echo(plan_text(conversion))
        return
    with progress_bar(conversion.layout.data_bytes, "writing", quiet) as advance:
        result = execute(
            conversion, out, force=force, threads=request.workers, progress=advance, prove=prove_vocabulary
        )
    write_json(plan_dict(conversion) | result_dict(result), json_path)
    if not quiet and json_path != "-":
        click.echo(summary_text(conversion, result))


def _prepared(request: Request, quiet: bool) -> Conversion:
    from gguf_tools.convert import AUTO, open_source, prepare

    opened = open_source(request)
    total = sum(tensor.size for tensor in opened.halvable) if request.type == AUTO else 0
    with progress_bar(total, "reading", quiet or not total) as advance:
        return prepare(request, opened, advance)


def plan_dict(conversion: Conversion) -> dict[str, Any]:
    """The plan as JSON: target, rewrites, types and every tensor."""
    made = conversion.plan
    return {
        "family": conversion.family,
        "target": made.target.name,
        "rewrites": [{"name": rewrite.name, "why": rewrite.why} for rewrite in made.rewrites],
        "extra_parameters": made.extra_parameters,
        "type": conversion.decision.recipe,
        "type_reason": conversion.decision.reason,
        "notes": list(conversion.notes),
        "bytes": conversion.size,
        **conversion.report.as_dict(),
        "tensors": [
            {
                "name": choice.name,
                "shape": list(tensor.shape),
                "type": choice.type.name,
                "bytes": entry.nbytes,
                "sources": list(tensor.sources),
                "reason": choice.reason,
            }
            for choice, tensor, entry in zip(
                conversion.choices, conversion.tensors, conversion.layout.entries, strict=True
            )
        ],
    }


def result_dict(result: Result) -> dict[str, Any]:
    """What the finished conversion adds: where the file is, and how many weights each narrowing changed."""
    narrowing = {
        name: {
            "weights": loss.weights,
            "changed": loss.changed,
            "max_abs_change": loss.max_abs_change,
            "rms_change": loss.rms_change,
        }
        for name, loss in result.losses.items()
    }
    return {"path": str(result.path), "bytes": result.bytes, "narrowing": narrowing}


def plan_text(conversion: Conversion) -> str:
    """The plan as a table: one line for each tensor, and what is left of the summary."""
    rows = []
    for choice, tensor, entry in zip(conversion.choices, conversion.tensors, conversion.layout.entries, strict=True):
        names = tensor.sources
        origin = "(made)" if not names else names[0] if len(names) == 1 else f"{names[0]} + {len(names) - 1}"
        shape = "×".join(map(str, tensor.shape))
        rows.append((choice.name, shape, choice.type.name, human_bytes(entry.nbytes), origin))
    listed = table(("tensor", "shape", "type", "size", "source"), rows, "<<<><")
    return f"{listed}\n\n{_overview(conversion)}\nnothing was written (--dry-run)"


def summary_text(conversion: Conversion, result: Result) -> str:
    """What was done, in a few lines."""
    lines = [_overview(conversion)]
    for name, loss in result.losses.items():
        if loss.changed and name in ("f16", "bf16"):
            lines.append(
                f"changed   {loss.changed:,} of {loss.weights:,} weights by storing them as {name}, "
                f"by {loss.max_abs_change:.1e} at most"
            )
        elif loss.changed:
            relative = (loss.sum_sq_change / loss.sum_sq) ** 0.5
            lines.append(f"rounded   {loss.weights:,} weights to {name}, relative RMS error {relative:.2e}")
    lines.append(f"wrote     {result.path} ({human_bytes(result.bytes)}); both sides tokenize the probe text alike")
    return "\n".join(lines)


def _overview(conversion: Conversion) -> str:
    made, report, model = conversion.plan, conversion.report, conversion.plan.model
    lines = [
        f"source    {conversion.source} ({conversion.family}, layers {model.spec.pattern}, "
        f"{human_count(model.parameters)} parameters)",
        f"target    {made.target.name}",
    ]
    lines += [f"rewrite   {rewrite.name}: {rewrite.why}" for rewrite in made.rewrites]
    if made.extra_parameters:
        lines.append(f"cost      {human_count(made.extra_parameters)} parameters more")
    types = ", ".join(f"{share.tensors} {share.type}" for share in report.types)
    lines.append(f"type      {conversion.decision.recipe}: {conversion.decision.reason}")
    lines.append(f"tensors   {types}; {report.bits_per_weight:.2f} bits per weight, {human_bytes(conversion.size)}")
    lines += [
        f"fallback  {len(fall.tensors)} tensors wanted {fall.wanted}, got {fall.type}: {fall.reason}"
        for fall in report.fall_backs
    ]
    return "\n".join(lines + [f"note      {note}" for note in conversion.notes])
