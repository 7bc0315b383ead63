"""Families held to what they promise: small checkpoints of every variant, through llama.cpp, against the reference.

`FamilyTests` and `OracleTests` are classes for pytest. A package that brings a family of its own inherits them
(`docs/adding-a-family.md`):

    class TestMyFamily(FamilyTests):
        families = (FAMILY,)

`docs/conformance.md` is made from `planned`.
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
from gguf_tools.targets.registry import lift

WORST = 1e-9
"""Bound on a single position's error in an F32 file's logits, in parts of that position's own square."""
ROUNDED, ROUNDED_STATE = 1e-12, 1e-11
"""Bounds on a single position's error where the reference runs an F32 file's own weights: what is left is rounding folded
weights, norm weights with their offset and decay rates to float32. The second is for models with linear attention, whose
state hands on the error of the decay from position to position."""
ORACLE = 1e-11
"""Bound on the NMSE of the reference against transformers, which computes norms, routers' softmax and rope angles in
float32 whatever the type of the weights."""
TYPICAL = {"f16": 2e-5, "q8_0": 2e-2, "q4_k_m": 5e-2}
"""Bounds, for other types than F32, on the median position's NMSE against the file's own decoded weights.

llama.cpp rounds the inputs of each product to the partner of the weights' type: F16 to 11 bits, 8-bit blocks to a 127th of
the largest of 32 or 256 values. Some dozens of products lie between a token and its logits. The median, because the choice of
an expert is a jump: where rounding turns it round, that position's logits are other ones altogether.
"""
LENGTHS = (44, 17, 1)
"""Tokens of the prompts."""
GENERATED = 12
"""Tokens that each prompt's first half is continued by."""
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
        """What the variant must show."""
        return self.family.variants[self.variant]

    def write(self, folder: Path) -> Path:
        """Write the variant's checkpoint to the folder `source` in `folder`, and return its path."""
        if self.family.tiny is None:
            raise ValueError(f"the family {self.family.name} makes no small checkpoints")
        self.family.tiny(folder / "source", self.variant, SEED)
        return folder / "source"

    def request(self, source: Path, **changes: Any) -> Request:
        """The conversion that the variant is meant for, without --allow-approximate."""
        return Request(source=source, threads=1, text_only=self.expected.text_only, **changes)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a file's logits are from the reference's.

    `nmse` and `worst` are against the source's reference: over all positions, and the worst single one. `rounded` is the
    worst position of the reference run on the file's own decoded weights, against the source's, and `typical` the median
    position of llama.cpp against the former. `greedy`: llama.cpp's greedy continuations are the reference's. `pattern`
    names the kinds of layers (`ModelSpec.pattern`).
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
    """How the variant's checkpoint becomes a file; UnsupportedError where it is refused whatever is allowed."""
    return open_source(case.request(source, type="f32", allow_approximate=case.expected.approximate)).plan


def measure(request: Request, out: Path) -> Outcome:
    """Convert as asked to the file `out`, run it with llama.cpp, and compare the logits of every position."""
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
    """AssertionError, with all figures, where an F32 file is not the model: NMSE above `bound`, or another limit of this module
    passed."""
    rounded = ROUNDED_STATE if "D" in outcome.pattern.upper() else ROUNDED
    assert outcome.nmse <= bound, outcome
    assert outcome.worst <= WORST, outcome
    assert outcome.rounded <= rounded, outcome
    assert outcome.greedy, outcome


def random_prompts(vocab_size: int) -> list[list[int]]:
    """Sequences of random tokens, the same for every model of a vocabulary."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(0, vocab_size, length).tolist() for length in LENGTHS]


def nmse(got: Logits, want: Logits) -> float:
    """Squared error of the logits of all positions, divided by their square."""
    return float(_squares(got, want).sum() / _norms(want).sum())


def halved(prompt: Sequence[int]) -> Sequence[int]:
    """The first half of a prompt, which is what gets continued."""
    return prompt[: -(-len(prompt) // 2)]


def greedy_agrees(model: Model, prompts: Sequence[Sequence[int]], continued: Sequence[Sequence[int]]) -> bool:
    """Whether the reference would have continued the halved prompts as llama.cpp did."""
    whole = [[*halved(prompt), *tokens] for prompt, tokens in zip(prompts, continued, strict=True)]
    for tokens, prompt, logits in zip(whole, prompts, _reference(model, whole), strict=True):
        start = len(halved(prompt))
        if logits[start - 1 : -1].argmax(-1).tolist() != tokens[start:]:
            return False
    return True


def transformers_logits(folder: Path, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
    """Logits of every position, in float64, by the class of transformers that config.json's model_type names.

    A bias that the folder does not have is zero. Raises ValueError where other tensors of the class and the folder differ.
    """
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(folder)
    config._experts_implementation = config._attn_implementation = "eager"
    # The classes initialise their weights from the global state, which nobody else need see change.
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
            f"{folder}: {type(model).__name__} misses, or has no place for, {', '.join(sorted(map(str, wrong)))}"
        )
    with torch.inference_mode():
        return [model(torch.tensor([list(prompt)]), use_cache=False).logits[0].numpy() for prompt in prompts]


def _reference(model: Model, prompts: Sequence[Sequence[int]]) -> Logits:
    return Reference(model, torch.float64).logits(prompts)


def _squares(got: Logits, want: Logits) -> NDArray[np.float64]:
    """Each position's squared error."""
    if [a.shape for a in got] != [b.shape for b in want]:
        raise ValueError(f"logits of shapes {[a.shape for a in got]}, {[b.shape for b in want]} expected")
    a, b = (np.concatenate([np.asarray(part, np.float64) for part in parts]) for parts in (got, want))
    return np.asarray(np.square(a - b).sum(-1), np.float64)


def _norms(logits: Logits) -> NDArray[np.float64]:
    """Each position's squared logits."""
    return np.concatenate([np.square(np.asarray(part, np.float64)).sum(-1) for part in logits])


def _is_about(test: str, case: Case) -> bool:
    """Whether a test of this name has something to say of the variant: what is refused gives no logits, and not every variant
    has an oracle."""
    return {"test_oracle": case.expected.oracle, "test_logits": bool(case.expected.target)}.get(test, True)


class _VariantTests:
    """Tests with an argument `case`, one for each variant of `families`, which have to be registered."""

    families: ClassVar[Sequence[Family]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """pytest's hook: the variants that a test is about, and the types."""
        if "case" in metafunc.fixturenames:
            about = [case for case in cases(self.families) if _is_about(metafunc.function.__name__, case)]
            metafunc.parametrize("case", about, ids=str)
        if "type_name" in metafunc.fixturenames:
            metafunc.parametrize("type_name", ["f32", *TYPICAL])


class FamilyTests(_VariantTests):
    """What every family is held to, variant by variant: recognised, planned as expected, and exact in llama.cpp."""

    def test_recognised(self, case: Case, tmp_path: Path) -> None:
        """By its tensors alone: the config is empty in the end."""
        checkpoint = restore(open_checkpoint(case.write(tmp_path)), text_only=case.expected.text_only)
        assert recognise(checkpoint) is case.family
        assert recognise(replace(checkpoint, config={})) is case.family

    def test_plan(self, case: Case, tmp_path: Path) -> None:
        """The target, the rewrites, what is refused, and no note that is not expected."""
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
        """In F32 exactly the source's, else as exactly the file's own as llama.cpp's rounding of activations allows."""
        torch.set_num_threads(1)
        request = case.request(case.write(tmp_path), type=type_name, allow_approximate=case.expected.approximate)
        outcome = measure(request, tmp_path / "out.gguf")
        if type_name != "f32":
            assert outcome.typical <= TYPICAL[type_name], outcome
        elif case.expected.approximate:
            assert outcome.nmse <= case.expected.nmse, outcome
            assert outcome.typical <= EXACT, outcome
        else:
            hold_exact(outcome, case.expected.nmse)


class OracleTests(_VariantTests):
    """The reference against transformers, which has to be installed, for the variants whose class it has."""

    def test_oracle(self, case: Case, tmp_path: Path) -> None:
        """The reference computes what transformers' class does, which loads the folder as it is."""
        torch.set_num_threads(1)
        source = case.write(tmp_path)
        model = load_model(source)
        prompts = random_prompts(model.spec.vocab_size)
        assert nmse(_reference(model, prompts), transformers_logits(source, prompts)) <= ORACLE


def _refusal(request: Request) -> str:
    """What is said where the request is refused."""
    try:
        open_source(request)
    except UnsupportedError as error:
        return str(error)
    raise AssertionError("the checkpoint is not refused")
