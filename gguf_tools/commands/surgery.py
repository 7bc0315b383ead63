"""`tinyq surgery`: ops on the layers of a checkpoint or of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.common import output_options, progress_bar, write_json
from gguf_tools.commands.surgery_options import WithSurgery, given_options
from gguf_tools.errors import InputError
from gguf_tools.text import human_bytes

if TYPE_CHECKING:
    from surgery.checkpoint.rewrite import CheckpointPlan
    from surgery.gguf.rewrite import GGUFPlan
    from surgery.recipe import Recipe

    AnyPlan = CheckpointPlan | GGUFPlan


@click.command(cls=WithSurgery)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--in-place", is_flag=True, help="Change SOURCE, a GGUF, itself: only whole layers in another order.")
@click.option("--undo", is_flag=True, help="Take back the last change that was made to SOURCE in place.")
@click.option("--save-recipe", type=click.Path(path_type=Path), metavar="FILE", help="Write the ops to a TOML file.")
@click.option("--dry-run", is_flag=True, help="Draw the old and the new layers side by side and write nothing.")
@output_options
def surgery(
    source: Path,
    out: Path | None,
    in_place: bool,
    undo: bool,
    save_recipe: Path | None,
    dry_run: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Operate on the layers of SOURCE and write OUT: a folder from a checkpoint, a GGUF from a GGUF.

    Whole layers of a GGUF are copied as they are, quantized or not; what is blended or scaled is encoded again to the
    type that it had. Where a change in place was interrupted, --in-place completes it first, and alone completes it only.
    """
    from surgery.recipe import from_options
    from surgery.recipe import save_recipe as save

    options = given_options()
    if undo:
        _undo(source, out, options, quiet, json_path)
        return
    _check_outputs(source, out, in_place, dry_run)
    recipe = from_options(options)
    completed = _completed(source) if in_place and not dry_run else None
    if completed and not recipe:
        said = f"completed {completed} in {source}, which had been interrupted"
        _show({"source": str(source), "completed": completed}, said, json_path, quiet)
        return
    if not recipe:
        raise InputError("no op was given; name one, such as --swap 1:3, or --recipe FILE")
    plan = _planned(source, recipe)
    report = _report(plan, source, out, in_place)
    if dry_run:
        _check_in_place(plan, in_place)
        _show(report, _drawing(plan) + "\nnothing was written (--dry-run)", json_path, quiet)
        return
    report["bytes"] = _written(plan, out, in_place, force, threads, quiet)
    if save_recipe:
        save(recipe, save_recipe, report["layers_before"])
    done = f"wrote     {out or source} ({human_bytes(report['bytes'])}{' in the header' if in_place else ''})"
    noted = "".join(f"note      {note}\n" for note in report["notes"])
    _show(report, f"{_drawing(plan)}\n{noted}{done}", json_path, quiet)


def _check_outputs(source: Path, out: Path | None, in_place: bool, dry_run: bool) -> None:
    if out is not None and in_place:
        raise InputError(f"{out}: --in-place changes {source} itself and takes no OUT; leave one of the two out")
    if out is None and not in_place and not dry_run:
        raise InputError(
            f"{source}: where should the result go? Give OUT, or --in-place for another order of a GGUF's layers"
        )


def _completed(source: Path) -> str | None:
    """Complete a change in place of the file that was interrupted; what it was, None where there was none."""
    from gguf_tools.formats.journal import recover

    record = recover(source)
    return f"{'undoing ' if record.undoes else ''}{record.note}" if record else None


def _planned(source: Path, recipe: Recipe) -> AnyPlan:
    from gguf_tools.formats.gguf.header import is_gguf

    if source.is_file() and is_gguf(source):
        from surgery.gguf.layers import open_layered
        from surgery.gguf.rewrite import plan_gguf

        return plan_gguf(open_layered(source), recipe)
    from surgery.checkpoint.rewrite import plan_checkpoint

    return plan_checkpoint(source, recipe)


def _check_in_place(plan: AnyPlan, in_place: bool) -> None:
    """Raise what a change in place would raise."""
    from surgery.checkpoint.rewrite import CheckpointPlan
    from surgery.gguf.in_place import plan_in_place

    if in_place and not isinstance(plan, CheckpointPlan):
        plan_in_place(plan)


def _written(plan: AnyPlan, out: Path | None, in_place: bool, force: bool, threads: int | None, quiet: bool) -> int:
    """Carry the plan out; bytes written."""
    from gguf_tools.machine import available_cores
    from surgery.checkpoint.rewrite import CheckpointPlan, write_checkpoint
    from surgery.gguf.in_place import apply_in_place, plan_in_place
    from surgery.gguf.rewrite import write_plan

    if isinstance(plan, CheckpointPlan):
        if out is None:
            raise InputError(f"{plan.checkpoint.path}: is not a GGUF file; --in-place is for those alone, give OUT")
        with progress_bar(plan.size, "writing", quiet) as advance:
            return write_checkpoint(plan, out, force=force, progress=advance)
    if out is None:
        planned = plan_in_place(plan)
        apply_in_place(planned)
        return sum(len(patch.new) for patch in planned.patches)
    with progress_bar(plan.entries[1], "writing", quiet) as advance:
        return write_plan(plan, out, force=force, threads=threads or available_cores(), progress=advance)


def _undo(source: Path, out: Path | None, options: list[tuple[str, str]], quiet: bool, json_path: str | None) -> None:
    from gguf_tools.formats.journal import undo

    if out is not None or options:
        raise InputError("--undo takes back the last change made in place; give it SOURCE alone")
    recipe = undo(source)
    _show({"source": str(source), "undone": recipe}, f"undone    {recipe} in {source}", json_path, quiet)


def _show(report: dict[str, Any], text: str, json_path: str | None, quiet: bool) -> None:
    write_json(report, json_path)
    if not quiet and json_path != "-":
        click.echo(text)


def _letters(plan: AnyPlan) -> tuple[list[str], list[str]]:
    """The kind of each layer before and after."""
    from surgery.checkpoint.rewrite import CheckpointPlan

    if isinstance(plan, CheckpointPlan):
        return list(plan.source_model.spec.pattern), list(plan.model.spec.pattern)
    return plan.letters


def _drawing(plan: AnyPlan) -> str:
    from surgery.draw import draw

    old, new = _letters(plan)
    computed = len(plan.computed)
    made = f"{computed} tensors are computed, all others copied" if computed else "all tensors are copied as they are"
    return f"recipe    {plan.recipe}\nlayers    {len(old)} → {len(new)}; {made}\n\n{draw(plan.stack, len(old), old, new)}\n"


def _report(plan: AnyPlan, source: Path, out: Path | None, in_place: bool) -> dict[str, Any]:
    from surgery.algebra import describe
    from surgery.checkpoint.rewrite import CheckpointPlan
    from surgery.draw import changes, removed

    old, new = _letters(plan)
    return {
        "source": str(source),
        "out": str(out or source) if out or in_place else None,
        "format": "checkpoint" if isinstance(plan, CheckpointPlan) else "gguf",
        "in_place": in_place,
        "recipe": str(plan.recipe),
        "layers_before": len(old),
        "layers_after": len(new),
        "layers": [
            {"index": n, "kind": new[n], "from": describe(layer), "change": change}
            for n, (layer, change) in enumerate(zip(plan.stack, changes(plan.stack), strict=True))
        ],
        "removed": removed(plan.stack, len(old)),
        "computed_tensors": plan.computed,
        "notes": [] if isinstance(plan, CheckpointPlan) or in_place else list(plan.notes),
    }
