"""Families of other distributions: entry points in the group `tinyq.families`, each of which names a `Family`.

Installing such a distribution is all that it takes; `docs/adding-a-family.md` shows one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from gguf_tools.errors import InputError
from gguf_tools.families.base import Family

GROUP = "tinyq.families"


@dataclass(frozen=True)
class Plugin:
    """A family, and the distribution that brought it."""

    family: Family
    distribution: str


def load_plugins(taken: Iterable[str]) -> tuple[Plugin, ...]:
    """The family of every entry point of the group.

    `taken` are the names that tinyq's own families have. Raises InputError, naming the distribution, for an entry point that
    cannot be imported, that is not a Family, or whose family's name another one has.
    """
    owners = dict.fromkeys(taken, "tinyq")
    plugins = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (_distribution(entry), entry.name)):
        plugin = _load(entry)
        name = plugin.family.name
        if name in owners:
            raise InputError(
                f"{_where(entry)}: the family is called {name!r}, as one of {owners[name]} is; one of the two has to be renamed"
            )
        owners[name] = plugin.distribution
        plugins.append(plugin)
    return tuple(plugins)


def _load(entry: EntryPoint) -> Plugin:
    """The family of an entry point; InputError that names the distribution if it fails to load or is no Family."""
    try:
        loaded = entry.load()
    except Exception as error:
        # Whatever the other distribution's code raises: it is that distribution's defect, and the user has to know whose.
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{_where(entry)}: {entry.value} cannot be loaded ({cause}); mend or uninstall the distribution"
        ) from error
    if not isinstance(loaded, Family):
        raise InputError(
            f"{_where(entry)}: {entry.value} is a {type(loaded).__name__}, a gguf_tools.families.Family expected; "
            "mend or uninstall the distribution"
        )
    return Plugin(loaded, _distribution(entry))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unnamed distribution"


def _where(entry: EntryPoint) -> str:
    return f"distribution {_distribution(entry)}, entry point {entry.name} of {GROUP}"
