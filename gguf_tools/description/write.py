"""Writes a description as TOML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from gguf_tools.description.derived import derived_field
from gguf_tools.description.fields import KIND, hints
from gguf_tools.description.placing import Placing
from gguf_tools.description.schema import VOCABULARY, Description, KeyPath, Source, roles_of
from gguf_tools.model.norms import Norm, Shape
from gguf_tools.model.spec import LayerSpec, ModelSpec
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.text import printable

Notes = Mapping[KeyPath, str]
"""Place in the description → the comment at the end of its line."""
OUTSIDE = ("vocab_size", "hidden", "layers")
"""Fields of ModelSpec that the embedding and the layers give."""
Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Described:
    """A decoder to describe: its spec, where each role's tensor is, and comments.

    `head` are the lines of comment at the top. `rows` are those of the embedding, where it has more than one for each token.
    """

    spec: ModelSpec
    outside: Sequence[Source]
    inside: Sequence[Source]
    unused: Sequence[str] = ()
    notes: Notes = field(default_factory=dict)
    head: Sequence[str] = ()
    rows: int = 0


def description_text(described: Described) -> str:
    """The description as TOML, which `parse_description` and `build` read back as the same spec."""
    spec = described.spec
    common = _common_norm(spec)
    model = _table(spec, ("model",), _shapes(described.outside, spec.roles()), common)
    tables = [
        _table(layer, ("layer",), _shapes(described.inside, layer.roles(spec.hidden)), common) for layer in spec.layers
    ]
    model = {VOCABULARY: spec.vocab_size, **model} if described.rows > spec.vocab_size else model
    base = max(tables, key=tables.count)
    lines = [f"# {printable(line)}".rstrip() for line in described.head]
    lines += _lines("model", _pruned(ModelSpec, model, ("model",), described.notes), described.notes)
    lines += _lines("norm", {key: value for key, value in common.items() if _stated(Norm, key, value)}, described.notes)
    lines += _lines("layer", _pruned(LayerSpec, base, ("layer",), described.notes), described.notes)
    for only, change in _changes(base, tables):
        inner = _lines("layers", change, {})
        lines += ["", "[[layers]]", f"only = {json.dumps(only)}", *(inner[2:] if _scalars(change) else inner)]
    if described.unused:
        at = next((n for n, line in enumerate(lines) if line.startswith("[")), len(lines))
        listed = ", ".join(map(_text, described.unused))
        lines[at:at] = [f"unused = [{listed}]  # computed, or not used", ""]
    lines += ["", "[tensors]", *_source_lines(described.outside, ("tensors",), described.notes)]
    lines += ["", "[tensors.layer]", *_source_lines(described.inside, ("tensors", "layer"), described.notes)]
    return "\n".join(lines).strip("\n") + "\n"


def restated(description: Description, checkpoint: Checkpoint, spec: ModelSpec, head: Sequence[str]) -> str:
    """The description of another model with the same tensor names, such as one with moved layers; `head` are comments."""
    first = roles_of(description.outside)["embedding"]
    described = Described(
        spec=spec,
        outside=description.outside,
        inside=description.inside,
        unused=description.unused,
        head=head,
        rows=Placing(description, checkpoint).stored(first).shape[0],
    )
    return description_text(described)


def _shapes(sources: Sequence[Source], roles: Mapping[str, Shape]) -> dict[str, Shape | None]:
    """The shapes of a part's roles as a reader sees them: None for roles that share a tensor."""
    alone = {role for source in sources if len(source.roles) == 1 for role in source.roles}
    return {role: shape if role in alone else None for role, shape in roles.items()}


def _common_norm(spec: ModelSpec) -> Table:
    """The fields that most norms have: those of the table `[norm]`."""
    norms = [spec.output_norm, *(norm for layer in spec.layers for norm in layer.norms.values())]
    (norm, _), *_ = Counter(norms).most_common(1)
    return {entry.name: getattr(norm, entry.name) for entry in fields(Norm) if entry.name not in ("weighted", "bias")}


def _table(part: Any, place: KeyPath, shapes: Mapping[str, Shape | None], common: Table) -> Table:
    """All fields of a part but those that the tensors show; a part that is None is false."""
    out: Table = {}
    for entry in fields(part):
        name, value, here = entry.name, getattr(part, entry.name), (*place, entry.name)
        if isinstance(part, ModelSpec) and name in OUTSIDE:
            continue
        derived = derived_field(type(part), name, here, shapes)
        if isinstance(part, Norm) and name in common and common[name] == value:
            continue
        if is_dataclass(value):
            inner = _table(value, here, shapes, common)
            if len(_classes(type(part), name)) > 1:
                inner = {KIND: type(value).__name__, **inner}
            if inner or derived != {}:
                out[name] = inner or True
        elif derived is MISSING or derived != value:
            out[name] = False if value is None else value
    return out


def _classes(kind: type, name: str) -> list[Any]:
    hint = hints(kind)[name]
    return [option for option in getattr(hint, "__args__", (hint,)) if is_dataclass(option)]


def _class(kind: type, name: str, table: Table) -> type:
    """The class of the part that a table describes."""
    named = {option.__name__: option for option in _classes(kind, name)}
    return named.get(table.get(KIND, ""), next(iter(named.values())))  # type: ignore[no-any-return]


def _stated(kind: type, name: str, value: Any) -> bool:
    """Whether a field's value has to be written, because it is not the default."""
    default = next(entry.default for entry in fields(kind) if entry.name == name)
    return default is MISSING or (False if default is None else default) != value


def _pruned(kind: type, table: Table, place: KeyPath, notes: Notes) -> Table:
    """The table without fields at their defaults, unless there is a note on them."""
    out: Table = {}
    for key, value in table.items():
        here = (*place, key)
        if key == KIND or kind is Norm:  # of a norm only what differs from the table [norm]
            out[key] = value
        elif isinstance(value, dict):
            out[key] = _pruned(_class(kind, key, value), value, here, notes)
        elif here in notes or _stated(kind, key, value):
            out[key] = value
    return out


def _changes(base: Table, tables: Sequence[Table]) -> Iterator[tuple[list[int], Table]]:
    """The layers whose tables differ from the base, grouped, with what differs."""
    groups: list[tuple[list[int], Table]] = []
    for n, table in enumerate(tables):
        change = _difference(LayerSpec, base, table)
        if not change:
            continue
        same = next((only for only, other in groups if other == change), None)
        if same is None:
            groups.append(([n], change))
        else:
            same.append(n)
    yield from groups


def _difference(kind: type, base: Table, table: Table) -> Table:
    """What to merge into the base to get the table; a part of another class is written whole."""
    out: Table = {}
    for key, value in table.items():
        before = base.get(key, MISSING)
        if before == value:
            continue
        if not isinstance(value, dict):
            out[key] = value
        elif isinstance(before, dict) and value.get(KIND) == before.get(KIND):
            out[key] = _difference(_class(kind, key, value), before, value)
        else:
            out[key] = _pruned(_class(kind, key, value), value, (), {})
    return out


def _scalars(table: Table) -> bool:
    return any(not isinstance(value, dict) for value in table.values())


def _lines(name: str, table: Table, notes: Notes) -> list[str]:
    """The table with its inner tables, each under its own header."""
    place = tuple(name.split("."))
    simple = [(key, value) for key, value in table.items() if not isinstance(value, dict)]
    lines = []
    if simple:
        rows = [(f"{key} = {_text(value)}", notes.get((*place, key), "")) for key, value in simple]
        lines = ["", f"[{name}]", *_aligned(rows)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _lines(f"{name}.{key}", value, notes) or ["", f"[{name}.{key}]"]
    return lines


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines with their comments one below the other."""
    width = min(max((len(text) for text, note in rows if note), default=0), 60)
    return [f"{text:<{width}}  # {printable(note)}" if note else text for text, note in rows]


def _source_lines(sources: Sequence[Source], place: KeyPath, notes: Notes) -> list[str]:
    rows = []
    for source in sources:
        role = " + ".join(source.roles)
        key = _text(role) if len(source.roles) > 1 else role
        value = _text(source.tensor)
        more = [f"blocks = {source.blocks}"] if source.blocks > 1 else []
        more += ["transposed = true"] if source.transposed else []
        text = f"{key} = {value}" if not more else f"{key} = {{ {', '.join([f'tensor = {value}', *more])} }}"
        rows.append((text, notes.get((*place, *role.split(".")), notes.get((*place, role), ""))))
    return _aligned(rows)


def _text(value: Any) -> str:
    """A TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, frozenset | tuple | list):
        return "[" + ", ".join(map(_text, sorted(value) if isinstance(value, frozenset) else value)) + "]"
    return repr(value)
