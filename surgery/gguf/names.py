"""The roles of the tensors of a GGUF layer: the half that each belongs to, and those that give a half's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from surgery.algebra import Half
from surgery.architectures.base import Architecture, Role, stem

POST_NORM = "post_attention_norm"
ROUTER = "ffn_gate_inp"
DECAY = "ssm_a"
"""The decay rates, -exp(A_log)."""
LATENT = ("ffn_latent_up", "ffn_routed_up")
"""Projections out of the space that the experts compute in: where a layer has one, `ffn_down_exps` is not its output."""
LAYER_SCALE = "layer_output_scale.weight"
"""The number that multiplies the residual stream after a layer, in architectures where it does."""

QUERY_KEY = ("attn_q", "attn_k")
"""The query and key projections; a q/k norm (`attn_q_norm`) after them removes the effect of their scale."""
SCORES_FOLLOW = frozenset({
    "cohere2", "exaone", "falcon-h1", "gemma", "gemma2", "gemma3", "gpt-oss", "granite", "granite_swa", "granitemoe",
    "internlm2", "lfm2", "lfm2moe", "llama", "mistral3", "olmo2", "qwen2", "qwen2moe", "qwen3", "qwen35", "qwen35moe",
    "qwen3moe", "qwen3next", "seed_oss", "smollm3", "starcoder2", "step35",
})  # fmt: skip
"""Architectures in which only biases, norms with weights and RoPE are applied between these projections and the scores."""
ONE_MATRIX_A_TENSOR = frozenset({"llama", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe"})
"""Architectures whose tensors hold what one tensor of a checkpoint does, with the same numbers, or stacks of those of experts."""
CLAMP = "attention.clamp_kqv"
"""Key of the bound to which queries, keys and values are clamped."""


def role_in(architecture: Architecture, suffix: str, layer: Collection[str]) -> Role | None:
    """The role of a tensor (name without `blk.N.`) of a layer with the tensors `layer`; None if it is not known."""
    if not architecture.source and stem(suffix) == POST_NORM:
        # The name means a norm of the output, or of the feed-forward's input where the layer has no other norm for that.
        before_ffn = "attn_norm.weight" in layer and "ffn_norm.weight" not in layer
        return Role("ffn", "input norm") if before_ffn else Role("attention", "output norm")
    return architecture.role(suffix)


def roles_in(architecture: Architecture, layer: Collection[str]) -> dict[str, Role | None]:
    """The role of every tensor of a layer."""
    return {name: role_in(architecture, name, layer) for name in layer}


def half_of(role: Role | None) -> Half:
    """The half with which a tensor is kept: its own, or the attention for tensors of other branches."""
    return (role.half if role else None) or "attention"


def shared_norm(roles: Mapping[str, Role | None]) -> bool:
    """Whether the feed-forward has no norm of its own beside an attention that has one, so that both use that."""
    normed = {role.half for role in roles.values() if role and "norm" in role.part}
    return normed == {"attention"} and any(role and role.half == "ffn" for role in roles.values())


def outputs(half: Half, roles: Mapping[str, Role | None]) -> list[str]:
    """The tensors of half a layer, other branches kept with it included, to which its contributions are proportional.

    For each branch these are the norms of its output, or else its output projections.
    """
    latent = any(stem(name) in LATENT for name in roles)
    found: dict[str, dict[str, list[str]]] = {}
    for name, role in roles.items():
        if role is None or role.half not in (None, half) or role.part not in ("output", "output norm"):
            continue
        if role.part == "output" and not name.endswith((".weight", ".bias", ".lora_b")):
            continue  # a factor beside a matrix
        if latent and stem(name) == "ffn_down_exps":
            continue
        found.setdefault(role.branch, {}).setdefault(role.part, []).append(name)
    return [name for parts in found.values() for name in parts.get("output norm") or parts["output"]]


def queries_and_keys(names: Collection[str]) -> tuple[str, ...]:
    """The tensors to which the queries and keys in the attention scores are proportional; empty if there are none."""
    for ending in ("_norm", ""):
        wanted = {f"{projection}{ending}" for projection in QUERY_KEY}
        found = tuple(name for name in names if stem(name) in wanted and name.endswith((".weight", ".bias")))
        if found:
            return found if {stem(name) for name in found} == wanted else ()
    return ()
