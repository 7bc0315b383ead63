"""Which tensors are measured together, and on how many tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.evaluation.effort import FEWEST_TOKENS, WORK, grouped, most_runs, most_tokens

ROLES = ("attn_q.weight", "attn_k.weight", "ffn_down.weight")


def names(layers: int) -> list[str]:
    return ["token_embd.weight", *(f"blk.{n}.{role}" for n in range(layers) for role in ROLES)]


@given(layers=st.integers(0, 40), runs=st.integers(0, 200))
def test_groups_are_consecutive_layers_of_one_role_and_hold_every_tensor_once(layers: int, runs: int) -> None:
    groups = grouped(names(layers), runs)
    assert sorted(name for group in groups for name in group) == sorted(names(layers))
    for group in groups:
        numbers = [int(name.split(".")[1]) for name in group if name.startswith("blk.")]
        assert len({name.split(".", 2)[-1] for name in group}) == 1
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else len(group) == 1
        assert len(group) == 1 or (numbers[0] > 0 and numbers[-1] < layers - 1)


def test_groups_are_as_small_as_the_runs_allow() -> None:
    assert all(len(group) == 1 for group in grouped(names(30), 91))
    assert len(grouped(names(30), 90)) == 1 + 3 * (2 + 14)
    assert len(grouped(names(30), 40)) == 1 + 3 * (2 + 10)
    assert len(grouped(names(30), 0)) == 1 + 3 * 3
    assert grouped([], 10) == []


def test_a_role_that_some_layers_lack_is_grouped_over_the_others() -> None:
    found = grouped([f"blk.{n}.ssm_in.weight" for n in (1, 2, 4, 5, 7)], 3)
    assert found == [
        ("blk.1.ssm_in.weight",),
        ("blk.2.ssm_in.weight", "blk.4.ssm_in.weight", "blk.5.ssm_in.weight"),
        ("blk.7.ssm_in.weight",),
    ]


def test_a_large_model_is_measured_on_few_tokens_and_a_small_one_on_all() -> None:
    assert most_tokens(211, 135_000_000) == FEWEST_TOKENS
    assert most_tokens(57, 2_000_000) > 40_000
    assert most_runs(FEWEST_TOKENS, 135_000_000) == int(WORK / FEWEST_TOKENS / 135_000_000)
