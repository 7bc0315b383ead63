"""`tinyq convert`: a checkpoint into a GGUF."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.common import (
    output_options,
    progress_bar,
    stage_bars,
    write_json,
)
from gguf_tools.commands.surgery_options import WithSurgery, given_options
from gguf_tools.commands.type_options import parsed_options, parsed_target, type_options
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.text import human_bytes, human_count, table

if TYPE_CHECKING:
    from gguf_tools.conversion.plan import Conversion
    from gguf_tools.conversion.request import Operation, Request
    from gguf_tools.conversion.write import Converted


@click.command(cls=WithSurgery)
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
@type_options
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the tokenizer, where it does not lie in SOURCE.",
)
@click.option("--target", metavar="NAME", help="Force a llama.cpp architecture instead of the cheapest exact one.")
@click.option("--add-bos/--no-add-bos", default=None, help="Whether BOS comes first, against what the tokenizer says.")
@click.option(
    "--context-length",
    type=click.IntRange(min=1, max=(1 << 31) - 1),
    metavar="N",
    help="Longest context to record, where the checkpoint does not say or says otherwise.",
)
@click.option(
    "--allow-approximate",
    is_flag=True,
    help="Where no architecture is exact, take the nearest and say what was reached.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to fit --allow-approximate to (by default a built-in one) and to measure --target-bpw on (what the model writes).",
)
@click.option("--text-only", is_flag=True, help="Leave out a vision or audio tower beside the text model.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@output_options
def convert(
    source: Path,
    out: Path,
    type_name: str,
    tensor_types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    pure: bool,
    imatrix: Path | None,
    target_bpw: float | None,
    target_size: str | None,
    tokenizer: Path | None,
    target: str | None,
    add_bos: bool | None,
    context_length: int | None,
    allow_approximate: bool,
    calibration: Path | None,
    text_only: bool,
    dry_run: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Turn the checkpoint SOURCE into OUT, a GGUF that stock llama.cpp runs.

    SOURCE is a folder in Hugging Face layout, or a torch state dict: a file, or the only one in its folder.

    At the end a probe text is tokenized by both sides; the file appears only if they agree. Layer surgery is done on the
    way, in the order of its options.
    """
    from gguf_tools.conversion.request import Request
    from gguf_tools.conversion.write import execute
    from gguf_tools.evaluation.vocabulary import prove_vocabulary
    from gguf_tools.formats.output import check_output

    if not dry_run:
        check_output(out, force)
    operation = _operation(given_options())
    request = Request(
        source=source,
        type=type_name.lower(),
        tokenizer=tokenizer,
        target=target,
        add_bos=add_bos,
        threads=threads or 0,
        text_only=text_only,
        operation=operation,
        context_length=context_length,
        allow_approximate=allow_approximate,
        calibration=calibration,
        options=parsed_options(tensor_types, output_type, embedding_type, pure),
        imatrix=imatrix,
    )
    size = parsed_target(target_bpw, target_size, calibration)
    if size is None:
        conversion, measured = _prepared(request, quiet), dict[str, Any]()
    elif request.type != "auto":
        raise InputError("--type and a size (--target-bpw, --target-size) contradict each other; give one of them")
    else:
        from gguf_tools.allocation.prepare import prepare_conversion

        check_output(out, force or dry_run)  # measuring needs room beside the output
        with stage_bars(quiet) as show:
            conversion, chosen = prepare_conversion(request, size, out, show)
        measured = {"allocation": chosen.as_dict()}
        if not quiet and json_path != "-":
            click.echo(chosen.sentence)
    if dry_run:
        write_json(plan_dict(conversion) | measured, json_path)
        if json_path != "-":
            click.echo(plan_text(conversion))
        return
    with progress_bar(conversion.layout.data_bytes, "writing", quiet) as advance:
        result = execute(
            conversion, out, force=force, threads=request.workers, progress=advance, prove=prove_vocabulary
        )
    write_json(plan_dict(conversion) | measured | result_dict(result), json_path)
    if not quiet and json_path != "-":
        click.echo(summary_text(conversion, result))


def _operation(options: list[tuple[str, str]]) -> Operation | None:
    """The layer surgery that the options ask for."""
    if not options:
        return None
    from gguf_tools.conversion.request import Operation
    from surgery.model import operate
    from surgery.recipe import from_options

    recipe = from_options(options)
    return Operation(str(recipe), lambda model: operate(model, recipe))


def _prepared(request: Request, quiet: bool) -> Conversion:
    from gguf_tools.conversion.plan import open_source, prepare
    from gguf_tools.conversion.request import AUTO

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
        "surgery": _recipe(conversion),
        "rewrites": [{"name": rewrite.name, "why": rewrite.why} for rewrite in made.rewrites],
        "extra_parameters": made.extra_parameters,
        "extra_cache": made.extra_cache,
        "approximate": [made.approximation.name] if made.approximation else [],
        "fits": [asdict(fit) for fit in made.fits],
        "type": conversion.decision.recipe,
        "type_reason": conversion.decision.reason,
        "notes": list(conversion.notes),
        **conversion.report.as_dict(),
        "bytes": conversion.size,
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


def _recipe(conversion: Conversion) -> str | None:
    field = conversion.metadata.get(keys.SURGERY)
    return None if field is None else str(field.value)


def result_dict(result: Converted) -> dict[str, Any]:
    """What the finished conversion adds: where the file is, and what narrowing did to a sample of the weights."""
    narrowing = {
        name: {
            "weights": loss.weights,
            "changed": loss.changed,
            "max_abs_change": loss.max_abs_change,
            "rms_change": loss.rms_change,
        }
        for name, loss in result.losses.items()
    }
    errors = {name: loss.relative_error for name, loss in result.by_tensor.items()}
    return {"path": str(result.path), "bytes": result.bytes, "narrowing": narrowing, "relative_rms_error": errors}


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


def summary_text(conversion: Conversion, result: Converted) -> str:
    """What was done, in a few lines."""
    lines = [_overview(conversion)]
    for name, loss in result.losses.items():
        if loss.changed and name in ("f16", "bf16"):
            lines.append(
                f"changed   {loss.changed:,} of {loss.weights:,} weights looked at by storing them as {name}, "
                f"by {loss.max_abs_change:.1e} at most"
            )
        elif loss.changed:
            error = f"relative RMS error {loss.relative_error:.2e} in {loss.weights:,} weights looked at"
            lines.append(f"rounded   to {name}: {error}")
    lines.append(f"wrote     {result.path} ({human_bytes(result.bytes)}); both sides tokenize the probe text alike")
    return "\n".join(lines)


def _overview(conversion: Conversion) -> str:
    made, report, model = conversion.plan, conversion.report, conversion.plan.model
    lines = [
        f"source    {conversion.source} ({conversion.family}, layers {model.spec.pattern}, "
        f"{human_count(model.parameters)} parameters)",
        f"target    {made.target.name}",
    ]
    if recipe := _recipe(conversion):
        lines.append(f"surgery   {recipe}")
    if made.approximation:
        lines.append(f"NOT EXACT {made.approximation.name}: {made.approximation.why}")
        lines += [
            f"layer {fit.layer:<3} {fit.agreement:.2%} of the calibration tokens reach the same experts, whose weights differ "
            f"by {fit.weight_error:.1e} (RMS); τ = {fit.slope:.3f}"
            for fit in made.fits
        ]
    lines += [f"rewrite   {rewrite.name}: {rewrite.why}" for rewrite in made.rewrites]
    if made.extra_parameters:
        share = made.extra_parameters / (model.parameters - made.extra_parameters)
        cost = f"{human_count(made.extra_parameters)} parameters more ({share:.1%})"
        if made.extra_cache:
            before = model.spec.cache_width - made.extra_cache
            cost += f", {model.spec.cache_width} numbers a token in the cache instead of {before}"
        lines.append(f"cost      {cost}")
    types = ", ".join(f"{share.tensors} {share.type}" for share in report.types)
    lines.append(f"type      {conversion.decision.recipe}: {conversion.decision.reason}")
    lines.append(f"tensors   {types}; {report.bits_per_weight:.2f} bits per weight, {human_bytes(conversion.size)}")
    lines += [
        f"fallback  {len(fall.tensors)} tensors wanted {fall.wanted}, got {fall.type}: {fall.reason}"
        for fall in report.fall_backs
    ]
    return "\n".join(lines + [f"note      {note}" for note in conversion.notes])
