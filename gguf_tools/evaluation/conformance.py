"""Conformance tests of families: a small checkpoint of each variant is converted, run by llama.cpp, and compared.

`FamilyTests` and `OracleTests` are pytest classes. A package with its own family inherits from them
(`docs/adding-a-family.md`):

    class TestMyFamily(FamilyTests):
        families = (FAMILY,)

`docs/conformance.md` is generated with `planned`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.conversion.plan import open_source, prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import UnsupportedError
from gguf_tools.families.base import EXACT, Expected, Family
from gguf_tools.families.registry import load_model, recognise
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from gguf_tools.targets.planner import Plan
from gguf_tools.targets.registry import lift, target_named
from gguf_tools.tensors.error import ratio

WORST = 1e-9
"""Bound on the NMSE of any single position's logits, for an F32 file."""
ROUNDED, ROUNDED_STATE = 1e-12, 1e-11
"""Bounds on a single position's error when the reference runs an F32 file's own weights. The remaining error is the rounding
of folded weights, norm weights with offset and decay rates to float32. The second is for models with linear attention or a
state space, whose state accumulates the error of the decay over positions."""
ORACLE = 1e-11
"""Bound on the NMSE of the reference against transformers, which computes norms, the router's softmax and RoPE angles in
float32 for weights of any type."""
TYPICAL = {"f16": 2e-5, "q8_0": 2e-2, "q4_k_m": 5e-2}
"""Bounds, for types other than F32, on the median position's NMSE against the file's own decoded weights.

llama.cpp rounds the activations of each matrix product to a type that depends on the weights' type: F16 (11 bits), or 8-bit
blocks (steps of 1/127 of the largest of 32 or 256 values), and a forward pass has dozens of products. The median is used
because expert selection is discontinuous: a position where rounding changes the selection has entirely different logits.
"""
LENGTHS = (44, 17, 1)
"""Lengths of the prompts, in tokens."""
GENERATED = 12
"""Number of tokens generated after the first half of each prompt."""
SEED = 3

Logits = Sequence[NDArray[np.floating]]


@dataclass(frozen=True)
class Case:
    """A variant of a family."""

    family: Family
    variant: str

    def __str__(self) -> str:
        return f"{self.family.name}-{self.variant}"

    @property
    def expected(self) -> Expected:
        """The expected plan and notes of the variant."""
        return self.family.variants[self.variant]

    def write(self, folder: Path) -> Path:
        """Write the variant's checkpoint to the folder `source` in `folder`, and return its path."""
        if self.family.tiny is None:
            raise ValueError(
                f"the family {self.family.name} has no `tiny`; expected a function that writes a small checkpoint"
            )
        self.family.tiny(folder / "source", self.variant, SEED)
        return folder / "source"

    def request(self, source: Path, **changes: Any) -> Request:
        """The request that converts the variant, without --allow-approximate."""
        return Request(source=source, threads=1, text_only=self.expected.text_only, **changes)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Errors (NMSE) of a file's logits, run by llama.cpp.

    `nmse` and `worst` compare llama.cpp with the reference on the source's weights: over all positions, and the worst single
    position. `rounded` compares the reference on the file's decoded weights with the reference on the source's (worst
    position), and `typical` llama.cpp with the reference on the file's decoded weights (median position). `greedy`: whether
    llama.cpp's greedy continuations equal the reference's. `pattern` is `ModelSpec.pattern`.
    """

    nmse: float
    worst: float
    rounded: float
    typical: float
    greedy: bool
    pattern: str


def cases(families: Sequence[Family]) -> list[Case]:
    """Every variant of these families."""
    return [Case(family, variant) for family in families for variant in family.variants]


def planned(case: Case, source: Path) -> Plan:
    """The plan for the variant's checkpoint. Raises UnsupportedError if it is refused even with approximations permitted."""
    return open_source(case.request(source, type="f32", allow_approximate=case.expected.approximate)).plan


def measure(request: Request, out: Path) -> Outcome:
    """Convert to the file `out`, run it with llama.cpp, and compare the logits of every position with the reference's."""
    execute(prepare(request), out, force=True)
    model = load_model(request.source)
    prompts = random_prompts(model.spec.vocab_size)
    with Runtime(out, RuntimeOptions(threads=1)) as runtime:
        logits = runtime.logits(prompts)
        continued = [result.tokens for result in runtime.greedy([halved(prompt) for prompt in prompts], GENERATED)]
    wanted, own = _reference(model, prompts), _reference(lift(open_gguf(out)), prompts)
    return Outcome(
        nmse=nmse(logits, wanted),
        worst=float(np.max(_squares(logits, wanted) / _norms(wanted))),
        rounded=float(np.max(_squares(own, wanted) / _norms(wanted))),
        typical=float(np.median(_squares(logits, own) / _norms(own).mean())),
        greedy=greedy_agrees(model, prompts, continued),
        pattern=model.spec.pattern,
    )


def hold_exact(outcome: Outcome, bound: float = EXACT) -> None:
    """Assert that an F32 file is exact: NMSE at most `bound`, and the other bounds of this module; the error has all figures.

    Where llama.cpp's arithmetic needs a wider bound, that on a single position widens with it.
    """
    rounded = ROUNDED_STATE if set("DHM") & set(outcome.pattern.upper()) else ROUNDED
    assert outcome.nmse <= bound, outcome
    assert outcome.worst <= WORST * max(1.0, bound / EXACT), outcome
    assert outcome.rounded <= max(rounded, bound if bound > EXACT else 0.0), outcome
    assert outcome.greedy, outcome


def random_prompts(vocab_size: int) -> list[list[int]]:
    """Sequences of random tokens, of the lengths `LENGTHS`, that depend on the vocabulary size only."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(0, vocab_size, length).tolist() for length in LENGTHS]


def nmse(got: Logits, want: Logits) -> float:
    """Squared error of the logits over all positions, divided by the sum of the squares of `want`."""
    return ratio(float(_squares(got, want).sum()), float(_norms(want).sum()))


def halved(prompt: Sequence[int]) -> Sequence[int]:
    """The first half of a prompt, after which tokens are generated."""
    return prompt[: -(-len(prompt) // 2)]


def greedy_agrees(model: Model, prompts: Sequence[Sequence[int]], continued: Sequence[Sequence[int]]) -> bool:
    """Whether the reference's greedy continuations of the halved prompts equal llama.cpp's (`continued`)."""
    whole = [[*halved(prompt), *tokens] for prompt, tokens in zip(prompts, continued, strict=True)]
    for tokens, prompt, logits in zip(whole, prompts, _reference(model, whole), strict=True):
        start = len(halved(prompt))
        if logits[start - 1 : -1].argmax(-1).tolist() != tokens[start:]:
            return False
    return True


def transformers_logits(folder: Path, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
    """Logits of every position in float64, by the transformers class for config.json's model_type.

    A bias that the folder lacks is zero. Raises ValueError if any other tensors of the class and the folder differ.
    """
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(folder)
    config._experts_implementation = config._attn_implementation = "eager"
    # The classes initialise their weights with the global random state, which must not change for other code.
    with torch.random.fork_rng():
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float64, output_loading_info=True
        )
    model, report = loaded
    for name in (name for name in report["missing_keys"] if name.endswith(".bias")):
        model.get_parameter(name).data.zero_()
    wrong = {name for name in report["missing_keys"] if not name.endswith(".bias")}
    wrong = wrong.union(report["unexpected_keys"], report["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"{folder}: {type(model).__name__} and the folder differ in the tensors {', '.join(sorted(map(str, wrong)))}"
        )
    with torch.inference_mode():
        return [model(torch.tensor([list(prompt)]), use_cache=False).logits[0].numpy() for prompt in prompts]


def _reference(model: Model, prompts: Sequence[Sequence[int]]) -> Logits:
    return Reference(model, torch.float64).logits(prompts)


def _squares(got: Logits, want: Logits) -> NDArray[np.float64]:
    """Squared error of each position."""
    if [a.shape for a in got] != [b.shape for b in want]:
        raise ValueError(f"logits have shapes {[a.shape for a in got]}; expected {[b.shape for b in want]}")
    a, b = (np.concatenate([np.asarray(part, np.float64) for part in parts]) for parts in (got, want))
    return np.asarray(np.square(a - b).sum(-1), np.float64)


def _norms(logits: Logits) -> NDArray[np.float64]:
    """Sum of squared logits of each position."""
    return np.concatenate([np.square(np.asarray(part, np.float64)).sum(-1) for part in logits])


def _is_about(test: str, case: Case) -> bool:
    """Whether the test of this name applies to the variant: refused variants give no logits, and some have no oracle."""
    return {"test_oracle": case.expected.oracle, "test_logits": bool(case.expected.target)}.get(test, True)


def _with_types(about: Sequence[Case]) -> list[tuple[Case, str]]:
    """Each variant in F32; the first one of each target in all other types too, and the rest in one of them by turns."""
    pairs, had = list[tuple[Case, str]](), set[str | None]()
    for n, case in enumerate(about):
        others = list(TYPICAL)
        chosen = [others[n % len(others)]] if case.expected.target in had else others
        had.add(case.expected.target)
        pairs += [(case, name) for name in ("f32", *chosen)]
    return pairs


class _VariantTests:
    """Base of tests with an argument `case`, one per variant of `families`, which must be registered."""

    families: ClassVar[Sequence[Family]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """pytest's hook: parametrizes a test with the variants that apply, and where it asks for it with types of weights."""
        if "case" not in metafunc.fixturenames:
            return
        about = [case for case in cases(self.families) if _is_about(metafunc.function.__name__, case)]
        if "type_name" in metafunc.fixturenames:
            metafunc.parametrize(("case", "type_name"), _with_types(about), ids=str)
        else:
            metafunc.parametrize("case", about, ids=str)


class FamilyTests(_VariantTests):
    """Tests of each variant of a family: it is recognised, planned as expected, and exact in llama.cpp."""

    def test_recognised(self, case: Case, tmp_path: Path) -> None:
        """The family is recognised by its tensors alone, with an empty config, unless others have the same tensors."""
        checkpoint = restore(open_checkpoint(case.write(tmp_path)), text_only=case.expected.text_only)
        assert recognise(checkpoint) is case.family
        if not case.family.by_type:
            assert recognise(replace(checkpoint, config={})) is case.family

    def test_plan(self, case: Case, tmp_path: Path) -> None:
        """The target, the rewrites, the refusals and the notes are the expected ones."""
        source, expected = case.write(tmp_path), case.expected
        if expected.refused:
            error = _refusal(case.request(source, type="f32"))
            assert expected.refused in error, error
            assert "\n" not in error
        if not expected.target:
            error = _refusal(case.request(source, type="f32", allow_approximate=True))
            assert expected.refused in error, error
            return
        plan = planned(case, source)
        assert plan.target.name == expected.target
        assert tuple(rewrite.name for rewrite in plan.rewrites) == expected.rewrites
        assert (plan.approximation is not None) == expected.approximate
        notes = plan.model.notes
        assert len(notes) == len(expected.notes), notes
        assert all(any(part in note for note in notes) for part in expected.notes), notes

    def test_logits(self, case: Case, type_name: str, tmp_path: Path) -> None:
        """F32 logits equal the source's; other types equal those of the file's weights up to rounding of activations."""
        torch.set_num_threads(1)
        source = case.write(tmp_path)
        request = case.request(source, type=type_name, allow_approximate=case.expected.approximate)
        outcome = measure(request, tmp_path / "out.gguf")
        if type_name != "f32":
            assert outcome.typical <= TYPICAL[type_name], outcome
        elif case.expected.approximate:
            assert outcome.nmse <= case.expected.nmse, outcome
            assert outcome.typical <= EXACT, outcome
        else:
            bound = target_named(case.expected.target).bound(load_model(source).spec)
            hold_exact(outcome, max(case.expected.nmse, bound))


class OracleTests(_VariantTests):
    """Compares the reference with transformers, which must be installed, for the variants that it has a class for."""

    def test_oracle(self, case: Case, tmp_path: Path) -> None:
        """The reference's logits equal those of the transformers class, which loads the same folder."""
        torch.set_num_threads(1)
        source = case.write(tmp_path)
        model = load_model(source)
        prompts = random_prompts(model.spec.vocab_size)
        assert nmse(_reference(model, prompts), transformers_logits(source, prompts)) <= ORACLE


def _refusal(request: Request) -> str:
    """The error message with which the request is refused."""
    try:
        open_source(request)
    except UnsupportedError as error:
        return str(error)
    raise AssertionError("the checkpoint is not refused")
