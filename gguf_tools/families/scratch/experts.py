"""Feed-forwards of layouts trained from scratch: dense, or experts whose softmax runs over the selected ones."""

from __future__ import annotations

from collections.abc import Mapping

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.reading import Config, Inventory
from gguf_tools.model.spec import GatedMLP, LayerTensors, MoE, Router
from gguf_tools.tensors.views import stack


def dense(
    inventory: Inventory, config: Config, prefix: str, hidden: int, names: Mapping[str, str], width_key: str
) -> tuple[GatedMLP, LayerTensors]:
    """A feed-forward with a gate of SiLU; `names` are those of gate, up and down, `width_key` the config's name of the width."""
    ffn, part = hf.gated_mlp(inventory, prefix, hidden, names=names)
    config.expect(width_key, ffn.width)
    return ffn, part


def routed(
    inventory: Inventory,
    config: Config,
    prefix: str,
    hidden: int,
    names: Mapping[str, str],
    top_k: int,
    top_k_key: str,
) -> tuple[MoE, LayerTensors]:
    """A router, `prefix`gate (experts, hidden), and experts with a gate of SiLU.

    `names` are those of an expert's gate, up and down with {} for its number, `top_k_key` is the config's name of `top_k`.
    Raises CheckpointError if there are fewer experts than `top_k`, UnsupportedError for experts with biases or several widths.
    """
    router = inventory.take(f"{prefix}gate.weight", None, hidden)
    count = router.shape[0]
    if top_k > count:
        raise CheckpointError(f"{config.path}: {top_k_key} is {top_k}, but the router has {count} experts")
    each = [
        hf.gated_mlp(inventory, prefix, hidden, names={role: name.format(e) for role, name in names.items()})
        for e in range(count)
    ]
    width = each[0][0].width
    if any(mlp.bias or mlp.width != width for mlp, _ in each):
        raise UnsupportedError(
            f"{inventory.path}: the experts under {prefix} have biases or several widths; neither converts"
        )
    part: LayerTensors = {"moe.router": router}
    for role in names:
        part[f"moe.{role}"] = stack([tensors[f"ffn.{role}"] for _, tensors in each])
    return MoE(count, width, Router(top_k=top_k)), part
