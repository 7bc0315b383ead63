"""Families from other distributions: entry points in the group `tinyq.families`, each naming a `Family`.

Installing such a distribution is enough; `docs/adding-a-family.md` has an example.
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
    """A family and the name of the distribution that provides it."""

    family: Family
    distribution: str


def load_plugins(taken: Iterable[str]) -> tuple[Plugin, ...]:
    """The family of every entry point in the group.

    `taken` are the names of tinyq's own families. Raises InputError, naming the distribution, for an entry point that
    cannot be imported, that is not a Family, or whose name another family has already.
    """
    owners = dict.fromkeys(taken, "tinyq")
    plugins = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (_distribution(entry), entry.name)):
        plugin = _load(entry)
        name = plugin.family.name
        if name in owners:
            raise InputError(
                f"{_where(entry)}: {owners[name]} already has a family named {name!r}; rename one of the two"
            )
        owners[name] = plugin.distribution
        plugins.append(plugin)
    return tuple(plugins)


def _load(entry: EntryPoint) -> Plugin:
    """The family of an entry point. Raises InputError, naming the distribution, if it fails to load or is not a Family."""
    try:
        loaded = entry.load()
    except Exception as error:
        # Any exception: the other distribution's code can raise anything, and the error must name that distribution.
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{_where(entry)}: {entry.value} cannot be loaded ({cause}); fix or uninstall the distribution"
        ) from error
    if not isinstance(loaded, Family):
        raise InputError(
            f"{_where(entry)}: {entry.value} is a {type(loaded).__name__}; expected a gguf_tools.families.Family; "
            "fix or uninstall the distribution"
        )
    return Plugin(loaded, _distribution(entry))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unnamed distribution"


def _where(entry: EntryPoint) -> str:
    return f"distribution {_distribution(entry)}, entry point {entry.name} of {GROUP}"
