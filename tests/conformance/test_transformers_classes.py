"""The heart: checkpoints of transformers' own classes, by transformers, by this project's reference, by llama.cpp from the
GGUF, and by the reference again from that GGUF; the logits of every position agree.

transformers runs in true float64 here (see `in_float64`), so the reference has to agree with it to the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig, PreTrainedModel

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.families.registry import load_model
from gguf_tools.model.spec import Model
from tests.oracle import (
    PROMPTS,
    Logits,
    convert,
    greedy_agrees,
    lifted_reference,
    llama,
    nmse,
    reference,
)
from tests.tiny_models import (
    Tensors,
    change_config,
    change_tensors,
    dense,
    fuse_experts,
    hybrid,
    in_float64,
    logits,
    moe,
    network,
    save,
)

LINEAR, FULL = "linear_attention", "full_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1e6}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
SAME_ARITHMETIC = 1e-24
"""Two float64 implementations of the same formulas."""
FLOAT32 = 1e-10
"""llama.cpp computes in float32; 1e-12 is what is usual, and the product's own bar is 1e-9."""
ROUNDED_ONCE = 1e-11
"""The GGUF's numbers are the source's, rounded to float32 once where the target adds 1 to a norm's weights or takes an
exponential (half a unit in the last place, 6e-8, squared, and what the layers make of it)."""

NetworkEdit = Callable[[PreTrainedModel], None]
FolderEdit = Callable[[Path], None]


def _unchanged(_: object) -> None:
    return


def _both(*edits: FolderEdit) -> FolderEdit:
    def edit(folder: Path) -> None:
        for part in edits:
            part(folder)

    return edit


@dataclass(frozen=True)
class Case:
    """A model, and how its checkpoint differs from what save_pretrained writes.

    `network_edit` puts transformers' model into the state that `folder_edit` makes the checkpoint describe.
    """

    make: Callable[..., PretrainedConfig]
    changes: dict[str, Any] = field(default_factory=dict)
    target: str = ""
    rewrites: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    shard: str | int = "5GB"
    network_edit: NetworkEdit = _unchanged
    folder_edit: FolderEdit = _unchanged
    notes: tuple[str, ...] = ()

    @property
    def rounds(self) -> bool:
        """Whether the target stores a number that float32 does not hold exactly."""
        return self.target == "qwen3next" or bool(
            {"attention_factor", "mscale"} & self.changes.get("rope_parameters", {}).keys()
        )


def _parameters(made: PreTrainedModel, suffix: str) -> list[torch.Tensor]:
    found = [parameter.data for name, parameter in made.named_parameters() if name.endswith(suffix)]
    assert found, suffix
    return found


def _gates(weight: torch.Tensor, head_dim: int = 16) -> torch.Tensor:
    """The gate's rows of a query projection (a view): in each head they follow the query's."""
    return weight.view(-1, 2, head_dim, *weight.shape[1:])[:, 1]


def _half_open_attention(made: PreTrainedModel) -> None:
    """Gates of one half and an output projection twice as large: no gate at all."""
    for suffix in ("q_proj.weight", *(["q_proj.bias"] if made.config.attention_bias else [])):
        for parameter in _parameters(made, suffix):
            _gates(parameter).zero_()
    for parameter in _parameters(made, "o_proj.weight"):
        parameter.mul_(2.0)


def _without_attention_gate(folder: Path) -> None:
    """Query projections without the gate's rows, and output projections as they are without one."""

    def change(found: Tensors) -> None:
        for name, tensor in found.items():
            if name.endswith(("q_proj.weight", "q_proj.bias")):
                found[name] = tensor.view(-1, 2, 16, *tensor.shape[1:])[:, 0].reshape(-1, *tensor.shape[1:])

    change_tensors(folder, change)


def _half_open_shared(made: PreTrainedModel) -> None:
    for parameter in _parameters(made, "shared_expert_gate.weight"):
        parameter.zero_()
    for parameter in _parameters(made, "shared_expert.down_proj.weight"):
        parameter.mul_(2.0)


def _halve(found: Tensors, suffix: str) -> None:
    for name in found:
        if name.endswith(suffix):
            found[name] = found[name] / 2


def _without(*suffixes: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {name: tensor for name, tensor in found.items() if not any(part in name for part in suffixes)}


def _ungated_attention(folder: Path) -> None:
    _without_attention_gate(folder)
    change_tensors(folder, lambda found: _halve(found, "o_proj.weight"))


def _ungated_shared(folder: Path) -> None:
    change_tensors(folder, _without("shared_expert_gate"))
    change_tensors(folder, lambda found: _halve(found, "shared_expert.down_proj.weight"))


def _silent_shared(made: PreTrainedModel) -> None:
    for parameter in _parameters(made, "shared_expert.down_proj.weight"):
        parameter.zero_()


def _without_shared(folder: Path) -> None:
    change_tensors(folder, _without("shared_expert"))


def _all_three(made: PreTrainedModel) -> None:
    _half_open_attention(made)
    _silent_shared(made)


def _none_of_three(folder: Path) -> None:
    _ungated_attention(folder)
    _without_shared(folder)


def _silent_output_bias(made: PreTrainedModel) -> None:
    for parameter in _parameters(made, "o_proj.bias"):
        parameter.zero_()


def _without_output_bias(folder: Path) -> None:
    change_tensors(folder, _without("o_proj.bias"))


def _fused(folder: Path) -> None:
    change_tensors(folder, fuse_experts)


def _claims_the_hybrid(folder: Path) -> None:
    """Plain Qwen3-MoE tensors under the config of a hybrid."""
    change_config(
        folder,
        {
            "model_type": "qwen3_next",
            "architectures": ["Qwen3NextForCausalLM"],
            "layer_types": [LINEAR, FULL, LINEAR],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "shared_expert_intermediate_size": 24,
            "full_attention_interval": 2,
            "partial_rotary_factor": 0.25,
        },
    )


GATE, SHARED_GATE, EMPTY = "zero attention gate", "zero shared-expert gate", "empty shared expert"


def _half_open_biased(made: PreTrainedModel) -> None:
    _half_open_attention(made)
    _silent_output_bias(made)


CASES = {
    # Qwen3
    "dense": Case(dense, target="qwen3"),
    "dense tied, 8 heads of 32 share one": Case(
        dense,
        {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True},
        "qwen3",
    ),
    "dense, 3 heads each its own": Case(dense, {"num_attention_heads": 3, "num_key_value_heads": 3}, "qwen3"),
    "dense of odd sizes": Case(
        dense, {"hidden_size": 40, "head_dim": 10, "num_key_value_heads": 1, "intermediate_size": 33}, "qwen3"
    ),
    "dense, one layer, bf16 in shards": Case(
        dense, {"num_hidden_layers": 1}, "qwen3", dtype=torch.bfloat16, shard="20KB"
    ),
    "dense, biases on q, k and v": Case(
        dense,
        {"attention_bias": True},
        "qwen3",
        network_edit=_silent_output_bias,
        folder_edit=_without_output_bias,
    ),
    "dense, YaRN": Case(dense, {"rope_parameters": YARN}, "qwen3"),
    "dense, YaRN with an attention factor": Case(
        dense, {"rope_parameters": {**YARN, "attention_factor": 1.3}}, "qwen3"
    ),
    "dense, YaRN with mscale": Case(
        dense, {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}}, "qwen3"
    ),
    "dense, linear rope scaling": Case(
        dense, {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e4}}, "qwen3"
    ),
    # Qwen3-MoE
    "moe": Case(moe, target="qwen3moe"),
    "moe top-1 of 4": Case(moe, {"num_experts_per_tok": 1}, "qwen3moe"),
    "moe, all experts, fused": Case(moe, {"num_experts_per_tok": 4}, "qwen3moe", folder_edit=_fused),
    "moe tied, top-3 of 7, bf16 in shards": Case(
        moe,
        {"tie_word_embeddings": True, "num_experts": 7, "num_experts_per_tok": 3, "num_attention_heads": 6},
        "qwen3moe",
        dtype=torch.bfloat16,
        shard="30KB",
    ),
    "moe, YaRN, biases on q, k and v, fused": Case(
        moe,
        {"rope_parameters": YARN, "attention_bias": True},
        "qwen3moe",
        network_edit=_silent_output_bias,
        folder_edit=_both(_without_output_bias, _fused),
    ),
    "moe under a config that claims the hybrid": Case(
        moe,
        {"num_experts_per_tok": 1, "tie_word_embeddings": True},
        "qwen3moe",
        folder_edit=_claims_the_hybrid,
        notes=(
            "config.json states a shared expert, but the tensors have none",
            "config.json says layer 0 is linear_attention",
            "config.json says layer 2 is linear_attention",
            "config.json says partial_rotary_factor 0.25",
        ),
    ),
    # Qwen3-Next
    "hybrid": Case(hybrid, target="qwen3next"),
    "hybrid as published: 1:1, top-1 of 2, whole heads turned, YaRN, tied, bf16, fused": Case(
        hybrid,
        {
            "layer_types": [LINEAR, FULL, LINEAR, FULL],
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "rope_parameters": {**YARN, "partial_rotary_factor": 1.0},
        },
        "qwen3next",
        dtype=torch.bfloat16,
        network_edit=_silent_output_bias,
        folder_edit=_both(_without_output_bias, _fused),
    ),
    "hybrid, irregular layers": Case(hybrid, {"layer_types": [FULL, LINEAR, LINEAR, FULL, FULL, LINEAR]}, "qwen3next"),
    "hybrid, as many value heads as key heads": Case(hybrid, {"linear_num_value_heads": 2}, "qwen3next"),
    "hybrid, 3 value heads a key head, kernel 3": Case(
        hybrid,
        {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_conv_kernel_dim": 3},
        "qwen3next",
        shard="30KB",
    ),
    "hybrid, one key head, half of each head turned, linear rope scaling": Case(
        hybrid,
        {
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 4,
            "rope_parameters": {**DEFAULT, "rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
        },
        "qwen3next",
    ),
    "hybrid without an attention gate": Case(
        hybrid, {}, "qwen3next", (GATE,), network_edit=_half_open_attention, folder_edit=_ungated_attention
    ),
    "hybrid without an attention gate, with biases": Case(
        hybrid,
        {"attention_bias": True},
        "qwen3next",
        (GATE,),
        network_edit=_half_open_biased,
        folder_edit=_both(_ungated_attention, _without_output_bias),
    ),
    "hybrid without a shared-expert gate": Case(
        hybrid, {}, "qwen3next", (SHARED_GATE,), network_edit=_half_open_shared, folder_edit=_ungated_shared
    ),
    "hybrid without a shared expert": Case(
        hybrid,
        {},
        "qwen3next",
        (EMPTY,),
        network_edit=_silent_shared,
        folder_edit=_without_shared,
        notes=("config.json states a shared expert, but the tensors have none",),
    ),
    "hybrid without gates and without a shared expert, bf16": Case(
        hybrid,
        {"tie_word_embeddings": True},
        "qwen3next",
        (GATE, EMPTY),
        dtype=torch.bfloat16,
        network_edit=_all_three,
        folder_edit=_none_of_three,
        notes=("config.json states a shared expert, but the tensors have none",),
    ),
}


@dataclass(frozen=True, repr=False)
class Run:
    """A case, run through everything."""

    case: Case
    folder: Path
    model: Model
    transformers: Logits
    ours: Logits
    llama: Logits
    greedy: list[tuple[int, ...]]
    lifted: Logits
    gguf: Path


@pytest.fixture(scope="module", params=CASES, ids=lambda name: str(name))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything computed once for the tests of one case."""
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("conformance")
    with in_float64():
        made = network(case.make(**case.changes), seed=7, dtype=case.dtype)
        case.network_edit(made)
        save(made, folder, max_shard_size=case.shard)
        theirs = logits(made, PROMPTS)
    case.folder_edit(folder)
    out = convert(folder, folder / "out.gguf")
    computed, greedy = llama(out)
    model = load_model(folder)
    return Run(
        case,
        folder,
        model,
        [values.numpy() for values in theirs],
        reference(model),
        computed,
        greedy,
        lifted_reference(out),
        out,
    )


def test_reference_is_what_transformers_computes(run: Run) -> None:
    assert nmse(run.ours, run.transformers) <= SAME_ARITHMETIC


def test_llama_cpp_is_what_the_reference_computes(run: Run) -> None:
    assert nmse(run.llama, run.ours) <= FLOAT32


def test_greedy_text_is_the_same(run: Run) -> None:
    assert all(len(tokens) == 12 for tokens in run.greedy)
    assert greedy_agrees(run.model, run.greedy)


def test_lifted_file_computes_the_same(run: Run) -> None:
    assert nmse(run.lifted, run.ours) <= (ROUNDED_ONCE if run.case.rounds else SAME_ARITHMETIC)


def test_plan_is_the_one_expected(run: Run) -> None:
    conversion = prepare(Request(source=run.folder, type="f32"))
    assert conversion.plan.target.name == run.case.target
    assert tuple(rewrite.name for rewrite in conversion.plan.rewrites) == run.case.rewrites
    for note in run.case.notes:
        assert any(note in found for found in conversion.notes), conversion.notes
    if not run.case.notes:
        assert run.model.notes == ()
