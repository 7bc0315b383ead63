"""What an edit changes, and the files that come of it. Pure: nothing is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.editing.check import architecture_of, check_spelling, check_values, refuse_key, unread
from gguf_tools.editing.copies import CopiedFile, Held, copied_file
from gguf_tools.editing.known_keys import known_key, near_keys
from gguf_tools.editing.values import FieldType, from_text, guessed_value, made, named_type, type_of
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_NAME, Field, GGUFHeader, Metadata
from gguf_tools.formats.gguf.split import part_path
from gguf_tools.text import expected, shortened
from gguf_tools.tokenizers.model_name import NAME, plain_name

_KEY = re.compile(r"[A-Za-z0-9_./+-]+")
MOST_KEY = 65535
"""Most bytes of a key, by the GGUF specification."""


@dataclass(frozen=True)
class Assignment:
    """KEY=VALUE or KEY:TYPE=VALUE, as the user gave it; `typed` says whether he gave the type."""

    key: str
    field: Field
    typed: bool


@dataclass(frozen=True, kw_only=True)
class Edits:
    """What to change: values by key, keys to remove, and tensors' new names by their old ones."""

    values: Mapping[str, Field]
    removed: tuple[str, ...] = ()
    renamed: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """A key with its value before and after; None where it has none."""

    key: str
    old: Field | None
    new: Field | None


@dataclass(frozen=True, kw_only=True)
class EditPlan:
    """An edit of a model's files: what changes, and each file as it will be.

    `parts` are the files' headers now; `notes` are sentences on what may not be what was meant.
    """

    parts: tuple[GGUFHeader, ...]
    changes: tuple[Change, ...]
    renamed: Mapping[str, str]
    files: tuple[CopiedFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The path of the file; of the first shard of a split model."""
        return self.parts[0].path

    @property
    def differs(self) -> tuple[int, ...]:
        """The numbers of the files whose headers change."""
        return tuple(
            n
            for n, (part, file) in enumerate(zip(self.parts, self.files, strict=True))
            if (n == 0 and self.changes)
            or any(entry.name in self.renamed for entry in part.tensors)
            or part.alignment != file.layout.alignment
        )

    @property
    def loads_alike(self) -> bool:
        """Whether llama.cpp reads nothing of what changes when it loads the model."""
        architecture = architecture_of(self.files[0].metadata)
        return not self.renamed and all(unread(change.key, architecture) for change in self.changes)

    @property
    def copied_bytes(self) -> int:
        """Bytes of tensors that are copied to another output."""
        return sum(run.count for file in self.files for run in file.runs())

    @property
    def summary(self) -> str:
        """The edit in one line, as it is recorded for undoing it."""
        words = [f"{change.key} {'removed' if change.new is None else 'set'}" for change in self.changes]
        words += [f"{old} renamed" for old in self.renamed]
        return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")

    def paths(self, out: Path) -> tuple[Path, ...]:
        """The paths of the files for an output named `out`."""
        count = len(self.files)
        return (out,) if count == 1 else tuple(part_path(out, n, count) for n in range(count))


def assignment(text: str, header: GGUFHeader) -> Assignment:
    """KEY=VALUE or KEY:TYPE=VALUE. Without a type it is that of the key in the file, that which llama.cpp reads, or guessed.

    Raises InputError if it is none, or the value does not fit the type.
    """
    left, equals, value = text.partition("=")
    if not equals or not left:
        raise InputError(f"--set {shortened(text)}: expected KEY=VALUE, such as general.name=Tiny or my.key:u32=7")
    key, kind = _split_name(left, header)
    wanted = kind or expected_type(key, header, is_array=value.strip().startswith("["))
    return Assignment(key, from_text(value, wanted, key), kind is not None)


def python_assignment(name: str, value: Any, header: GGUFHeader) -> Assignment:
    """A key (or KEY:TYPE) with a value of Python's; without a type as in `assignment`. Raises InputError as that does."""
    key, kind = _split_name(name, header)
    wanted = kind or expected_type(key, header, is_array=isinstance(value, list | tuple))
    field = guessed_value(value, key) if wanted is None else made(wanted, value, key)
    return Assignment(key, field, kind is not None)


def _split_name(name: str, header: GGUFHeader) -> tuple[str, FieldType | None]:
    """The key and the type of KEY or KEY:TYPE; a key of the file may have a colon. Raises InputError for an unknown type."""
    key, colon, type_name = name.rpartition(":")
    if not colon or name in header.metadata:
        return name, None
    return key, named_type(type_name, f"--set {shortened(name)}")


def expected_type(key: str, header: GGUFHeader, *, is_array: bool) -> FieldType | None:
    """The type of a key in the file, or that which llama.cpp reads it with; None for one that neither has.

    Where llama.cpp reads a value for all layers or one for each, an array's or not according to `is_array`.
    """
    known = known_key(key, architecture_of(header.metadata))
    types = [type_of(header.metadata[key])] if key in header.metadata else []
    types += [named_type(name, key) for name in (known.types if known else ())]
    fitting = (kind for kind in types if (kind.element is not None) == is_array)
    return next(fitting, types[0] if types else None)


def edits_of(
    header: GGUFHeader, values: Sequence[Assignment], removed: Sequence[str], renamed: Mapping[str, str]
) -> Edits:
    """The edits that a user asks for. Raises InputError for a key given twice, misspelt, missing, or not to be changed."""
    architecture = architecture_of(header.metadata)
    found: Metadata = {}
    for one in values:
        if one.key in found:
            raise InputError(f"--set {one.key} is given twice; give it once")
        if not one.typed:
            check_spelling(one.key, architecture, header.metadata, "--set")
        found[one.key] = one.field
    for key in removed:
        if key in found:
            raise InputError(f"{key} is both set and removed; give only one")
        if key not in header.metadata:
            near = near_keys(key, architecture, header.metadata)
            hint = expected(key, near) if near else "--show lists its keys"
            raise InputError(f"{header.path}: there is no key {key} to remove; {hint}")
    return Edits(values=found, removed=tuple(dict.fromkeys(removed)), renamed=dict(renamed))


def plan_edit(parts: Sequence[GGUFHeader], edits: Edits) -> EditPlan:
    """Plan an edit of a file, or of a split model: metadata is that of its first shard.

    A key keeps its place, and new ones come last. Raises InputError for a value that llama.cpp would not read, a key that may not
    be changed, or a tensor's name that is missing, taken or too long.
    """
    first = parts[0]
    changes: list[Change] = []
    for key, field in edits.values.items():
        old = first.metadata.get(key)
        if old is not None and _same(old, field):
            continue
        _check_key(key, old)
        refuse_key(key, removed=False)
        changes.append(Change(key, old, field))
    for key in edits.removed:
        refuse_key(key, removed=True)
        changes.append(Change(key, first.metadata[key], None))
    new: dict[str, Field | None] = {change.key: change.new for change in changes}
    after = {key: field for key, field in {**first.metadata, **new}.items() if field is not None}
    check_values(after, new.keys())
    renamed = {old: name for old, name in edits.renamed.items() if old != name}
    _check_names(parts, renamed)
    return EditPlan(
        parts=tuple(parts),
        changes=tuple(changes),
        renamed=renamed,
        files=tuple(_edited(part, after if n == 0 else dict(part.metadata), renamed) for n, part in enumerate(parts)),
        notes=_notes(first, changes),
    )


def _same(one: Field, other: Field) -> bool:
    """Whether two values are the same bit for bit: NaN equals itself, and 0.0 is not -0.0."""
    return (one.type, one.element) == (other.type, other.element) and bytes(one.packed()) == bytes(other.packed())


def _check_key(key: str, old: Field | None) -> None:
    """Raise InputError for a new key that other readers of GGUF may not accept."""
    if old is None and (not _KEY.fullmatch(key) or len(key) > MOST_KEY):
        raise InputError(f"{shortened(repr(key))} is no key; expected letters, digits and . _ - such as my.note")


def _check_names(parts: Sequence[GGUFHeader], renamed: Mapping[str, str]) -> None:
    """Raise InputError unless each old name is a tensor's, and all names are different and fit ggml after the change."""
    present = [entry.name for part in parts for entry in part.tensors]
    known = set(present)
    for old, new in renamed.items():
        if old not in known:
            raise InputError(f"{parts[0].path}: there is no tensor {old}; {_near(old, present)}")
        size = len(new.encode("utf-8", "surrogateescape"))
        if not 0 < size <= MAX_NAME or not new.isprintable() or "\0" in new:
            raise InputError(
                f"--rename-tensor {old}={shortened(new)}: the new name has {size} bytes; expected 1 to {MAX_NAME} printable "
                "ones, ggml's limit"
            )
    seen: set[str] = set()
    for name in (renamed.get(name, name) for name in present):
        if name in seen:
            raise InputError(f"{parts[0].path}: two tensors would be called {name}; give another name")
        seen.add(name)


def _near(name: str, present: Sequence[str]) -> str:
    """The tensors that a name was probably meant to be, for the end of an error."""
    told = expected(name, present)
    return told if told.startswith("did you mean") else "tinyq inspect lists the tensors with --json"


def _edited(part: GGUFHeader, metadata: Mapping[str, Field], renamed: Mapping[str, str]) -> CopiedFile:
    """A file as it will be."""
    alignment = metadata[ALIGNMENT_KEY].value if ALIGNMENT_KEY in metadata else DEFAULT_ALIGNMENT
    held = [Held(part, entry, renamed.get(entry.name, entry.name)) for entry in part.tensors]
    return copied_file(dict(metadata), held, alignment)


def _notes(header: GGUFHeader, changes: Sequence[Change]) -> tuple[str, ...]:
    """Sentences on keys that llama.cpp does not read, and on types that change."""
    architecture = architecture_of(header.metadata)
    notes = []
    for change in changes:
        if change.key == NAME:
            notes += _name_notes(*(field.value if field else "" for field in (change.old, change.new)))
        if change.new is None:
            continue
        if change.old is not None and type_of(change.old) != type_of(change.new):
            notes.append(f"{change.key} changes its type from {type_of(change.old)} to {type_of(change.new)}")
        if change.old is None and known_key(change.key, architecture) is None:
            notes.append(f"{change.key} is a key of your own ({type_of(change.new)}): llama.cpp does not read it")
    return tuple(notes)


def _name_notes(old: object, new: object) -> list[str]:
    """A sentence if llama.cpp tokenizes differently because of the old or the new name, as it does for Phi-3 and ModernBERT."""
    meant = [isinstance(name, str) and plain_name(name) != name for name in (old, new)]
    if meant[0] == meant[1]:
        return []
    model = "a name as the new one" if meant[1] else "the old name"
    return [
        f"llama.cpp recognises Phi-3 or ModernBERT by {model}, and then strips spaces beside special tokens; compare"
    ]
