"""Selects the llama.cpp architecture that expresses a model exactly at the lowest cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.model.features import parts_of
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Model
from gguf_tools.rewrites.approximations import Approximation, Fit, Tokens
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.heads import FOLDED_GAIN, FOLDED_VALUE_SCALE, SHARED_HEAD_NORM
from gguf_tools.rewrites.norms import FOLDED_EMBEDDING_NORM, UNIT_NORMS
from gguf_tools.rewrites.residual import FOLDED_INPUT_SCALE
from gguf_tools.rewrites.rope_pairs import FORWARD_ROPE, NORM_BEFORE_ROPE
from gguf_tools.rewrites.router import FOLDED_ROUTER_SCALE, UNIFORM_ROUTER_BIAS
from gguf_tools.rewrites.scales import FOLDED_MULTIPLIERS, SCALE_REWRITES
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.registry import all_targets, target_named

COMMON_REWRITES = (
    FOLDED_MULTIPLIERS,
    UNIFORM_ROUTER_BIAS,
    FOLDED_INPUT_SCALE,
    FOLDED_EMBEDDING_NORM,
    FORWARD_ROPE,
    NORM_BEFORE_ROPE,
    UNIT_NORMS,
    FOLDED_GAIN,
    SHARED_HEAD_NORM,
    FOLDED_VALUE_SCALE,
    FOLDED_ROUTER_SCALE,
    *SCALE_REWRITES,
)
"""Rewrites that every target needs; applied before the target's own."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is converted: the target, the exact rewrites to apply, and the model after them.

    `extra_parameters` is the number of weights that the rewrites add, `extra_cache` the number of elements per token that they
    add to the key/value cache. `approximation`, if the user permitted one, was applied before the rewrites; `fits` is its
    measured quality per layer. `nmse` is the target's bound for the model (`Target.bound`).
    """

    target: Target
    rewrites: tuple[Rewrite, ...]
    model: Model
    extra_parameters: int
    extra_cache: int
    nmse: float
    approximation: Approximation | None = None
    fits: tuple[Fit, ...] = ()

    def lower(self) -> Lowered:
        """The rewritten model as the target's metadata and tensors."""
        return self.target.lower(self.model)


NEAREST = 6
"""Architectures that a refusal names, those that lack least."""


def plan(model: Model, target: str | None = None, calibration: Callable[[], Tokens] | None = None) -> Plan:
    """The cheapest plan that expresses the model exactly, over all targets or for the named one.

    The cheapest plan adds the fewest weights; ties go to the target that the family prefers, then to the fewest rewrites.
    `calibration` returns tokens to fit an approximation to, and permits one where no target is exact, or where the exact plan
    adds more weights than one that saves them (`Approximation.saves`). Raises UnsupportedError with what each target does not
    support if no target expresses the model.
    """
    _refuse_degenerate(model)
    candidates = [target_named(target)] if target else list(all_targets())
    plans, refusals, steps = [], [], _Steps()
    for candidate in candidates:
        made = _exact(candidate, model, steps)
        lacks = candidate.lacks(made.model.spec)
        if lacks:
            refusals.append((len(lacks), candidate.name, f"{candidate.name} does not support {', '.join(lacks)}"))
        else:
            plans.append(made)
    order = {name: n for n, name in enumerate(model.preferred_targets)}

    def cost(made: Plan) -> tuple[int, int, int]:
        return made.extra_parameters, order.get(made.target.name, len(order)), len(made.rewrites)

    best = min(plans, key=cost, default=None)
    if best and not calibration:
        return best
    offers = sorted(_offers(candidates, model, steps), key=cost)
    chosen = offers[0] if offers and calibration else None
    if best and (chosen is None or not _saves(chosen, best)):
        return best
    if chosen and chosen.approximation and calibration:
        approximated, fits = chosen.approximation.apply(model, calibration())
        return replace(_exact(chosen.target, approximated, steps), approximation=chosen.approximation, fits=fits)
    hints = "".join(
        f"; --allow-approximate accepts {offer.target.name} with a {offer.approximation.name}"
        for offer in offers
        if offer.approximation
    )
    lacking = _listed(refusals, model.preferred_targets)
    raise UnsupportedError(f"no llama.cpp architecture expresses this {model.family} model exactly: {lacking}{hints}")


FACTORS = (
    "scale",
    "softcap",
    "clip",
    "residual_scale",
    "input_scale",
    "embedding_scale",
    "logit_scale",
    "logit_softcap",
)
"""Fields of the spec's parts that llama.cpp does not apply where they are 0."""


def _refuse_degenerate(model: Model) -> None:
    """Raise UnsupportedError for numbers that no llama.cpp file holds: factors of 0, and a RoPE base below 1.

    A file's factor of 0 says that there is none. Below 1 angles grow with the dimension, beyond what float32 tells apart.
    """
    for part in parts_of(model.spec):
        zero = next((name for name in FACTORS if getattr(part, name, None) == 0), None)
        if zero:
            raise UnsupportedError(
                f"the {model.family} model has a {zero} of 0, which llama.cpp reads as none; expected another number: correct "
                "the config"
            )
        if isinstance(part, Rope) and part.theta < 1:
            raise UnsupportedError(
                f"the {model.family} model has a RoPE base of {part.theta:g}; expected at least 1: correct the config"
            )


def _listed(refusals: list[tuple[int, str, str]], preferred: Sequence[str]) -> str:
    """The sentences of `refusals`, (number of unsupported features, target, sentence): the nearest, and the preferred ones."""
    ranked = sorted(refusals)
    named = [one for n, one in enumerate(ranked) if n < NEAREST or one[1] in preferred]
    others = len(ranked) - len(named)
    more = [f"{others} other architectures lack as much or more (--target NAME says what)"] if others else []
    return "; ".join([*(text for _, _, text in named), *more])


class _Steps:
    """What single rewrites make of models, kept while one model is planned: most targets apply the same rewrites first."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Model, Rewrite, Model | None]] = {}

    def after(self, model: Model, rewrite: Rewrite) -> Model | None:
        """The rewritten model; None where the rewrite does not apply."""
        key = (id(model), id(rewrite))
        if key not in self._known:
            applies = rewrite.applies(model.spec) and rewrite.suits(model.spec) and rewrite.holds(model)
            # The objects are kept with the result, so that no other gets their identity.
            self._known[key] = (model, rewrite, rewrite.apply(model) if applies else None)
        return self._known[key][2]


def _exact(target: Target, model: Model, steps: _Steps) -> Plan:
    """The plan with the common rewrites and the target's own; its model may still have features that the target lacks."""
    rewritten, applied = model, []
    for rewrite in (*COMMON_REWRITES, *target.rewrites):
        needed = not rewrite.removes or not rewrite.removes <= target.expresses
        changed = steps.after(rewritten, rewrite) if needed else None
        if changed is not None:
            rewritten = changed
            applied.append(rewrite)
    # Rewrites that fold weights away can remove more than the others add.
    extra = max(0, rewritten.parameters - model.parameters)
    return Plan(
        target=target,
        rewrites=tuple(applied),
        model=rewritten,
        extra_parameters=extra,
        extra_cache=rewritten.spec.cache_width - model.spec.cache_width,
        nmse=target.bound(model.spec),
    )


def _offers(candidates: Sequence[Target], model: Model, steps: _Steps) -> list[Plan]:
    """The plans of targets that express the model after an approximation, which is not fitted yet."""
    found = []
    for candidate in candidates:
        for way in candidate.approximations:
            if way.applies(model.spec):
                made = _exact(candidate, way.apply(model, None)[0], steps)
                if not candidate.lacks(made.model.spec):
                    found.append(replace(made, approximation=way))
    return found


def _saves(offer: Plan, best: Plan) -> bool:
    """Whether the approximation is one that is taken for adding fewer weights than the exact plan."""
    way = offer.approximation
    return way is not None and way.saves and offer.extra_parameters < best.extra_parameters


def plan_for(model: Model, target: str) -> tuple[Plan, tuple[str, ...]]:
    """The plan for one target and what that target does not support, for files that other tools converted nevertheless."""
    made = _exact(target_named(target), model, _Steps())
    return made, tuple(made.target.lacks(made.model.spec))
