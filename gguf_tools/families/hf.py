"""Parts of a decoder in the layout of Hugging Face transformers, shared by the families that use it.

Each function takes the tensors it needs from the inventory and returns the part's spec with its tensors by role.
Tensors decide: what the config says beyond them is read only where shapes cannot tell, and contradictions are noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.reading import Config, Inventory, is_number
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.rope import LinearScaling, Llama3Scaling, Rope, Scaling, YarnScaling
from gguf_tools.model.spec import Attention, GatedMLP, LayerTensors, MoE, Norm, Router, SharedExpert
from gguf_tools.sources.tying import EMBEDDING, OUTPUT
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped, stack, take_rows


def rope(config: Config, head_dim: int, *, whole: bool = False) -> Rope:
    """Rotary embedding as the config states it, in the old keys (rope_theta, rope_scaling) or the new rope_parameters."""
    stated = {**config.mapping("rope_scaling"), **config.mapping("rope_parameters")}
    if any(isinstance(value, dict) for value in stated.values()):
        raise UnsupportedError(
            f"{config.path}: rope_parameters differ between kinds of layers, which is not supported yet"
        )
    values = {**config.values, **stated}
    theta = values.get("rope_theta", 10000.0)
    if not is_number(theta) or theta <= 0:
        raise config.wrong("rope_theta", theta, "a number above 0")
    partial = values.get("partial_rotary_factor", 1.0)
    if not is_number(partial) or not 0 < partial <= 1:
        raise config.wrong("partial_rotary_factor", partial, "a number above 0, at most 1")
    if whole and partial != 1:
        config.note(f"config.json says partial_rotary_factor {partial}, models with these tensors turn whole heads")
    dims = head_dim if whole else int(head_dim * partial)
    if dims % 2 or not dims:
        raise CheckpointError(
            f"{config.path}: rope would turn {dims} of {head_dim} dimensions, an even number expected"
        )
    scaling = _scaling(config, stated)
    if isinstance(scaling, YarnScaling) and theta <= 1:
        raise config.wrong("rope_theta", theta, "a number above 1 for YaRN")
    return Rope(float(theta), dims, "half", scaling)


def _scaling(config: Config, stated: Mapping[str, Any]) -> Scaling | None:
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind in ("default", None):
        return None
    context = config.values.get("max_position_embeddings")

    def number(key: str, default: float | None = None) -> float:
        value = stated.get(key)
        value = default if value is None else value
        if not is_number(value) or value <= 0:
            raise config.wrong(f"rope_scaling.{key}", value, "a number above 0")
        return float(value)

    length = number("original_max_position_embeddings", context if isinstance(context, int) else None)
    if not 1 <= length < 1 << 31:
        raise config.wrong("rope_scaling.original_max_position_embeddings", length, "a number of tokens")
    original = int(length)
    if kind == "linear":
        return LinearScaling(number("factor"))
    if kind == "llama3":
        return Llama3Scaling(number("factor"), number("low_freq_factor"), number("high_freq_factor"), original)
    if kind == "yarn":
        factor = number("factor")
        attention = None if stated.get("attention_factor") is None else number("attention_factor")
        truncate = stated.get("truncate", True)
        if not isinstance(truncate, bool):
            raise config.wrong("rope_scaling.truncate", truncate, "true or false")
        if attention is None and stated.get("mscale") and stated.get("mscale_all_dim"):
            mscale = YarnScaling(factor=factor, original_context=original, attention_factor=None).magnitude - 1
            attention = (mscale * number("mscale") + 1) / (mscale * number("mscale_all_dim") + 1)
        return YarnScaling(
            factor=factor,
            original_context=original,
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            attention_factor=attention,
            truncate=truncate,
        )
    raise UnsupportedError(
        f"{config.path}: rope scaling {kind!r} is not supported; default, linear, yarn and llama3 are"
    )


def attention(
    inventory: Inventory,
    config: Config,
    prefix: str,
    hidden: int,
    qk_norm: Norm | None,
    window: int | None = None,
    *,
    whole_rope: bool = False,
) -> tuple[Attention, LayerTensors]:
    """`self_attn` with separate projections; a query projection twice as wide as the output's input holds a gate.

    `qk_norm` is the norm that q_norm and k_norm use where they exist. The gate's rows follow the query's in each head
    (Qwen3-Next). `window` is the layer's sliding window (`sliding_window`). With `whole_rope` the
    family's code knows no partial_rotary_factor.
    """
    wide = inventory.shape(f"{prefix}o_proj.weight")[1]
    normed = f"{prefix}q_norm.weight" in inventory
    heads_stated = config.integer("num_attention_heads")
    head_dim = (
        inventory.shape(f"{prefix}q_norm.weight", 1)[0]
        if normed
        else config.integer("head_dim", hidden // heads_stated)
    )
    if normed and head_dim == wide and heads_stated > 1:
        raise UnsupportedError(
            f"{inventory.path}: {prefix}q_norm.weight has {wide} entries, one norm across all {heads_stated} heads "
            "(as OLMo has); only norms of each head are supported"
        )
    k_rows = inventory.shape(f"{prefix}k_proj.weight")[0]
    if wide % head_dim or k_rows % head_dim or (wide // head_dim) % max(1, k_rows // head_dim):
        raise CheckpointError(
            f"{inventory.path}: {prefix}o_proj.weight takes {wide} inputs and k_proj has {k_rows} rows, which are not "
            f"whole heads of {head_dim} in whole groups; check head_dim in config.json"
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
        "attn.o": inventory.take(f"{prefix}o_proj.weight", hidden, wide),
    }
    bias = {name for name in "qkvo" if f"{prefix}{name}_proj.bias" in inventory}
    for name in bias:
        part[f"attn.{name}_bias"] = inventory.take(f"{prefix}{name}_proj.bias", part[f"attn.{name}"].shape[0])
    if gated:
        for name in ("q", "q_bias") if "q" in bias else ("q",):
            both = part[f"attn.{name}"]
            part[f"attn.{name}"] = take_rows(both, heads, 0, head_dim)
            part[f"attn.{name.replace('q', 'gate')}"] = take_rows(both, heads, head_dim, head_dim)
    if normed:
        part["attn.q_norm"] = inventory.take(f"{prefix}q_norm.weight", head_dim)
        part["attn.k_norm"] = inventory.take(f"{prefix}k_norm.weight", head_dim)
    spec = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope(config, head_dim, whole=whole_rope),
        bias=frozenset(bias),
        qk_norm=qk_norm if normed else None,
        gated=gated,
        window=window,
    )
    return spec, part


def sliding_window(
    config: Config, prefix: str, *, used: bool, limited: Callable[[int], bool] = lambda _: True
) -> int | None:
    """The sliding window of the layer whose tensors have `prefix`, as the config states it; None is full attention.

    `used` is the family's default of use_sliding_window, `limited` its rule for the layers that have a window where
    layer_types does not say.
    """
    if not config.flag("use_sliding_window", used) or config.values.get("sliding_window") is None:
        return None
    window = config.integer("sliding_window")
    n = int(prefix.split(".")[-2])
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list) or n >= len(kinds):
        return window if limited(n) else None
    if kinds[n] not in ("full_attention", "sliding_attention"):
        raise config.wrong(f"layer_types[{n}]", kinds[n], "full_attention or sliding_attention")
    return window if kinds[n] == "sliding_attention" else None


def after_full_layers(config: Config) -> Callable[[int], bool]:
    """Qwen's rule for the layers that have a window: those from max_window_layers on (28 where it is not stated)."""
    first = config.values.get("max_window_layers")
    if first is None:
        first = 28
    if type(first) is not int or first < 0:
        raise config.wrong("max_window_layers", first, "a whole number from 0")
    return lambda n: n >= first


def expect_kind(config: Config, prefix: str, actual: str) -> None:
    """Note it where the config's layer_types says otherwise of the layer whose tensors have `prefix`."""
    kinds, n = config.values.get("layer_types"), int(prefix.split(".")[-2])
    if isinstance(kinds, list) and n < len(kinds) and kinds[n] != actual:
        config.note(f"config.json says layer {n} is {kinds[n]}, its tensors are {actual}")


def gated_mlp(inventory: Inventory, prefix: str, hidden: int, role: str = "ffn") -> tuple[GatedMLP, LayerTensors]:
    """`gate_proj`, `up_proj` and `down_proj` under `prefix`."""
    gate = inventory.take(f"{prefix}gate_proj.weight", None, hidden)
    width = gate.shape[0]
    part = {
        f"{role}.gate": gate,
        f"{role}.up": inventory.take(f"{prefix}up_proj.weight", width, hidden),
        f"{role}.down": inventory.take(f"{prefix}down_proj.weight", hidden, width),
    }
    bias = frozenset(name for name in ("gate", "up", "down") if f"{prefix}{name}_proj.bias" in inventory)
    for name in bias:
        part[f"{role}.{name}_bias"] = inventory.take(f"{prefix}{name}_proj.bias", part[f"{role}.{name}"].shape[0])
    return GatedMLP(width, bias), part


def has_experts(inventory: Inventory, prefix: str) -> bool:
    """Whether the feed-forward under `prefix` has routed experts, one by one or fused."""
    names = ("gate.weight", "experts.0.gate_proj.weight", "experts.gate_up_proj")
    return any(f"{prefix}{name}" in inventory for name in names)


def moe(
    inventory: Inventory, config: Config, prefix: str, hidden: int, *, normalised: bool
) -> tuple[MoE, LayerTensors]:
    """A router `gate`, experts one tensor each or fused, and perhaps a shared expert with or without a gate.

    `normalised` is the family's default of norm_topk_prob.
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
        config.note("config.json names a shared expert, the tensors have none")
    return MoE(experts, width, Router(top_k=top_k, normalised=config.flag("norm_topk_prob", normalised)), shared), part


def _experts(inventory: Inventory, prefix: str, experts: int, hidden: int) -> LayerTensors:
    fused = f"{prefix}experts.gate_up_proj"
    if fused in inventory or f"{prefix}experts.down_proj" in inventory:
        width = inventory.shape(fused, 3)[1] // 2
        both = inventory.take(fused, experts, 2 * width, hidden)
        rows = Reshaped(both, (experts * 2 * width, hidden))
        return {
            "moe.gate": Reshaped(take_rows(rows, experts, 0, width), (experts, width, hidden)),
            "moe.up": Reshaped(take_rows(rows, experts, width, width), (experts, width, hidden)),
            "moe.down": inventory.take(f"{prefix}experts.down_proj", experts, hidden, width),
        }
    width = inventory.shape(f"{prefix}experts.0.gate_proj.weight")[0]
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    return {
        f"moe.{name}": stack(
            [inventory.take(f"{prefix}experts.{e}.{name}_proj.weight", *shape) for e in range(experts)]
        )
        for name, shape in shapes.items()
    }


def embeddings(inventory: Inventory, config: Config) -> tuple[dict[str, Tensor], bool]:
    """Token embedding, final norm and output projection, and whether the two matrices are tied (`embedding_and_output`)."""
    embedding, output = embedding_and_output(inventory, config, EMBEDDING, OUTPUT)
    vocab, hidden = embedding.shape
    part = {"embedding": embedding, "output_norm": inventory.take("model.norm.weight", hidden)}
    if output is not None:
        part["output"] = output
    tied = output is None
    config.expect("vocab_size", vocab)
    config.expect("hidden_size", hidden)
    config.expect("tie_word_embeddings", tied, where="by the tensors it is")
    return part, tied
