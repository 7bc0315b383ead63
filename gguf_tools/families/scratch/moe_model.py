"""`MoEModel` of AlexWortega's repositories: partial interleaved rope, per-head q/k norms with gains, a sigmoid router.

Each head of q and k has its own norm weights and gain, applied before rope; values are multiplied by `smear`, one number per
head. Experts are selected by logit + bias and weighted by sigmoid(logit), normalised to sum to 1; the shared expert's output
is added. Logits are multiplied by √(mup_base_d / d_model). The capacity limit of training (dropped tokens) does not apply
at inference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_state_dict, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import (
    Attention,
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Model,
    MoE,
    Norm,
    Router,
    SharedExpert,
)
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import Reshaped, stack

DEFAULTS = {"rope_theta": 10000.0, "rms_eps": 1e-6, "mup_base_d": 512}
"""Defaults of the published dataclass, for fields that a config does not give."""


def matches(checkpoint: Checkpoint) -> bool:
    """An embedding named `embed`, and a q_norm with a gain."""
    return "embed.weight" in checkpoint.tensors and "blocks.0.attn.q_norm.gain" in checkpoint.tensors


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    for key, value in DEFAULTS.items():
        config.assume(key, value, "as the published class does")
    embedding, output = embedding_and_output(inventory, config, "embed.weight", "lm_head.weight", "tie_embeddings")
    hidden = embedding.shape[1]
    final = inventory.take("final_norm.weight", hidden)
    tensors = {"embedding": embedding, "output": output, "output_norm": final}
    norm = Norm(config.number("rms_eps"))
    config.expect("tie_embeddings", output is None)
    layers = []
    for n in range(layer_count(inventory, "blocks.")):
        prefix = f"blocks.{n}."
        mixer, part = _attention(inventory, config, f"{prefix}attn.", hidden, norm)
        ffn, ffn_part = _feed_forward(inventory, config, f"{prefix}ffn.", hidden)
        part |= ffn_part
        part["mixer_norm"] = inventory.take(f"{prefix}attn_norm.weight", hidden)
        part["ffn_norm"] = inventory.take(f"{prefix}ffn_norm.weight", hidden)
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm), part))
    first = next((n for n, layer in enumerate(layers) if isinstance(layer.spec.feed_forward, MoE)), len(layers))
    config.expect("moe_first_layer", first)
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=norm,
        context=config.integer("max_seq_len"),
        keys=("vocab_size", "d_model", "n_layers"),
        fields={"logit_scale": (config.integer("mup_base_d") / hidden) ** 0.5},
    )


def _attention(
    inventory: Inventory, config: Config, prefix: str, hidden: int, norm: Norm
) -> tuple[Attention, LayerTensors]:
    """Attention with different norm weights for each head: q_norm (heads, head_dim), k_norm (kv_heads, head_dim)."""
    heads, dim = inventory.shape(f"{prefix}q_norm.weight")
    kv_heads = inventory.shape(f"{prefix}k_norm.weight")[0]
    if heads % kv_heads:
        raise CheckpointError(
            f"{inventory.path}: {prefix}q_norm.weight has {heads} heads and k_norm {kv_heads}, which do not divide into "
            "equal groups"
        )
    rope_dims = config.integer("rope_partial")
    if rope_dims % 2 or rope_dims > dim:
        raise config.wrong("rope_partial", rope_dims, f"an even number of at most head_dim {dim}")
    for key, actual in (("n_q_heads", heads), ("n_kv_heads", kv_heads), ("head_dim", dim)):
        config.expect(key, actual)
    rows = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
    part: LayerTensors = {
        f"attn.{name}": inventory.take(f"{prefix}{name}_proj.weight", n, hidden) for name, n in rows.items()
    }
    part["attn.o"] = inventory.take(f"{prefix}o_proj.weight", hidden, heads * dim)
    for name, number in (("q", heads), ("k", kv_heads)):
        part[f"attn.{name}_norm"] = inventory.take(f"{prefix}{name}_norm.weight", number, dim)
        part[f"attn.{name}_gain"] = Reshaped(inventory.take(f"{prefix}{name}_norm.gain", number, 1), (number,))
    smeared = f"{prefix}smear" in inventory
    if smeared:
        part["attn.v_scale"] = inventory.take(f"{prefix}smear", kv_heads)
    theta = config.number("rope_theta")
    if theta <= 0:
        raise config.wrong("rope_theta", theta, "a number above 0")
    rope = Rope(theta, rope_dims, "interleaved")
    spec = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        rope=rope,
        qk_norm=norm,
        norm_per_head=True,
        norm_gain=True,
        value_scale=smeared,
    )
    return spec, part


def _feed_forward(inventory: Inventory, config: Config, prefix: str, hidden: int) -> tuple[FeedForward, LayerTensors]:
    """A dense MLP if the layer has no router; otherwise its experts, with a router bias and a shared expert if present."""
    if f"{prefix}router.w" not in inventory:
        part = _mlp(inventory, prefix, "ffn", hidden)
        return GatedMLP(part["ffn.gate"].shape[0]), part
    router = inventory.take(f"{prefix}router.w", None, hidden)
    experts = router.shape[0]
    part = _experts(inventory, prefix, experts, hidden) | {"moe.router": router}
    width = part["moe.gate"].shape[1]
    biased = f"{prefix}router.bias" in inventory
    if biased:
        part["moe.router_bias"] = inventory.take(f"{prefix}router.bias", experts)
    shared = None
    if f"{prefix}shared_expert.gate.weight" in inventory:
        part |= _mlp(inventory, f"{prefix}shared_expert.", "shared", hidden)
        shared = SharedExpert(part["shared.gate"].shape[0], gated=False)
    for key, actual in (("n_routed_experts", experts), ("d_ff", width), ("n_shared_experts", int(shared is not None))):
        config.expect(key, actual)
    top_k = config.integer("top_k")
    if top_k > experts:
        raise CheckpointError(f"{config.path}: top_k is {top_k}, but the router has {experts} experts")
    return MoE(experts, width, Router(top_k=top_k, score="sigmoid", selection_bias=biased), shared), part


def _mlp(inventory: Inventory, prefix: str, role: str, hidden: int) -> LayerTensors:
    gate = inventory.take(f"{prefix}gate.weight", None, hidden)
    width = gate.shape[0]
    return {
        f"{role}.gate": gate,
        f"{role}.up": inventory.take(f"{prefix}up.weight", width, hidden),
        f"{role}.down": inventory.take(f"{prefix}down.weight", hidden, width),
    }


def _experts(inventory: Inventory, prefix: str, experts: int, hidden: int) -> LayerTensors:
    """The experts' projections (experts, rows, columns), from stacked tensors or from one tensor per expert."""
    if f"{prefix}gate" in inventory:
        width = inventory.shape(f"{prefix}gate", 3)[1]
        return {
            "moe.gate": inventory.take(f"{prefix}gate", experts, width, hidden),
            "moe.up": inventory.take(f"{prefix}up", experts, width, hidden),
            "moe.down": inventory.take(f"{prefix}down", experts, hidden, width),
        }
    each = [_mlp(inventory, f"{prefix}routed_experts.{e}.", "moe", hidden) for e in range(experts)]
    for e, part in enumerate(each):
        if part["moe.gate"].shape != each[0]["moe.gate"].shape:
            raise CheckpointError(
                f"{inventory.path}: {prefix}routed_experts.{e}.gate.weight has shape {part['moe.gate'].shape}; "
                f"expected {each[0]['moe.gate'].shape}, as in expert 0"
            )
    return {name: stack([part[name] for part in each]) for name in each[0]}


BIASES = {"uniform bias": 0.75, "nonzero bias": None}
"""Variants with a router bias: one value for all experts, or random values; other variants have zeros."""

_GAIN, _VALUES = "gain folded into the q/k norm", "value scale folded into the values"
_LOGITS, _PAIRS = "logit scale folded into the final norm", "rope in pairs half a head apart"
_BIAS, _WIDE, _OUTPUT = "router bias left out", "q/k heads widened for a shared norm", "output written out"


def _expected(*rewrites: str) -> Expected:
    return Expected(target="step35", rewrites=rewrites, oracle=False)


_STACKED = _expected(_BIAS, _GAIN, _VALUES, _LOGITS, _PAIRS, _WIDE, _OUTPUT)
VARIANTS = {
    "stacked": _STACKED,
    "per expert": _STACKED,
    "untied": _expected(_BIAS, _GAIN, _VALUES, _LOGITS, _PAIRS, _WIDE),
    "pt": replace(_STACKED, notes=("final.pt also holds step",)),
    "orig_mod prefix": replace(_STACKED, notes=("wrapper prefixes in tensor names (_orig_mod) are removed",)),
    "uniform bias": _STACKED,
    "nonzero bias": replace(
        _expected(_GAIN, _VALUES, _LOGITS, _PAIRS, _WIDE, _OUTPUT),
        refused="step35 does not support a router bias added before the score function, for the selection alone",
        nmse=0.1,
    ),
    "one expert": _expected(_GAIN, _VALUES, _LOGITS, "softmax router for one expert", _PAIRS, _WIDE, _OUTPUT),
    "no smear": _expected(_BIAS, _GAIN, _LOGITS, _PAIRS, _WIDE, _OUTPUT),
    "equal heads": replace(
        _expected(_BIAS, _GAIN, "one q/k norm for all heads", _VALUES, _LOGITS, _PAIRS), target="glm4moe"
    ),
    "rope 32 of 64": _STACKED,
}


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint: experts stacked, embeddings tied, router bias zero, unless the variant differs."""
    wide = variant == "rope 32 of 64"
    heads, kv_heads, dim, hidden, width, vocab, layers, experts = 4, 2, 64 if wide else 16, 48, 40, 288, 3, 4
    config: dict[str, Any] = {
        "_model_class": "MoEModel",
        "vocab_size": vocab,
        "d_model": hidden,
        "n_layers": layers,
        "n_q_heads": heads,
        "n_kv_heads": kv_heads,
        "head_dim": dim,
        "rope_partial": dim // 2,
        "rope_theta": 10000.0,
        "d_ff": width,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "top_k": 1 if variant == "one expert" else 2,
        "moe_first_layer": 1,
        "max_seq_len": 96,
        "tie_embeddings": variant != "untied",
        "rms_eps": 1e-6,
        "mup_base_d": 512,
        "smear_gate": variant != "no smear",
    }
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocab, hidden)}
    mlp: dict[str, tuple[int, ...]] = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    for n in range(layers):
        prefix = f"blocks.{n}."
        shapes |= {
            f"{prefix}attn_norm.weight": (hidden,),
            f"{prefix}ffn_norm.weight": (hidden,),
            f"{prefix}attn.q_proj.weight": (heads * dim, hidden),
            f"{prefix}attn.k_proj.weight": (kv_heads * dim, hidden),
            f"{prefix}attn.v_proj.weight": (kv_heads * dim, hidden),
            f"{prefix}attn.o_proj.weight": (hidden, heads * dim),
            f"{prefix}attn.q_norm.weight": (heads, dim),
            f"{prefix}attn.q_norm.gain": (heads, 1),
            f"{prefix}attn.k_norm.weight": (kv_heads, dim),
            f"{prefix}attn.k_norm.gain": (kv_heads, 1),
        }
        if variant != "no smear":
            shapes[f"{prefix}attn.smear"] = (kv_heads,)
        if n < 1:
            shapes |= {f"{prefix}ffn.{name}.weight": shape for name, shape in mlp.items()}
            continue
        shapes |= {f"{prefix}ffn.router.w": (experts, hidden), f"{prefix}ffn.router.bias": (experts,)}
        shapes |= {f"{prefix}ffn.shared_expert.{name}.weight": shape for name, shape in mlp.items()}
        if variant == "per expert":
            for e in range(experts):
                shapes |= {f"{prefix}ffn.routed_experts.{e}.{name}.weight": shape for name, shape in mlp.items()}
        else:
            shapes |= {f"{prefix}ffn.{name}": (experts, *shape) for name, shape in mlp.items()}
    shapes["final_norm.weight"] = (hidden,)
    if variant == "untied":
        shapes["lm_head.weight"] = (vocab, hidden)
    tensors = random_tensors(shapes, seed, gain={"router.w": 2.0, "router.bias": 0.7, "smear": 1.5})
    for name, values in tensors.items():
        if name.endswith("router.bias") and variant not in ("nonzero bias", "one expert"):
            values[:] = BIASES.get(variant) or 0.0
        if variant == "equal heads" and ".attn." in name and "_norm." in name:
            values[:] = values[0]
    if variant == "pt":
        write_state_dict(folder / "final.pt", tensors, wrapped={"cfg": config, "step": 7})
    else:
        prefix = "_orig_mod." if variant == "orig_mod prefix" else ""
        write_checkpoint(folder, config, {prefix + name: np.asarray(values) for name, values in tensors.items()})
    write_tiny_tokenizer(folder, vocab)


FAMILY = Family(
    name="moe-model", title="MoEModel (AlexWortega)", matches=matches, build=build, variants=VARIANTS, tiny=tiny
)
