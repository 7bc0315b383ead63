"""`tinyq quantize`: a GGUF into a smaller type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.common import (
    output_options,
    progress_bar,
    stage_bars,
    write_json,
)
from gguf_tools.commands.type_options import parse_size, parsed_options, parsed_target, type_options
from gguf_tools.errors import InputError
from gguf_tools.text import human_bytes, table

if TYPE_CHECKING:
    from gguf_tools.allocation.choose import Chosen
    from gguf_tools.quantization.plan import Quantization
    from gguf_tools.quantization.write import Quantized
    from quant.encode import Narrowing


@click.command()
@click.argument("source", metavar="IN.gguf", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="TYPE", required=False)
@type_options
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to measure on for --target-bpw and --target-size; by default what the model itself writes.",
)
@click.option("--allow-requantize", is_flag=True, help="Quantize what is quantized already, which loses more.")
@click.option("--keep-split", is_flag=True, help="As many parts as the source has, with the same tensors in each.")
@click.option("--split-max-size", metavar="SIZE", help="Split into parts of at most SIZE tensor data, such as 2G.")
@click.option("--dry-run", is_flag=True, help="Show types and the exact size, and write nothing.")
@output_options
def quantize(
    source: Path,
    out: Path,
    type_name: str | None,
    tensor_types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    pure: bool,
    imatrix: Path | None,
    target_bpw: float | None,
    target_size: str | None,
    calibration: Path | None,
    allow_requantize: bool,
    keep_split: bool,
    split_max_size: str | None,
    dry_run: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Quantize a GGUF (any part of it where it is split) to TYPE: q8_0, q6_k, q4_k_m … in either case.

    The tensors' bytes are those that llama.cpp's own quantizer writes. With --target-bpw or --target-size instead of TYPE,
    the types of all tensors are chosen: the model is run with each tensor alone rounded, and the bits go where that hurts.
    """
    from gguf_tools.formats.output import check_output
    from gguf_tools.quantization.plan import QuantizeRequest, prepare
    from gguf_tools.quantization.write import check_outputs, execute

    target = parsed_target(target_bpw, target_size, calibration)
    if (type_name is None) == (target is None):
        raise InputError("give either TYPE or a size (--target-bpw, --target-size), and not both")
    request = QuantizeRequest(
        source=source,
        type=(type_name or "q8_0").lower(),
        options=parsed_options(tensor_types, output_type, embedding_type, pure),
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        keep_split=keep_split,
        split_max_size=parse_size(split_max_size, "--split-max-size") if split_max_size else None,
    )
    chosen = None
    if target is None:
        plan = prepare(request)
    else:
        from gguf_tools.allocation.prepare import prepare_quantization

        check_output(out, force or dry_run)  # measuring takes a while, and room beside the output
        with stage_bars(quiet) as show:
            plan, chosen = prepare_quantization(request, target, out, threads=threads or 0, progress=show)
    if dry_run:
        write_json(plan_dict(plan, chosen=chosen), json_path)
        if json_path != "-":
            click.echo(plan_text(plan, chosen))
        return
    check_outputs(plan, out, force)
    with progress_bar(plan.report.bytes, "quantizing", quiet) as advance:
        result = execute(plan, out, force=force, threads=threads or 0, progress=advance)
    write_json(plan_dict(plan, result, chosen), json_path)
    if not quiet and json_path != "-":
        click.echo(summary_text(plan, result, chosen))


def plan_dict(plan: Quantization, result: Quantized | None = None, chosen: Chosen | None = None) -> dict[str, Any]:
    """The plan as JSON, and what a finished quantization adds: the files, and each tensor's relative RMS error."""
    report: dict[str, Any] = {
        "source": [str(header.path) for header in plan.sources],
        "type": plan.recipe.name,
        "size": plan.size,
        "notes": list(plan.notes),
        **plan.report.as_dict(),
        "tensors": [
            {
                "name": choice.name,
                "shape": list(tensor.shape),
                "from": tensor.entry.type.name,
                "type": choice.type.name,
                "wanted": choice.wanted.name,
                "reason": choice.reason,
                "bytes": entry.nbytes,
                "importance": choice.name in plan.importance,
                **(_loss_dict(result.losses.get(choice.name)) if result else {}),
            }
            for choice, tensor, entry in zip(plan.choices, plan.tensors, plan.entries, strict=True)
        ],
    }
    if chosen:
        report["allocation"] = chosen.as_dict()
    if result:
        report["paths"] = [str(path) for path in result.paths]
    return report


def _loss_dict(loss: Narrowing | None) -> dict[str, Any]:
    return {
        "relative_rms_error": loss.relative_error if loss else None,
        "measured_weights": loss.weights if loss else 0,
    }


def plan_text(plan: Quantization, chosen: Chosen | None = None) -> str:
    """The plan as a table of tensors, and the summary."""
    rows = [
        (
            choice.name,
            "×".join(map(str, tensor.shape)),
            tensor.entry.type.name,
            choice.type.name,
            human_bytes(entry.nbytes),
        )
        for choice, tensor, entry in zip(plan.choices, plan.tensors, plan.entries, strict=True)
    ]
    listed = table(("tensor", "shape", "from", "type", "size"), rows, "<<<<>")
    return f"{listed}\n\n{_overview(plan, chosen)}\nnothing was written (--dry-run)"


def summary_text(plan: Quantization, result: Quantized, chosen: Chosen | None = None) -> str:
    """What was done: a line for each type with its error, and the fall-backs."""
    losses: dict[str, Narrowing] = {}
    for choice in plan.choices:
        if choice.name in result.losses:
            loss = result.losses[choice.name]
            losses[choice.type.name] = losses[choice.type.name] + loss if choice.type.name in losses else loss
    rows = [
        (
            share.type,
            str(share.tensors),
            human_bytes(share.bytes),
            f"{losses[share.type].relative_error:.2e}" if share.type in losses else "",
        )
        for share in plan.report.types
    ]
    listed = table(("type", "tensors", "size", "relative RMS error"), rows, "<>")
    names = result.paths[0] if len(result.paths) == 1 else f"{result.paths[0]} and {len(result.paths) - 1} more"
    return f"{listed}\n\n{_overview(plan, chosen)}\nwrote     {names} ({human_bytes(result.bytes)})"


def _overview(plan: Quantization, chosen: Chosen | None) -> str:
    report = plan.report
    lines = [
        f"source    {plan.sources[0].path}" + (f" ({len(plan.sources)} parts)" if len(plan.sources) > 1 else ""),
        f"type      {chosen.target.label if chosen else plan.recipe.name}: {report.bits_per_weight:.2f} bits per weight "
        + ("" if chosen else f"(nominally {report.nominal_bits_per_weight:.2f}) ")
        + f"in {plan.size:,} bytes"
        + (f", {len(plan.parts)} parts" if len(plan.parts) > 1 else ""),
        "tensors   "
        + ", ".join(f"{share.tensors} {share.type}" for share in report.types)
        + f"; {report.kept} of them are never quantized",
    ]
    lines += [f"target    {chosen.sentence}"] if chosen else []
    if plan.importance:
        quantized = [choice.name for choice in plan.choices if not choice.type.plain]
        without = [name for name in quantized if name not in plan.importance]
        what = (
            f", not of {without[0]}" + (f" and {len(without) - 1} more" if len(without) > 1 else "") if without else ""
        )
        lines.append(f"imatrix   knows {len(quantized) - len(without)} of {len(quantized)} quantized tensors{what}")
    lines += [
        f"fallback  {len(fall.tensors)} tensors wanted {fall.wanted}, got {fall.type}: {fall.reason}"
        for fall in report.fall_backs
    ]
    return "\n".join(lines + [f"note      {note}" for note in plan.notes])
