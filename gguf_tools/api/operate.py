"""The public function `operate`: layer surgery."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gguf_tools import signals
from gguf_tools.api.checked import checked
from gguf_tools.api.options import Donors, adapters_of, at_least, counted, optional_path, recipe_of
from gguf_tools.api.results.surgery import OperateResult, SurgeryPlan
from gguf_tools.errors import InputError
from gguf_tools.formats import journal
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.formats.output import Check, check_outputs
from gguf_tools.formats.watch import Watch
from gguf_tools.machine import MOST_THREADS, available_cores
from gguf_tools.progress import StageProgress
from gguf_tools.sources.adapters.adapter import GivenAdapter, adapter_files
from gguf_tools.sources.checkpoint import MARKS
from gguf_tools.sources.hub import cached_name, local_source
from gguf_tools.sources.inputs import source_files
from surgery.auto import is_auto, resolve
from surgery.checkpoint.rewrite import CheckpointPlan, plan_checkpoint, write_checkpoint
from surgery.gguf.in_place import apply_in_place, plan_in_place
from surgery.gguf.layers import open_layered
from surgery.gguf.proof import SurgeryProof
from surgery.gguf.rewrite import plan_gguf, write_plan
from surgery.recipe import Recipe
from surgery.recipe import save_recipe as save

PROVED_BYTES = 10**9
"""A GGUF of fewer bytes is run in llama.cpp before and after surgery, unless that is declined."""


@checked
def operate(
    source: str | Path,
    out: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    *,
    donors: Donors | None = None,
    lora: str | Path | Iterable[str | Path] = (),
    in_place: bool = False,
    undo: bool = False,
    save_recipe: str | Path | None = None,
    text: str | Path | None = None,
    dry_run: bool = False,
    allow_nonfinite: bool = False,
    assume_independent_layers: bool = False,
    prove: bool | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: StageProgress | None = None,
) -> OperateResult:
    """Apply layer surgery to a checkpoint (writes a folder) or a GGUF (writes a GGUF): `tinyq surgery`.

    `recipe` is text such as `swap(1:3) + delete(5)`, the name of a bundled recipe, or the path of a TOML file. `donors` maps
    the names that it uses for other models to their paths, as in `graft(B:3..5@4)`. Whole layers of a GGUF are copied
    unchanged, quantized or not; blended or scaled tensors are encoded again in their type. `in_place` changes a GGUF itself,
    for recipes that only reorder whole layers; `undo` undoes the last such change. If one was interrupted, `in_place`
    completes it first; without a recipe it does only that. `lora` names adapters that are merged into a checkpoint first, as in
    `convert`; no op is needed then. `save_recipe` writes the recipe to a TOML file. `allow_nonfinite`
    keeps NaN and infinity, which otherwise raise an error in anything written to `out`; an in-place change reads no weights.
    `assume_independent_layers` accepts a GGUF of an architecture that is not in the table of architectures; you must have
    checked that its computation does not depend on a layer's position, the number of layers, or tensors outside the layers.

    If the first op measures, such as `delete(auto:2)`, the model reads the file `text` (by default a built-in text); the
    result's recipe, and what is recorded, has the indices that were found.

    `prove` runs a GGUF and its result in llama.cpp before the result appears: each copied layer must compute what it did in the
    source (`surgery.gguf.proof`), and what is computed must agree with the torch reference, where there is one. By default
    this is done with files below 1 GB, unless `allow_nonfinite`, and what cannot be proved is said; with True that is an error.

    `progress` is called with (stage, done, total). With `dry_run` nothing is written.

    Raises InputError or one of its subclasses if the recipe does not fit the model, or if the result cannot be expressed by the
    llama.cpp architecture (UnsupportedError, with the reason), OutputError if `out` exists without
    `force`, is the source, or cannot be written.
    """
    source, out = local_source(source), optional_path(out)
    at_least("--threads", threads, 1, MOST_THREADS)
    if undo:
        others = (out, recipe, donors, lora, in_place, save_recipe, text, dry_run, allow_nonfinite)
        if any(others) or assume_independent_layers or prove is not None:
            raise InputError(
                "--undo undoes the last in-place change and takes no OUT, ops or other options; give SOURCE alone"
            )
        return OperateResult(source=source, undone=journal.undo(source))
    _check_place(source, out, in_place, dry_run)
    adapters = adapters_of(lora)
    if adapters and _is_gguf(source):
        raise InputError(f"{source}: is a GGUF, into which --lora cannot be merged; give the checkpoint")
    parsed = Recipe() if recipe is None else recipe_of(recipe, donors)
    if save_recipe is not None and not parsed:
        raise InputError("--save-recipe: there is no op to save; give one, such as --swap 1:3")
    if text is not None and not is_auto(parsed):
        raise InputError("--text: no op measures; give one such as --delete auto:2")
    read = [file for path in (source, *(donor.path for donor in parsed.donors)) for file in source_files(path)]
    read += [file for adapter in adapters for file in adapter_files(adapter.path)]
    outputs = {"OUT": out, "--save-recipe": optional_path(save_recipe)}
    measured_on = [] if text is None else [Path(text)]
    recipe_file = [Path(recipe)] if isinstance(recipe, str | Path) and os.path.isfile(recipe) else []
    if not dry_run:
        folders = {} if _is_gguf(source) else {"OUT": MARKS}
        check_outputs(outputs, [*read, *recipe_file, *measured_on], force=force, folders=folders)
    completed = _completed(source) if in_place and not dry_run else None
    watch = Watch.over(read)
    if completed and not parsed:
        return OperateResult(source=source, in_place=True, completed=completed)
    if not parsed and not adapters:
        raise InputError("there is no op; give one, such as --swap 1:3, or --recipe FILE")
    choice = None
    if is_auto(parsed):
        if adapters:
            raise InputError("--lora: an op that measures would not see the adapter; merge it into a folder first")
        tell = None if progress is None else partial(progress, "measuring")
        parsed, choice = resolve(parsed, source, optional_path(text), out or source, threads, tell)
    plan = _planned(source, parsed, assume_independent_layers, adapters)
    target = source if in_place else out
    if dry_run:
        if in_place and not isinstance(plan, CheckpointPlan):
            plan_in_place(plan)  # raises the errors that the change would raise
        return OperateResult(source=source, path=target, plan=plan, in_place=in_place, choice=choice)
    plan = _with_digests(plan)
    # Logits that are NaN agree with nothing.
    proof = None if allow_nonfinite and prove is None else _proof(plan, prove)
    size = _written(plan, out, force, threads, progress, watch.check, allow_nonfinite, proof)
    proved = proof.proved if proof else None
    result = OperateResult(
        source=source, path=target, plan=plan, in_place=in_place, bytes=size, proof=proved, choice=choice
    )
    if save_recipe is not None:
        save(plan.recipe, Path(save_recipe), result.layers_before, force=force)
    return result


def _check_place(source: Path, out: Path | None, in_place: bool, dry_run: bool) -> None:
    if in_place and (name := cached_name(source)):
        raise InputError(
            f"{name}: lies in the hub's cache, whose files other programs read too; give OUT instead of --in-place"
        )
    if out is not None and in_place:
        raise InputError(f"{out}: --in-place changes {source} itself and takes no OUT; give only one of them")
    if out is None and not in_place and not dry_run:
        raise InputError(f"{source}: the output is missing; give OUT, or --in-place to reorder whole layers of a GGUF")


def _completed(source: Path) -> str | None:
    """Complete an interrupted in-place change of the file; returns its description, or None if there was none."""
    record = journal.recover(source)
    return f"{'undoing ' if record.undoes else ''}{record.note}" if record else None


def _is_gguf(source: Path) -> bool:
    return source.is_file() and is_gguf(source)


def _planned(source: Path, recipe: Recipe, assume: bool, adapters: Sequence[GivenAdapter]) -> SurgeryPlan:
    if _is_gguf(source):
        return plan_gguf(open_layered(source, assume_independent=assume), recipe)
    if assume:
        raise InputError(f"{source}: is a checkpoint; --assume-independent-layers is for a GGUF; leave it out")
    return plan_checkpoint(source, recipe, adapters)


def _proof(plan: SurgeryPlan, prove: bool | None) -> SurgeryProof | None:
    """The proof to be made of a plan; of itself for a GGUF that is not large."""
    if isinstance(plan, CheckpointPlan):
        if prove:
            raise InputError(
                f"{plan.checkpoint.path}: --prove is for a GGUF; tinyq convert --prove proves a checkpoint's file"
            )
        return None
    held = sum(file.stat().st_size for file in plan.sources)
    if prove is False or (prove is None and held >= PROVED_BYTES):
        return None
    return SurgeryProof(plan, demanded=bool(prove))


def _with_digests(plan: SurgeryPlan) -> SurgeryPlan:
    """The plan with the digests of the recipe's donors; InputError where one is not what a recipe's file says."""
    recipe = replace(plan.recipe, donors=tuple(donor.checked() for donor in plan.recipe.donors))
    return replace(plan, recipe=recipe)


def _written(
    plan: SurgeryPlan,
    out: Path | None,
    force: bool,
    threads: int | None,
    progress: StageProgress | None,
    check: Check,
    lax: bool,
    proof: SurgeryProof | None,
) -> int:
    """Execute the plan, in place if `out` is None; returns the number of bytes written."""
    if isinstance(plan, CheckpointPlan):
        if out is None:
            raise InputError(f"{plan.checkpoint.path}: is not a GGUF file, and --in-place changes only those; give OUT")
        return write_checkpoint(
            plan, out, force=force, progress=counted(progress, "writing", plan.size), check=check, allow_nonfinite=lax
        )
    if out is None:
        planned = plan_in_place(plan)
        check()
        apply_in_place(planned)
        if proof and planned.patches:
            changed = Watch.over([plan.file.header.path])
            try:
                proof(plan.file.header.path)
                changed.check()
            except BaseException:
                with signals.held():
                    journal.undo(plan.file.header.path)
                    signals.withdrew(plan.file.header.path)
                raise
        return sum(len(patch.new) for patch in planned.patches)
    advance = counted(progress, "writing", plan.entries[1])
    return write_plan(
        plan,
        out,
        force=force,
        threads=threads or available_cores(),
        progress=advance,
        check=check,
        prove=proof,
        allow_nonfinite=lax,
    )
