"""The public function `edit`: metadata and tensors' names of a GGUF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf_tools.api.checked import checked
from gguf_tools.api.options import counted, optional_path
from gguf_tools.api.results.editing import EditResult
from gguf_tools.editing.copies import write_copies
from gguf_tools.editing.header_toml import read_header_toml
from gguf_tools.editing.in_place import HeaderChange, plan_in_place, plan_rewrite
from gguf_tools.editing.plan import Assignment, EditPlan, assignment, edits_of, plan_edit, python_assignment
from gguf_tools.editing.proof import prove_loads
from gguf_tools.editing.values import value_file
from gguf_tools.errors import InputError
from gguf_tools.formats import journal
from gguf_tools.formats.gguf.split import joined_header, read_parts
from gguf_tools.formats.output import check_set, settle
from gguf_tools.formats.temporary import folder_lock
from gguf_tools.formats.watch import Watch
from gguf_tools.progress import StageProgress
from gguf_tools.sources.hub import Reading, cached_name, local_source
from gguf_tools.sources.inputs import source_files

Values = Mapping[str, Any] | Sequence[str]
"""Values by key (or `KEY:TYPE`), or texts such as `general.name=Tiny`, as on the command line."""


@checked
def edit(
    source: str | Path,
    out: str | Path | None = None,
    values: Values = (),
    *,
    unset: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    header: str | Path | None = None,
    in_place: bool = False,
    undo: bool = False,
    prove: bool | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: StageProgress | None = None,
) -> EditResult:
    """Change the metadata and the tensors' names of a GGUF (of any shard's model, if it is split): `tinyq edit`.

    `values` sets keys: a value of Python's by key, or texts such as `general.name=Tiny`, as on the command line. `unset` removes
    keys, `rename` gives tensors new names; or `header` is a TOML file that `tinyq edit --show` printed and that was edited. The
    type of a value is that which the key has in the file, that which llama.cpp reads, or what the value looks like; `KEY:TYPE`
    states it. No tensor's bytes change.

    The result is written to `out`, or with `in_place` to the source itself: in the header's own room if it fits, otherwise by
    writing the file anew; `undo` undoes the last such change. If one was interrupted, `in_place` completes it first; without
    edits it does only that. Unless `prove` is False, llama.cpp must load the model after the edit if it loads it before; with
    True it is an error if that cannot be tried.

    `progress` is called with (stage, done, total). With `dry_run` nothing is written.

    Raises InputError for a key or value that does not fit what llama.cpp reads, a tensor's name that is missing or taken, or an
    edit that cannot be made in place; UnsupportedError if llama.cpp would not load the result; CheckpointError for a broken
    source; OutputError if `out` exists without `force`, is the source, or cannot be written.
    """
    source, out = local_source(source, Reading.HEADERS if dry_run else Reading.WHOLE), optional_path(out)
    if (in_place or undo) and (name := cached_name(source)):
        raise InputError(f"{name}: lies in the hub's cache, whose files other programs read too; give OUT instead")
    given = bool(values or unset or rename or header is not None)
    if undo:
        if out is not None or given or in_place or dry_run or prove is not None:
            raise InputError(
                "--undo undoes the last change in place and takes no OUT, edits or other options; give FILE alone"
            )
        return EditResult(source=source, undone=journal.undo(source))
    _check_asked(
        source, out, values, unset, rename, header, in_place=in_place, prove=prove, dry_run=dry_run, given=given
    )
    completed = _completed(source) if in_place and not dry_run else None
    if not given:
        return EditResult(source=source, in_place="completed", completed=completed or "")
    read = [*source_files(source), *value_files(values), *([Path(header)] if header is not None else [])]
    watch = Watch.over(read)
    plan = _planned(source, values, unset, rename or {}, optional_path(header))
    paths = (source,) if out is None else plan.paths(out)
    if out is not None and not dry_run:
        check_set(paths, read, sum(file.size for file in plan.files), force=force)
    change = _change(plan) if in_place else None
    unproved = prove is False or not (plan.changes or plan.renamed)
    proof = None if unproved else prove_loads(plan, out or source, demanded=bool(prove))
    if dry_run:
        return EditResult(source=source, plan=plan, proof=proof, in_place=change.way if change else None)
    watch.check()
    advance = counted(progress, "writing", 0 if change else plan.copied_bytes)
    if change is None:
        size = write_copies(plan.files, paths, force=force, progress=advance, check=watch.check)
    else:
        size = _changed(change, plan, progress)
    way = change.way if change else None
    written = (change.header.path,) if change else paths
    return EditResult(source=source, plan=plan, paths=written, proof=proof, in_place=way, bytes=size)


def value_files(values: Values) -> list[Path]:
    """The files that values given as text are read from (`KEY=@FILE`)."""
    if isinstance(values, Mapping):
        return []
    return [found for found in map(value_file, values) if found is not None]


def _check_asked(
    source: Path,
    out: Path | None,
    values: Values,
    unset: Sequence[str],
    rename: Mapping[str, str] | None,
    header: str | Path | None,
    *,
    in_place: bool,
    prove: bool | None,
    dry_run: bool,
    given: bool,
) -> None:
    """Raise InputError unless it is said where to write, and what."""
    if out is not None and in_place:
        raise InputError(f"{out}: --in-place changes {source} itself and takes no OUT; give only one of them")
    if out is None and not in_place and not dry_run:
        raise InputError(f"{source}: the output is missing; give OUT, or --in-place to change the file itself")
    if header is not None and (values or unset or rename):
        raise InputError("--from states the whole header and takes no other edits; give only one of them")
    if prove is not None and not given:
        raise InputError(
            f"--{'' if prove else 'no-'}prove: there is no edit; give one, such as --set general.name=Tiny"
        )
    if not given and not in_place:
        raise InputError("there is no edit; give one, such as --set general.name=Tiny, or print the header with --show")


def _completed(source: Path) -> str | None:
    """Complete an interrupted change of the file, and remove what a killed run left; its description, None if there was none."""
    record = journal.recover(source)
    if source.parent.is_dir():
        with folder_lock(source.parent):
            settle([source])
    return f"{'undoing ' if record.undoes else ''}{record.note}" if record else None


def _planned(
    source: Path, values: Values, unset: Sequence[str], rename: Mapping[str, str], header: Path | None
) -> EditPlan:
    """Read the source and plan the edit."""
    parts = read_parts(source)
    first = parts[0]
    if header is not None:
        stated, removed, names = read_header_toml(header, joined_header(parts))
        return plan_edit(parts, edits_of(first, stated, removed, names))
    found: list[Assignment]
    if isinstance(values, Mapping):
        found = [python_assignment(key, value, first) for key, value in values.items()]
    else:
        found = [assignment(text, first) for text in values]
    return plan_edit(parts, edits_of(first, found, unset, rename))


def _change(plan: EditPlan) -> HeaderChange:
    """The change in place. Raises InputError if it cannot be made."""
    return plan_in_place(plan) or plan_rewrite(plan)


def _changed(change: HeaderChange, plan: EditPlan, progress: StageProgress | None) -> int:
    """Change a file in place; returns the number of bytes written. A crash at any moment leaves a whole file, or a journal."""
    path = change.header.path
    watch = Watch.over([path])
    if change.way == "rewritten":
        (patch,) = change.patches
        rest = path.stat().st_size - len(patch.old)
        journal.rewrite(path, patch, plan.summary, progress=counted(progress, "writing", rest), check=watch.check)
        return len(patch.new) + rest
    if change.patches:
        watch.check()
        journal.change(path, change.patches, plan.summary)
    return change.bytes
