"""Which plan is chosen, by architectures that are made up: costs, preferences, approximations, and what a refusal says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gguf_tools.errors import UnsupportedError
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, Model, ModelSpec
from gguf_tools.rewrites.approximations import Approximated, Approximation, LogitFit, Tokens
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.gates import EMPTY_SHARED_EXPERT, ZERO_ATTENTION_GATE
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.rewrites.scales import FOLDED_EMBEDDING_SCALE, UNTIED_OUTPUT
from gguf_tools.targets import planner
from gguf_tools.targets.base import Target
from gguf_tools.targets.planner import Plan, plan, plan_for
from gguf_tools.targets.registry import target_named
from tests.random_model import ATTENTION, EXPERTS, HIDDEN, VOCAB, layer, random_model

LLAMA = target_named("llama")
FIT = LogitFit(kl=0.25, agreement=0.5, nmse=0.125)


REWRITTEN = frozenset(
    {
        "ModelSpec.tied=false",
        "Attention.bias=v",
        "Attention.gated",
        "Attention.norm_per_head",
        "MoE.shared=SharedExpert",
        "SharedExpert.gated=true",
    }
)
"""Features that the rewrites of these tests bring."""


def everything(spec: ModelSpec) -> frozenset[str]:
    return frozenset(feature.key for feature in spec.features) | REWRITTEN


def made(name: str, model: Model, *lacks: str, rewrites: Sequence[Rewrite] = (), **more: Any) -> Target:
    """A target that expresses all of a model's features, but for what it says that it lacks."""
    return replace(
        LLAMA,
        name=name,
        rewrites=tuple(rewrites),
        **{
            "expresses": everything(model.spec),
            "limits": lambda spec: list(lacks),
            "approximations": (),
            **more,
        },
    )


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these be all targets."""

    def these(*targets: Target) -> None:
        monkeypatch.setattr(planner, "all_targets", lambda: targets)
        by_name = {target.name: target for target in targets}
        monkeypatch.setattr(planner, "target_named", by_name.__getitem__)

    return these


Among = Callable[..., None]
PLAIN = random_model([layer()])
TIED = random_model([layer()], tied=True)


def test_the_fewest_weights_are_added(among: Among) -> None:
    among(made("untied", TIED, rewrites=[UNTIED_OUTPUT]), made("tied", TIED), made("other", TIED))
    found = plan(TIED)
    assert (found.target.name, found.extra_parameters, found.extra_cache, found.rewrites) == ("tied", 0, 0, ())
    assert found.model is TIED
    assert (found.approximation, found.fits, found.nmse) == (None, (), 0.0)
    dear = plan(TIED, "untied")
    assert (dear.target.name, dear.extra_parameters) == ("untied", VOCAB * HIDDEN)
    assert dear.rewrites == (UNTIED_OUTPUT,)


@pytest.mark.parametrize(
    ("preferred", "name"),
    [((), "first"), (("second",), "second"), (("third", "second"), "third"), (("absent", "third", "second"), "third")],
)
def test_the_preferred_one_of_equal_costs(among: Among, preferred: tuple[str, ...], name: str) -> None:
    among(*(made(each, PLAIN) for each in ("first", "second", "third")))
    assert plan(replace(PLAIN, preferred_targets=preferred)).target.name == name


def test_a_preference_is_worth_no_weights(among: Among) -> None:
    among(made("untied", TIED, rewrites=[UNTIED_OUTPUT]), made("tied", TIED))
    assert plan(replace(TIED, preferred_targets=("untied",))).target.name == "tied"


def test_the_fewest_rewrites_of_equal_costs(among: Among) -> None:
    model = random_model([layer()], embedding_scale=2.0)
    nothing = replace(UNTIED_OUTPUT, name="nothing", applies=lambda spec: True, apply=lambda model: model)
    among(made("two", model, rewrites=[nothing, nothing]), made("one", model, rewrites=[nothing]))
    assert plan(model).target.name == "one"
    among(made("one", model, rewrites=[nothing]), made("two", model, rewrites=[nothing, nothing]))
    assert plan(model).target.name == "one"


def test_a_target_that_has_the_feature_does_without_the_rewrite(among: Among) -> None:
    model = random_model([layer()], embedding_scale=2.0)
    has, lacks = made("has", model), made("lacks", model)
    lacks = replace(lacks, expresses=lacks.expresses - FOLDED_EMBEDDING_SCALE.removes)
    among(has, lacks)
    assert plan(model, "has").rewrites == ()
    assert plan(model, "lacks").rewrites == (FOLDED_EMBEDDING_SCALE,)
    assert plan(model).target.name == "has"


@pytest.mark.parametrize("no", ["applies", "suits", "holds"])
def test_a_rewrite_is_applied_where_spec_and_weights_permit_it(among: Among, no: str) -> None:
    asked: list[str] = []

    def answer(what: str) -> Callable[[object], bool]:
        return lambda _: asked.append(what) or what != no  # type: ignore[func-returns-value]

    rewrite = replace(
        UNTIED_OUTPUT,
        applies=answer("applies"),
        holds=answer("holds"),
        expresses=frozenset() if no == "suits" else everything(TIED.spec),
    )
    among(made("one", TIED, rewrites=[rewrite]))
    assert plan(TIED).rewrites == ()
    order = ["applies", "suits", "holds"]
    assert asked == [what for what in order[: order.index(no) + 1] if what != "suits"]
    among(
        made(
            "one",
            TIED,
            rewrites=[replace(rewrite, applies=lambda _: True, holds=lambda _: True, expresses=everything(TIED.spec))],
        )
    )
    assert len(plan(TIED).rewrites) == 1


def test_a_rewrite_is_done_once_for_all_targets(among: Among) -> None:
    done: list[Model] = []
    counted = replace(UNTIED_OUTPUT, apply=lambda model: done.append(model) or UNTIED_OUTPUT.apply(model))  # type: ignore[func-returns-value]
    among(*(made(name, TIED, rewrites=[counted]) for name in ("first", "second", "third")))
    assert plan(TIED).extra_parameters == VOCAB * HIDDEN
    assert len(done) == 1


def test_what_a_rewrite_adds_to_the_cache(among: Among) -> None:
    model = random_model([layer(replace(ATTENTION, bias=frozenset("o")))])
    among(made("heads", model, rewrites=[OUTPUT_BIAS_BY_HEADS]))
    found = plan(model)
    assert found.extra_cache == found.model.spec.cache_width - model.spec.cache_width == 16
    assert found.extra_parameters == found.model.parameters - model.parameters > 0


def test_weights_that_are_folded_away_are_not_counted(among: Among) -> None:
    model = random_model([layer(replace(ATTENTION, value_scale=True))])
    among(made("one", model))
    found = plan(model)
    assert found.model.parameters < model.parameters
    assert found.extra_parameters == 0


def test_rewrites_follow_each_other(among: Among) -> None:
    model = random_model([layer(feed_forward=EXPERTS)])
    among(made("one", model, rewrites=[EMPTY_SHARED_EXPERT, ZERO_ATTENTION_GATE]))
    found = plan(model)
    assert found.rewrites == (EMPTY_SHARED_EXPERT, ZERO_ATTENTION_GATE)
    first = found.model.spec.layers[0]
    assert isinstance(first.mixer, Attention)
    assert first.mixer.gated


# Refusals


def refused(model: Model, target: str | None = None, calibration: Callable[[], Tokens] | None = None) -> str:
    with pytest.raises(UnsupportedError) as raised:
        plan(model, target, calibration)
    return str(raised.value)


@pytest.mark.parametrize(
    ("count", "preferred", "named", "others"),
    [
        (1, (), "a", 0),
        (6, (), "abcdef", 0),
        (7, (), "abcdef", 1),
        (9, (), "abcdef", 3),
        (9, ("i",), "abcdefi", 2),
        (9, ("a", "z"), "abcdef", 3),
    ],
)
def test_a_refusal_names_the_nearest(
    among: Among, count: int, preferred: tuple[str, ...], named: str, others: int
) -> None:
    """Those that lack least come first; here each lacks one thing more than the one before."""
    targets = [made(name, PLAIN, *(f"{name}{n}" for n in range(at + 1))) for at, name in enumerate("abcdefghi"[:count])]
    among(*reversed(targets))
    said = refused(replace(PLAIN, preferred_targets=preferred))
    lacking = {name: ", ".join(f"{name}{n}" for n in range(at + 1)) for at, name in enumerate("abcdefghi")}
    wanted = "; ".join(f"{name} does not support {lacking[name]}" for name in named)
    more = f"; {others} other architectures lack as much or more (--target NAME says what)" if others else ""
    assert said == f"no llama.cpp architecture expresses this made up model exactly: {wanted}{more}"


def test_a_target_that_is_asked_for_is_refused_alone(among: Among) -> None:
    among(made("fine", PLAIN), made("asked", PLAIN, "this", "that"))
    assert refused(PLAIN, "asked").endswith("exactly: asked does not support this, that")


def test_what_a_target_lacks_can_be_asked() -> None:
    among_all = random_model([layer(), layer(replace(ATTENTION, qk_norm=None))])
    made_plan, lacks = plan_for(among_all, "qwen3")
    assert (made_plan.target.name, lacks) == ("qwen3", ("attention without q/k norm",))
    assert plan_for(PLAIN, "qwen3")[1] == ()


# Approximations


def approximation(
    name: str, apply: Callable[[Model], Model], *, saves: bool = False, applies: bool = True
) -> Approximation:
    """An approximation that counts as fitted where there are tokens."""

    def fitted(model: Model, tokens: Tokens | None) -> Approximated:
        return apply(model), (FIT,) * len(tokens or ())

    return Approximation(name, "for a test", lambda spec: applies, fitted, saves)


def tokens() -> Tokens:
    return ((1, 2, 3), (4, 5))


def capless(model: Model) -> Model:
    return replace(model, spec=replace(model.spec, logit_softcap=None))


CAPPED = random_model([layer()], tied=True, logit_softcap=8.0)
WAY = approximation("model without a cap", capless)
SAVING = replace(WAY, saves=True)


def uncapped(name: str, *ways: Approximation, rewrites: Sequence[Rewrite] = ()) -> Target:
    """A target without a cap on logits, and with these approximations."""
    return made(
        name,
        CAPPED,
        rewrites=rewrites,
        expresses=everything(capless(CAPPED).spec),
        approximations=ways,
    )


def capped(rewrites: Sequence[Rewrite] = ()) -> Target:
    return made("exact", CAPPED, rewrites=rewrites, expresses=everything(CAPPED.spec))


def test_an_approximation_is_offered(among: Among) -> None:
    dear = uncapped("dear", WAY, rewrites=[UNTIED_OUTPUT])
    among(dear, uncapped("cheap", WAY), uncapped("without"))
    said = refused(CAPPED)
    assert said.endswith(
        "; --allow-approximate accepts cheap with a model without a cap; "
        "--allow-approximate accepts dear with a model without a cap"
    )
    found = plan(CAPPED, None, tokens)
    assert (found.target.name, found.approximation, found.fits) == ("cheap", WAY, (FIT, FIT))
    assert found.model.spec.logit_softcap is None


def test_one_that_does_not_apply_or_does_not_help_is_not_offered(among: Among) -> None:
    useless = approximation("useless", lambda model: model)
    other = approximation("other", capless, applies=False)
    among(uncapped("one", useless, other))
    assert refused(CAPPED).endswith("one does not support logits capped at 8")
    assert refused(CAPPED, None, tokens).endswith("one does not support logits capped at 8")


def test_tokens_are_read_where_they_are_needed_alone(among: Among) -> None:
    def never() -> Tokens:
        raise AssertionError("no approximation is needed")

    among(capped(), uncapped("near", SAVING))
    found = plan(CAPPED, None, never)
    assert (found.target.name, found.approximation) == ("exact", None)


@pytest.mark.parametrize(
    ("way", "rewrites", "permitted", "name"),
    [
        (SAVING, [UNTIED_OUTPUT], True, "near"),
        (SAVING, [UNTIED_OUTPUT], False, "exact"),
        (SAVING, [], True, "exact"),
        (WAY, [UNTIED_OUTPUT], True, "exact"),
    ],
)
def test_an_approximation_that_saves_weights(
    among: Among, way: Approximation, rewrites: Sequence[Rewrite], permitted: bool, name: str
) -> None:
    among(capped(rewrites), uncapped("near", way))
    found = plan(CAPPED, None, tokens if permitted else None)
    assert found.target.name == name
    assert (found.approximation is not None) == (name == "near")
    assert found.fits == ((FIT, FIT) if name == "near" else ())


def test_a_bound_is_the_targets_for_models_with_the_feature(among: Among) -> None:
    target = made("one", PLAIN, nmse=1e-6, coarse="Attention.qk_norm")
    among(target)
    assert plan(PLAIN).nmse == 1e-6
    without = random_model([layer(replace(ATTENTION, qk_norm=None))])
    assert target.bound(without.spec) == 0.0
    assert isinstance(plan(PLAIN), Plan)


def test_a_target_has_no_bound_unless_it_says_so() -> None:
    stated = {"name", "rewrites", "expresses", "limits", "lower", "lift"}
    bare = Target(**{name: getattr(LLAMA, name) for name in stated})
    assert (bare.nmse, bare.why, bare.approximations) == (0.0, "", ())
    assert bare.bound(random_model([layer()]).spec) == 0.0
    assert bare.coarse == "activation=gelu"


def test_what_is_lacking_is_told_once(among: Among) -> None:
    target = made("one", PLAIN, "this", "this", "that")
    target = replace(target, expresses=target.expresses - {"Attention.qk_norm=Norm"})
    assert target.lacks(PLAIN.spec) == ["q/k norm", "this", "that"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda spec: replace(spec, logit_scale=0.0), "has a logit_scale of 0, which llama.cpp reads as none"),
        (lambda spec: replace(spec, logit_softcap=0.0), "has a logit_softcap of 0"),
        (lambda spec: with_mixer(spec, clip=0.0), "has a clip of 0"),
        (lambda spec: with_mixer(spec, softcap=0.0), "has a softcap of 0"),
        (lambda spec: with_mixer(spec, rope=Rope(0.5, 8)), "has a RoPE base of 0.5; expected at least 1"),
    ],
)
def test_numbers_that_no_file_holds(change: Callable[[ModelSpec], ModelSpec], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        plan(replace(PLAIN, spec=change(PLAIN.spec)))


def with_mixer(spec: ModelSpec, **fields: Any) -> ModelSpec:
    """The spec with fields of the attention changed."""
    layers = (replace(one, mixer=replace(one.mixer, **fields)) for one in spec.layers)
    return replace(spec, layers=tuple(layers))
