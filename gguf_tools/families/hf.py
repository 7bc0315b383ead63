"""Attention, feed-forward and embeddings in the layout of Hugging Face transformers, shared by the families that use it.

Each function takes its tensors from the inventory and returns a spec together with the tensors by role. Sizes come from
the tensors' shapes. The config is read only for what shapes cannot tell; where it contradicts them, a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.hf_rope import rope
from gguf_tools.families.reading import Config, Inventory, layer_number
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import (
    MLP,
    Activation,
    Attention,
    GatedMLP,
    LayerTensors,
    MoE,
    Norm,
    Router,
    SharedExpert,
)
from gguf_tools.sources.tying import EMBEDDING, OUTPUT
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped, stack, take_rows


def attention(
    inventory: Inventory,
    config: ClassConfig,
    prefix: str,
    hidden: int,
    qk_norm: Norm | None,
    window: int | None = None,
    *,
    whole_rope: bool = False,
    whole_norm: bool = False,
    rope_of: Callable[[int], Rope] | None = None,
    output: str = "o_proj",
) -> tuple[Attention, LayerTensors]:
    """`self_attn` with separate projections: q (heads * head_dim, hidden), k and v (kv_heads * head_dim, hidden).

    If q_proj has twice as many rows as o_proj has columns, it holds an output gate too: in each head the gate's rows
    follow the query's (Qwen3-Next). `qk_norm` is the norm of q_norm and k_norm, if those tensors exist. `window` is the
    layer's sliding window in tokens (`ClassConfig.window`); `whole_rope` is passed to `rope`. `output` is the name of the output
    projection.
    """
    wide = inventory.shape(f"{prefix}{output}.weight")[1]
    normed = f"{prefix}q_norm.weight" in inventory
    heads_stated = config.integer("num_attention_heads")
    k_rows = inventory.shape(f"{prefix}k_proj.weight")[0]
    head_dim = (
        inventory.shape(f"{prefix}q_norm.weight", 1)[0]
        if normed and not whole_norm
        else config.head_dim(wide, k_rows, hidden)
    )
    if normed and not whole_norm and head_dim == wide and heads_stated > 1:
        raise UnsupportedError(
            f"{inventory.path}: {prefix}q_norm.weight has {wide} entries, one norm across all {heads_stated} heads "
            "(as in OLMo), which is not supported; only per-head norms are"
        )
    if wide % head_dim or k_rows % head_dim or (wide // head_dim) % max(1, k_rows // head_dim):
        raise CheckpointError(
            f"{inventory.path}: {prefix}{output}.weight has {wide} columns and k_proj {k_rows} rows, which do not divide "
            f"into heads of {head_dim} in equal groups; check head_dim in config.json"
        )
    heads, kv_heads = wide // head_dim, k_rows // head_dim
    config.expect("num_attention_heads", heads)
    config.expect("num_key_value_heads", kv_heads)
    config.expect("head_dim", head_dim)
    q_rows = inventory.shape(f"{prefix}q_proj.weight")[0]
    gated = q_rows == 2 * wide
    part: LayerTensors = {
        "attn.q": inventory.take(f"{prefix}q_proj.weight", q_rows if gated else wide, hidden),
        "attn.k": inventory.take(f"{prefix}k_proj.weight", k_rows, hidden),
        "attn.v": inventory.take(f"{prefix}v_proj.weight", k_rows, hidden),
        "attn.o": inventory.take(f"{prefix}{output}.weight", hidden, wide),
    }
    biases = {name: f"{prefix}{output if name == 'o' else f'{name}_proj'}.bias" for name in "qkvo"}
    bias = {name for name, stored in biases.items() if stored in inventory}
    for name in bias:
        part[f"attn.{name}_bias"] = inventory.take(biases[name], part[f"attn.{name}"].shape[0])
    if gated:
        for name in ("q", "q_bias") if "q" in bias else ("q",):
            both = part[f"attn.{name}"]
            part[f"attn.{name}"] = take_rows(both, heads, 0, head_dim)
            part[f"attn.{name.replace('q', 'gate')}"] = take_rows(both, heads, head_dim, head_dim)
    if normed:
        part["attn.q_norm"] = inventory.take(f"{prefix}q_norm.weight", wide if whole_norm else head_dim)
        part["attn.k_norm"] = inventory.take(f"{prefix}k_norm.weight", k_rows if whole_norm else head_dim)
    spec = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope_of(head_dim) if rope_of else rope(config, head_dim, whole=whole_rope),
        bias=frozenset(bias),
        qk_norm=qk_norm if normed else None,
        norm_whole=normed and whole_norm,
        gated=gated,
        window=window,
    )
    return spec, part


def norm(inventory: Inventory, name: str, spec: Norm | None, role: str, size: int) -> LayerTensors:
    """The weight and the bias that a norm of `size` entries has, under `name`; nothing where there is no norm."""
    part: LayerTensors = {}
    if spec and spec.weighted:
        part[role] = inventory.take(f"{name}.weight", size)
    if spec and spec.bias:
        part[f"{role}_bias"] = inventory.take(f"{name}.bias", size)
    return part


def expect_kind(config: Config, prefix: str, actual: str) -> None:
    """Add a note if layer_types in the config differs from the actual type of the layer whose tensors have `prefix`."""
    kinds, n = config.values.get("layer_types"), layer_number(prefix)
    if isinstance(kinds, list) and n < len(kinds) and kinds[n] != actual:
        config.note(f"config.json says layer {n} is {kinds[n]}, but its tensors are {actual}")


GATED: Mapping[str, str] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
"""Role → the name of the projection in a gated feed-forward."""


def gated_mlp(
    inventory: Inventory,
    prefix: str,
    hidden: int,
    role: str = "ffn",
    activation: Activation = "silu",
    names: Mapping[str, str] = GATED,
) -> tuple[GatedMLP, LayerTensors]:
    """Gate and up, (width, hidden), and down, (hidden, width), under `prefix`, with the biases that are there."""
    gate = inventory.take(f"{prefix}{names['gate']}.weight", None, hidden)
    width = gate.shape[0]
    part = {
        f"{role}.gate": gate,
        f"{role}.up": inventory.take(f"{prefix}{names['up']}.weight", width, hidden),
        f"{role}.down": inventory.take(f"{prefix}{names['down']}.weight", hidden, width),
    }
    bias = frozenset(name for name, module in names.items() if f"{prefix}{module}.bias" in inventory)
    for name in bias:
        part[f"{role}.{name}_bias"] = inventory.take(f"{prefix}{names[name]}.bias", part[f"{role}.{name}"].shape[0])
    return GatedMLP(width, bias, activation), part


def ungated_mlp(
    inventory: Inventory, prefix: str, hidden: int, activation: Activation, up: str = "up_proj", down: str = "down_proj"
) -> tuple[MLP, LayerTensors]:
    """Two projections, by default `up_proj` and `down_proj`, under `prefix`."""
    rows = inventory.take(f"{prefix}{up}.weight", None, hidden)
    width = rows.shape[0]
    part = {"ffn.up": rows, "ffn.down": inventory.take(f"{prefix}{down}.weight", hidden, width)}
    bias = frozenset(role for role, name in (("up", up), ("down", down)) if f"{prefix}{name}.bias" in inventory)
    for role, name in (("up", up), ("down", down)):
        if role in bias:
            part[f"ffn.{role}_bias"] = inventory.take(f"{prefix}{name}.bias", part[f"ffn.{role}"].shape[0])
    return MLP(width, activation, bias), part


ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Names of transformers' activations (`activations.py`, ACT2FN) → the activation; those that differ in rounding alone are one."""


def activation(config: ClassConfig, key: str = "hidden_act") -> Activation:
    """The activation that the config, or else its class, names; CheckpointError for any other than those of the spec."""
    config.fill(key)
    name = config.values.get(key)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise config.wrong(key, name, "one of " + ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def has_experts(inventory: Inventory, prefix: str) -> bool:
    """Whether the feed-forward under `prefix` has routed experts, as one tensor per expert or fused."""
    names = ("gate.weight", "experts.0.gate_proj.weight", "experts.gate_up_proj")
    return any(f"{prefix}{name}" in inventory for name in names)


def moe(
    inventory: Inventory, config: ClassConfig, prefix: str, hidden: int, *, normalised: bool
) -> tuple[MoE, LayerTensors]:
    """A mixture of experts: router `gate` (experts, hidden), routed experts, and optionally a shared expert.

    The experts are one tensor per expert or fused; the shared expert may have a gate. `normalised` is the family's default
    for norm_topk_prob. Raises CheckpointError if num_experts_per_tok exceeds the number of experts.
    """
    router = inventory.take(f"{prefix}gate.weight", None, hidden)
    experts = router.shape[0]
    part = _experts(inventory, prefix, experts, hidden) | {"moe.router": router}
    width = part["moe.gate"].shape[1]
    config.expect("num_experts", experts)
    config.expect("moe_intermediate_size", width)
    top_k = config.integer("num_experts_per_tok")
    if top_k > experts:
        raise CheckpointError(f"{config.path}: num_experts_per_tok is {top_k}, but the router has {experts} experts")
    shared = None
    if f"{prefix}shared_expert.gate_proj.weight" in inventory:
        mlp, shared_part = gated_mlp(inventory, f"{prefix}shared_expert.", hidden, "shared")
        part |= shared_part
        gate = f"{prefix}shared_expert_gate.weight"
        shared = SharedExpert(mlp.width, gate in inventory)
        if shared.gated:
            part["shared.sigmoid"] = Reshaped(inventory.take(gate, 1, hidden), (hidden,))
        config.expect("shared_expert_intermediate_size", mlp.width)
    elif config.values.get("shared_expert_intermediate_size"):
        config.note("config.json states a shared expert, but the tensors have none")
    return MoE(experts, width, Router(top_k=top_k, normalised=renormalised(config, normalised)), shared), part


def scored_moe(
    inventory: Inventory, config: ClassConfig, prefix: str, hidden: int, router: Router, bias: str
) -> tuple[MoE, LayerTensors]:
    """A mixture of experts whose router's scores may have a bias for the selection, and which may have `shared_experts`.

    `router` says how experts are scored; `bias` is the name of the bias, of shape (experts,) or (1, experts). The shared experts
    are one feed-forward without a gate. Raises CheckpointError if more experts are to be selected than there are.
    """
    gate = inventory.take(f"{prefix}gate.weight", None, hidden)
    experts = gate.shape[0]
    part = _experts(inventory, prefix, experts, hidden) | {"moe.router": gate}
    width = part["moe.gate"].shape[1]
    config.expect("moe_intermediate_size", width)
    if router.top_k > experts:
        raise CheckpointError(f"{config.path}: {router.top_k} experts a token, but the router has {experts} experts")
    name = f"{prefix}{bias}"
    if name in inventory:
        flat = (experts,) if len(inventory.tensors[name].shape) == 1 else (1, experts)
        part["moe.router_bias"] = Reshaped(inventory.take(name, *flat), (experts,))
        router = replace(router, score_bias=True)
    shared = None
    if f"{prefix}shared_experts.gate_proj.weight" in inventory:
        mlp, shared_part = gated_mlp(inventory, f"{prefix}shared_experts.", hidden, "shared")
        part |= shared_part
        shared = SharedExpert(mlp.width, gated=False)
    return MoE(experts, width, router, shared), part


def renormalised(config: ClassConfig, default: bool) -> bool:
    """Whether the weights of the selected experts are normalised to sum to 1; `default` if norm_topk_prob is absent."""
    stated = config.values.get("norm_topk_prob")
    if not config.rules.renormalised:
        return config.flag("norm_topk_prob", default)
    if stated is not None and stated is not True:
        config.unheeded("norm_topk_prob", stated)
    return True


def _experts(inventory: Inventory, prefix: str, experts: int, hidden: int) -> LayerTensors:
    """The experts' gate and up, (experts, width, hidden), and down, (experts, hidden, width), from either layout."""
    fused = f"{prefix}experts.gate_up_proj"
    if fused in inventory or f"{prefix}experts.down_proj" in inventory:
        return fused_experts(inventory, fused, f"{prefix}experts.down_proj", experts, hidden)
    width = inventory.shape(f"{prefix}experts.0.gate_proj.weight")[0]
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    return {
        f"moe.{name}": stack(
            [inventory.take(f"{prefix}experts.{e}.{name}_proj.weight", *shape) for e in range(experts)]
        )
        for name, shape in shapes.items()
    }


def fused_experts(inventory: Inventory, gate_up: str, down: str, experts: int, hidden: int) -> LayerTensors:
    """Experts in two tensors: (experts, 2 · width, hidden), the rows of gate and then of up, and (experts, hidden, width)."""
    width = inventory.shape(gate_up, 3)[1] // 2
    both = inventory.take(gate_up, experts, 2 * width, hidden)
    rows = Reshaped(both, (experts * 2 * width, hidden))
    return {
        "moe.gate": Reshaped(take_rows(rows, experts, 0, width), (experts, width, hidden)),
        "moe.up": Reshaped(take_rows(rows, experts, width, width), (experts, width, hidden)),
        "moe.down": inventory.take(down, experts, hidden, width),
    }


def embeddings(inventory: Inventory, config: Config) -> tuple[dict[str, Tensor], bool]:
    """Token embedding and output projection by role, and whether embedding and output are tied."""
    embedding, output = embedding_and_output(inventory, config, EMBEDDING, OUTPUT)
    vocab, hidden = embedding.shape
    part = {"embedding": embedding}
    if output is not None:
        part["output"] = output
    tied = output is None
    config.expect("vocab_size", vocab)
    config.expect("hidden_size", hidden)
    config.expect("tie_word_embeddings", tied, where="by the tensors it is")
    return part, tied
