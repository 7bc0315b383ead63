"""What the shell completes: types, families, architectures, recipes, ops and question sets (click's completion protocol)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(words: Callable[[], Iterable[str]], *, files: bool = False) -> Completer:
    """A function for `shell_complete` that completes the words, in any case, and with `files` also paths."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        items = _starting(words(), incomplete)
        return [*items, CompletionItem(incomplete, type="file")] if files else items

    return complete


def _starting(words: Iterable[str], incomplete: str, before: str = "") -> list[CompletionItem]:
    return [CompletionItem(before + word) for word in words if word.lower().startswith(incomplete.lower())]


def recipe_types() -> list[str]:
    """The types of whole files."""
    from quant.recipes import RECIPES

    return list(RECIPES)


def tensor_types() -> list[str]:
    """The types of single tensors that can be written."""
    from quant.types import TYPES

    return [kind.name for kind in TYPES if kind.encodes]


def families() -> list[str]:
    """The families of checkpoints and the values of model_type that they declare."""
    from gguf_tools.families.registry import all_families

    found = all_families()
    return sorted({*(family.name for family in found), *(kind for family in found for kind in family.model_types)})


def family_names() -> list[str]:
    """The families of checkpoints."""
    from gguf_tools.families.registry import all_families

    return [family.name for family in all_families()]


def architectures() -> list[str]:
    """The llama.cpp architectures that checkpoints are converted to."""
    from gguf_tools.targets.registry import all_targets

    return sorted(target.name for target in all_targets())


def shipped() -> list[str]:
    """The bundled surgery recipes."""
    from surgery.shipped import shipped_recipes

    return list(shipped_recipes())


def score_parts() -> list[str]:
    """The components of the card's score, as --weight takes them."""
    from gguf_tools.evaluation.card.parts import DEFAULT_WEIGHTS

    return [f"{name.replace('_', '-')}=" for name in DEFAULT_WEIGHTS]


def assigned_type(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The type in REGEX=TYPE."""
    pattern, equals, kind = incomplete.rpartition("=")
    return _starting(tensor_types(), kind, f"{pattern}=") if equals else []


def keys_of_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The keys of the GGUF that the line names; for KEY=VALUE with the sign."""
    end = "=" if parameter.name == "values" else ""
    return [] if "=" in incomplete else _starting([f"{key}{end}" for key in _header_names(context)[0]], incomplete)


def tensors_of_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The tensors of the GGUF that the line names, for OLD=NEW."""
    return [] if "=" in incomplete else _starting([f"{name}=" for name in _header_names(context)[1]], incomplete)


def _header_names(context: click.Context) -> tuple[list[str], list[str]]:
    """The keys and the tensors of the line's GGUF; none while it is not one."""
    from pathlib import Path

    from gguf_tools.errors import CheckpointError
    from gguf_tools.formats.gguf.header import is_gguf, read_header

    # An option without its value leaves the words before it unparsed.
    words = map(Path, filter(None, (context.params.get("source"), *context.args)))
    source = next((path for path in words if is_gguf(path)), None)
    try:
        header = read_header(source) if source else None
    except CheckpointError:
        header = None
    return (list(header.metadata), [entry.name for entry in header.tensors]) if header else ([], [])


def surgery_parameters() -> list[click.Parameter]:
    """The surgery options as click's own, which only completion sees (`WithSurgery` reads them before click does)."""
    from surgery.algebra import HALVES
    from surgery.ops import all_ops

    completers: dict[str, Completer] = {
        "recipe": completer(shipped, files=True),
        "only": completer(lambda: HALVES),
        "with": completer(list, files=True),
    }
    return [
        click.Option([f"--{name}"], multiple=True, expose_value=False, shell_complete=completers.get(name))
        for name in (*all_ops(), *completers)
    ]
