"""Targets: one module for each llama.cpp architecture, and the planner that picks one."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache

from gguf_tools.errors import UnsupportedError
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.rewrites import Rewrite
from gguf_tools.spec import Model
from gguf_tools.targets.base import Lowered, Target

__all__ = ["Lowered", "Plan", "Target", "all_targets", "lift", "plan", "target_named"]


@dataclass(frozen=True)
class Plan:
    """How a model becomes a file: the target, the exact rewrites applied, and the model after them.

    `extra_parameters` is what the rewrites add.
    """

    target: Target
    rewrites: tuple[Rewrite, ...]
    model: Model
    extra_parameters: int

    def lower(self) -> Lowered:
        """The rewritten model in the target's terms."""
        return self.target.lower(self.model)


@cache
def all_targets() -> tuple[Target, ...]:
    """Every target, by name."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = (getattr(module, "TARGET", None) for module in modules)
    return tuple(sorted((target for target in found if isinstance(target, Target)), key=lambda target: target.name))


def target_named(name: str) -> Target:
    """The target of this name; UnsupportedError, with those there are, otherwise."""
    for target in all_targets():
        if target.name == name:
            return target
    known = ", ".join(target.name for target in all_targets())
    raise UnsupportedError(f"target {name} is not known; targets are {known}")


def plan(model: Model, target: str | None = None) -> Plan:
    """The cheapest exact way to a llama.cpp architecture, or to the one asked for.

    Raises UnsupportedError with what each target lacks, where none expresses the model exactly.
    """
    candidates = [target_named(target)] if target else list(all_targets())
    plans, refusals = [], []
    for candidate in candidates:
        rewritten, applied = model, []
        for rewrite in candidate.rewrites:
            if rewrite.applies(rewritten.spec):
                rewritten = rewrite.apply(rewritten)
                applied.append(rewrite)
        lacks = candidate.lacks(rewritten.spec)
        if lacks:
            refusals.append(f"{candidate.name} lacks {', '.join(lacks)}")
        else:
            plans.append(Plan(candidate, tuple(applied), rewritten, rewritten.parameters - model.parameters))
    if not plans:
        raise UnsupportedError(f"no llama.cpp architecture expresses this {model.family} model: {'; '.join(refusals)}")
    return min(plans, key=lambda p: (p.extra_parameters, len(p.rewrites)))


def lift(source: GGUFSource) -> Model:
    """A GGUF file as a Model; UnsupportedError for an architecture without a target."""
    return target_named(source.architecture).lift(source)
