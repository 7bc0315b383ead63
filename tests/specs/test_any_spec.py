"""Any spec that the language holds is converted within its bound or refused by name: a sample, and what the sample rests on.

`make specs` checks many more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, fields, make_dataclass, replace

import pytest

from gguf_tools.model import spec as language
from gguf_tools.model.features import option, size
from gguf_tools.model.spec import Attention, GatedMLP, LayerSpec, ModelSpec, Norm
from gguf_tools.reference.decoder import EXPRESSES as REFERENCE
from gguf_tools.targets import planner
from gguf_tools.targets.registry import all_targets
from tests.specs.check import Checker
from tests.specs.draw import SIZES, changed, draw, moves, nonsense, plain, repaired

SAMPLE = 30


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checker]:
    with Checker(tmp_path_factory.mktemp("specs")) as made:
        yield made


def test_a_sample_is_converted_or_refused(checker: Checker) -> None:
    found = [checker.seed(seed) for seed in range(SAMPLE)]
    assert not [str(one) for one in found if one.wrong]
    # Most are converted, by many targets and rewrites; else the sample would show little.
    assert sum(bool(one.target) for one in found) > SAMPLE / 2
    assert len({one.target for one in found}) > 5
    assert len({rewrite for one in found for rewrite in one.rewrites}) > 5


def test_granite_without_rope_in_any_layer(checker: Checker) -> None:
    whole = plain(ModelSpec)
    found = checker.spec(replace(whole, layers=tuple(changed(la, ("mixer", "rope"), None) for la in whole.layers)))
    assert (found.target, found.wrong) == ("granite", "")


def test_gemma3_hosts_as_many_layers_as_change_its_attention_scale(checker: Checker) -> None:
    """62 layers, with which the graph divides scores by the root of hidden / heads, after both have grown."""
    layer: LayerSpec = plain(LayerSpec)
    mixer = replace(plain(Attention), qk_norm=plain(Norm))
    layer = replace(layer, mixer=mixer, feed_forward=GatedMLP(32, activation="relu"))
    found = checker.spec(replace(plain(ModelSpec), layers=(layer,) * 62, logit_softcap=2.0))
    assert (found.target, found.wrong) == ("gemma3", "")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("mixer", "softcap"), 0.5),
        (("mixer", "clip"), 0.5),
        (("mixer", "window"), 8),
        (("mixer", "rope", "backwards"), True),
        (("input_scale",), 0.5),
        (("parallel",), True),
    ],
)
def test_a_feature_that_a_target_declares_and_loses_is_found(
    path: tuple[str, ...], value: object, checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features without tensors of their own: nothing but the logits shows that they are lost."""
    llama = next(target for target in all_targets() if target.name == "llama")
    lying = replace(llama, expresses=REFERENCE, rewrites=(llama.rewrites[-2],))
    monkeypatch.setattr(planner, "all_targets", lambda: (lying,))
    monkeypatch.setattr(planner, "COMMON_REWRITES", ())
    whole: ModelSpec = plain(ModelSpec)
    assert not checker.spec(whole).wrong
    odd = replace(whole, layers=tuple(changed(layer, path, value) for layer in whole.layers))
    assert "llama: NMSE" in checker.spec(odd).wrong


def test_everything_that_the_reference_computes_is_drawn() -> None:
    """Changes one after another, from each spec that has something new, reach every feature that the reference declares."""
    first = replace(plain(ModelSpec), layers=(plain(LayerSpec),))
    reached, left = {feature.key for feature in first.features}, [first]
    while left:
        spec = left.pop()
        found = [changed(spec, path, value) for path, value in moves(spec)]
        found += [replace(spec, layers=(changed(spec.layers[0], *move),)) for move in moves(spec.layers[0])]
        for made in map(repaired, found):
            new = {feature.key for feature in made.features} - reached
            if new and not nonsense(made):
                reached |= new
                left.append(made)
    assert sorted(REFERENCE - reached) == []


def test_a_new_field_is_drawn_without_being_named() -> None:
    newer = make_dataclass(
        "Attention",
        [
            ("surprise", float, option("a surprise", 1.0)),
            ("switch", bool, field(default=False)),
        ],
        bases=(Attention,),
        frozen=True,
        kw_only=True,
    )
    newer.__module__ = __name__
    old = plain(Attention)
    made = newer(**{entry.name: getattr(old, entry.name) for entry in fields(Attention)})
    found = moves(made)
    assert {(path, value) for path, value in found if path[-1] in ("surprise", "switch")} == {
        (("surprise",), 0.5),
        (("surprise",), 2.0),
        (("switch",), True),
    }


def test_a_new_size_asks_for_values() -> None:
    newer = make_dataclass("Norm", [("order", int, size())], bases=(Norm,), frozen=True, kw_only=True)
    newer.__module__ = __name__
    with pytest.raises(KeyError, match=r"no values for the size Norm\.order; add some to SIZES"):
        plain(newer)


def test_sizes_are_of_fields_that_there_are() -> None:
    for key in SIZES:
        kind, _, name = key.partition(".")
        owner = getattr(language, kind, None) or getattr(__import__("gguf_tools.model.rope", fromlist=["x"]), kind)
        assert name in {entry.name for entry in fields(owner)}, key


def test_a_seed_gives_one_spec() -> None:
    start: ModelSpec = plain(ModelSpec)
    drawn = [draw(seed, start, lambda _: True) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert not nonsense(drawn[0])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kv_heads": 3}, "groups"),
        ({"norm_per_head": True}, "q/k norm that there is not"),
        ({"qk_norm": Norm(1e-6), "norm_whole": True, "norm_gain": True}, "over all heads and of each"),
    ],
)
def test_nonsense_is_not_drawn(change: dict[str, object], why: str) -> None:
    layer: LayerSpec = plain(LayerSpec)
    odd = replace(layer, mixer=replace(layer.mixer, **change))  # type: ignore[arg-type]
    assert why in nonsense(replace(plain(ModelSpec), layers=(odd,)))
