"""litgpt (Lightning-AI/litgpt) and TinyLlama's lit_gpt: `lit_model.pth` with `model_config.yaml`.

`attn.qkv` holds the rows of all queries, then keys, then values; before 2025 it was `attn.attn`, with the queries, the key and
the value of one query group after another. `mlp.fc_1` is gate, `fc_2` up (`mlp.swiglu.w1`, `w2`, and `w3` for the way back, in
TinyLlama's). Rope is half-split on the first int(rotary_percentage · head_size) dimensions. Keys that the config leaves out
have the defaults of litgpt's `Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import finished
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.reading import Config, Inventory, is_number, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_state_dict, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.rope import LinearScaling, Llama3Scaling, Rope, Scaling
from gguf_tools.model.spec import (
    Attention,
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Model,
    ModelSpec,
    MoE,
    Norm,
    Router,
)
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import TIE
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import stack, take

DEFAULTS: Mapping[str, Any] = {
    "block_size": 4096, "norm_class_name": "LayerNorm", "norm_eps": 1e-5, "parallel_residual": True, "n_head": 32,
    "rope_base": 10000, "rotary_percentage": 0.25, "mlp_class_name": "GptNeoxMLP",
}  # fmt: skip
"""Defaults of litgpt's `Config` for what the model depends on."""
READ = {
    *DEFAULTS, "n_layer", "n_embd", "padded_vocab_size", "head_size", "n_query_groups", "intermediate_size", "norm_qk",
    "moe_intermediate_size", "n_expert", "n_expert_per_token", "scale_embeddings", "sliding_window_size",
    "sliding_window_indices", "attention_scores_scalar", "rope_adjustments", "rope_condense_ratio", "name",
    "max_position_embeddings", "max_seq_len", TIE,
}  # fmt: skip
UNUSED = {
    "hf_config", "vocab_size", "padding_multiple", "bias", "attn_bias", "lm_head_bias", "gelu_approximate", "org",
    "_norm_class", "_mlp_class", "rope_n_elem", "norm_qk_type",
}  # fmt: skip
"""Keys that the tensors show too, or that only name things."""
NEUTRAL: Mapping[str, Any] = {
    "norm_class_name": "RMSNorm", "parallel_residual": False, "shared_attention_norm": False, "post_attention_norm": False,
    "post_mlp_norm": False, "attention_logit_softcapping": None, "final_logit_softcapping": None, "latent_attention": None,
    "norm_1": True, "norm_2": True, "rope_local_base_freq": None, "rope_indices": None, "rope_interleave": False,
    "first_k_dense_replace": None, "n_shared_expert": None, "routed_scaling_factor": None, "norm_topk_prob": None,
}  # fmt: skip
"""Choices of litgpt, and the value of each with which a model converts."""
MLPS = ("LLaMAMLP", "LLaMAMoE")


def matches(checkpoint: Checkpoint) -> bool:
    """`transformer.wte`, and an attention with fused projections by litgpt's name of today or before."""
    names = checkpoint.tensors
    fused = any(f"transformer.h.0.attn.{name}.weight" in names for name in ("qkv", "attn"))
    return "transformer.wte.weight" in names and fused


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError, by the key's name, for choices that have no form here yet."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    if not config.values:
        raise CheckpointError(
            f"{checkpoint.folder / 'model_config.yaml'}: missing; litgpt writes it beside lit_model.pth, and no shape tells "
            "the number of heads"
        )
    config.values = {**DEFAULTS, **config.values}
    _refuse_others(config)
    context = "block_size" if config.values.get("max_position_embeddings") is None else "max_position_embeddings"
    embedding, output = embedding_and_output(
        inventory, config, "transformer.wte.weight", "lm_head.weight", by_values=True
    )
    vocab, hidden = embedding.shape
    tensors: dict[str, Tensor] = {
        "embedding": embedding, "output_norm": inventory.take("transformer.ln_f.weight", hidden)
    }  # fmt: skip
    if output is not None:
        tensors["output"] = output
    # litgpt's norm adds 1 to the weights of every model whose name has "Gemma" in it.
    norm = Norm(config.number("norm_eps"), 1.0 if "Gemma" in str(config.values.get("name")) else 0.0)
    count = layer_count(inventory, "transformer.h.")
    for key, actual in (("padded_vocab_size", vocab), ("n_embd", hidden), ("n_layer", count)):
        config.expect(key, actual)
    layers = []
    for n in range(count):
        prefix = f"transformer.h.{n}."
        mixer, part = _attention(inventory, config, n, hidden, norm)
        ffn, ffn_part = _feed_forward(inventory, config, f"{prefix}mlp.", hidden)
        part |= ffn_part
        part["mixer_norm"] = inventory.take(f"{prefix}norm_1.weight", hidden)
        part["ffn_norm"] = inventory.take(f"{prefix}norm_2.weight", hidden)
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm), part))
    inventory.finish()
    spec = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=config.integer(context),
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm,
        tied=output is None,
        embedding_scale=hidden**0.5 if config.flag("scale_embeddings", False) else 1.0,
    )
    return finished(checkpoint, config, FAMILY.name, spec, tensors, layers)


def _refuse_others(config: Config) -> None:
    """UnsupportedError for a choice that does not convert, or a key that is not litgpt's."""
    for key, value in config.values.items():
        if key in NEUTRAL and value not in (NEUTRAL[key], None):
            raise UnsupportedError(
                f"{config.path}: {key} is {value!r:.40}; of litgpt's models those with {NEUTRAL[key]} convert"
            )
        if key not in READ | UNUSED | NEUTRAL.keys() and value not in (None, False):
            raise UnsupportedError(
                f"{config.path}: {key} is a key that litgpt's Config does not have in tinyq, so that the model may compute "
                "something else; remove it if it does not"
            )
    if config.values["mlp_class_name"] not in MLPS:
        found = config.values["mlp_class_name"]
        raise UnsupportedError(
            f"{config.path}: mlp_class_name is {found!r:.40}; of litgpt's models those with {MLPS} convert"
        )
    if config.values.get("norm_qk") and config.values.get("norm_qk_type", "default") != "default":
        raise UnsupportedError(
            f"{config.path}: norm_qk_type is {config.values['norm_qk_type']!r:.40}; 'default' converts"
        )


def _attention(inventory: Inventory, config: Config, n: int, hidden: int, norm: Norm) -> tuple[Attention, LayerTensors]:
    """q, k and v, cut out of one matrix ((heads + 2 · kv_heads) · head_size, hidden), and the projection back."""
    prefix, heads = f"transformer.h.{n}.attn.", config.integer("n_head")
    kv_heads = config.integer("n_query_groups", heads)
    dim = config.integer("head_size", hidden // heads or 1)
    legacy = f"{prefix}qkv.weight" not in inventory
    name = f"{prefix}attn" if legacy else f"{prefix}qkv"
    rows = (heads + 2 * kv_heads) * dim
    if heads % kv_heads or dim % 2 or inventory.shape(f"{name}.weight")[0] != rows:
        raise CheckpointError(
            f"{config.path}: n_head {heads}, n_query_groups {kv_heads} and head_size {dim} need {rows} rows in whole groups, "
            f"{name}.weight has {inventory.shape(f'{name}.weight')[0]}"
        )
    index = _rows(heads, kv_heads, dim, legacy=legacy)
    part: LayerTensors = {"attn.o": inventory.take(f"{prefix}proj.weight", hidden, heads * dim)}
    weight = inventory.take(f"{name}.weight", rows, hidden)
    part |= {f"attn.{role}": take(weight, chosen) for role, chosen in index.items()}
    bias = set()
    if f"{name}.bias" in inventory:
        whole = inventory.take(f"{name}.bias", rows)
        part |= {f"attn.{role}_bias": take(whole, chosen) for role, chosen in index.items()}
        bias |= set("qkv")
    if f"{prefix}proj.bias" in inventory:
        part["attn.o_bias"] = inventory.take(f"{prefix}proj.bias", hidden)
        bias.add("o")
    normed = config.flag("norm_qk", False)
    if normed:
        part |= {f"attn.{role}_norm": inventory.take(f"{prefix}norm_{role}.weight", dim) for role in "qk"}
    scalar = config.values.get("attention_scores_scalar")
    spec = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        rope=_rope(config, dim),
        bias=frozenset(bias),
        qk_norm=norm if normed else None,
        window=_window(config, n),
        scale=None if not scalar else config.number("attention_scores_scalar") ** -0.5,
    )
    return spec, part


def _rows(heads: int, kv_heads: int, dim: int, *, legacy: bool) -> dict[str, Any]:
    """The rows of q, k and v in the fused matrix, one query group after another where it is `legacy`."""
    counts = {"q": heads, "k": kv_heads, "v": kv_heads}
    if not legacy:
        starts = {"q": 0, "k": heads * dim, "v": (heads + kv_heads) * dim}
        return {role: range(starts[role], starts[role] + counts[role] * dim) for role in "qkv"}
    group = heads // kv_heads
    order = np.arange((heads + 2 * kv_heads) * dim).reshape(kv_heads, group + 2, dim)
    return {"q": order[:, :group].reshape(-1), "k": order[:, group].reshape(-1), "v": order[:, group + 1].reshape(-1)}


def _window(config: Config, n: int) -> int | None:
    """The sliding window of layer `n`: of every layer, or of those whose entry in sliding_window_indices is 1."""
    if config.values.get("sliding_window_size") is None:
        return None
    listed = config.values.get("sliding_window_indices")
    if listed is not None and (not isinstance(listed, list) or n >= len(listed) or listed[n] not in (0, 1)):
        raise config.wrong("sliding_window_indices", listed, "a list with 0 or 1 for each layer")
    return config.integer("sliding_window_size") if listed is None or listed[n] else None


def _rope(config: Config, dim: int) -> Rope:
    """Rope by rope_base, rotary_percentage, rope_condense_ratio (positions divided by it) and rope_adjustments."""
    theta, share = config.number("rope_base"), config.number("rotary_percentage")
    turned = int(share * dim)
    if theta <= 0 or turned % 2 or not 0 < turned <= dim:
        raise CheckpointError(
            f"{config.path}: rope_base {theta:g} and rotary_percentage {share:g} turn {turned} of {dim} dimensions; a base above "
            "0 and an even number of dimensions expected"
        )
    ratio, stated = config.number("rope_condense_ratio", 1), config.mapping("rope_adjustments")
    scaling: Scaling | None = LinearScaling(ratio) if ratio != 1 else None
    if stated:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
        llama3 = set(stated) == set(names)
        if scaling or not (llama3 or set(stated) == {"factor"}):
            raise UnsupportedError(
                f"{config.path}: rope_adjustments has {', '.join(sorted(stated))}; Llama 3's four keys, or factor alone, convert"
            )
        wrong = next((name for name, value in stated.items() if not is_number(value) or value <= 0), None)
        if wrong is not None:
            raise config.wrong(f"rope_adjustments.{wrong}", stated[wrong], "a number above 0")
        factor, low, high, length = (float(stated.get(name, 0)) for name in names)
        scaling = Llama3Scaling(factor, low, high, int(length)) if llama3 else LinearScaling(factor)
    return Rope(theta, turned, scaling=scaling)


def _feed_forward(inventory: Inventory, config: Config, prefix: str, hidden: int) -> tuple[FeedForward, LayerTensors]:
    """An MLP, or experts whose softmax runs over the selected ones."""
    if config.values["mlp_class_name"] == "LLaMAMLP":
        return _mlp(inventory, prefix, hidden)
    router = inventory.take(f"{prefix}gate.weight", None, hidden)
    count, top_k = router.shape[0], config.integer("n_expert_per_token")
    if top_k > count:
        raise CheckpointError(f"{config.path}: n_expert_per_token is {top_k}, but the router has {count} experts")
    config.expect("n_expert", count)
    each = [_mlp(inventory, f"{prefix}experts.{e}.", hidden) for e in range(count)]
    if any(mlp.bias or mlp.width != each[0][0].width for mlp, _ in each):
        raise UnsupportedError(
            f"{inventory.path}: the experts under {prefix} have biases or several widths; neither converts"
        )
    part: LayerTensors = {"moe.router": router}
    for role in ("gate", "up", "down"):
        part[f"moe.{role}"] = stack([tensors[f"ffn.{role}"] for _, tensors in each])
    return MoE(count, each[0][0].width, Router(top_k=top_k)), part


def _mlp(inventory: Inventory, prefix: str, hidden: int) -> tuple[GatedMLP, LayerTensors]:
    """A gated feed-forward by litgpt's names or TinyLlama's."""
    names = {"gate": "fc_1", "up": "fc_2", "down": "proj"}
    if f"{prefix}swiglu.w1.weight" in inventory:
        names = {"gate": "swiglu.w1", "up": "swiglu.w2", "down": "swiglu.w3"}
    return hf.gated_mlp(inventory, prefix, hidden, names=names)


HIDDEN, HEADS, KV_HEADS, WIDTH, VOCAB, LAYERS, EXPERTS = 64, 4, 2, 96, 288, 3, 4
_BASE = {
    "name": "tiny", "block_size": 256, "vocab_size": 266, "padded_vocab_size": VOCAB, "n_layer": LAYERS, "n_embd": HIDDEN,
    "n_head": HEADS, "n_query_groups": KV_HEADS, "rotary_percentage": 1.0, "parallel_residual": False, "bias": False,
    "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "intermediate_size": WIDTH, "norm_eps": 1e-6,
}  # fmt: skip
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 64}
_AS_LLAMA = Expected(target="llama", rewrites=("rope in interleaved pairs",), oracle=False)
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "llama": ({}, _AS_LLAMA),
    "llama 3": ({"rope_base": 500000, "rope_adjustments": _LLAMA3}, _AS_LLAMA),
    "legacy qkv": ({}, _AS_LLAMA),
    "tinyllama": ({"rope_condense_ratio": 2}, _AS_LLAMA),
    "biases": ({"bias": True}, _AS_LLAMA),
    "qwen3": ({"norm_qk": True, "head_size": 32, "rope_base": 1000000}, Expected(target="qwen3", oracle=False)),
    "mixtral": ({"mlp_class_name": "LLaMAMoE", "n_expert": EXPERTS, "n_expert_per_token": 2}, _AS_LLAMA),
    "window": (
        {"sliding_window_size": 8, "sliding_window_indices": [1, 0, 1]},
        Expected(target="granite_swa", rewrites=("rope in interleaved pairs",), oracle=False),
    ),
}
"""Keys of each variant's model_config.yaml, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint in the files and names of litgpt, or of TinyLlama's older copy of it."""
    config = {**_BASE, **VARIANTS[variant][0]}
    older = variant in ("legacy qkv", "tinyllama")
    dim, bias = config.get("head_size", HIDDEN // HEADS), bool(config["bias"])
    linear: dict[str, tuple[int, int]] = {
        f"attn.{'attn' if older else 'qkv'}": ((HEADS + 2 * KV_HEADS) * dim, HIDDEN), "attn.proj": (HIDDEN, HEADS * dim)
    }  # fmt: skip
    mlp = {"fc_1": (WIDTH, HIDDEN), "fc_2": (WIDTH, HIDDEN), "proj": (HIDDEN, WIDTH)}
    if variant == "tinyllama":
        mlp = {f"swiglu.w{n}": shape for n, shape in enumerate(mlp.values(), 1)}
    if "n_expert" in config:
        linear["mlp.gate"] = (EXPERTS, HIDDEN)
        linear |= {f"mlp.experts.{e}.{name}": shape for e in range(EXPERTS) for name, shape in mlp.items()}
    else:
        linear |= {f"mlp.{name}": shape for name, shape in mlp.items()}
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    for n in range(LAYERS):
        prefix = f"transformer.h.{n}."
        shapes |= {f"{prefix}{name}.weight": (HIDDEN,) for name in ("norm_1", "norm_2")}
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in linear.items()}
        if bias:
            shapes |= {f"{prefix}{name}.bias": shape[:1] for name, shape in linear.items()}
        if config.get("norm_qk"):
            shapes |= {f"{prefix}attn.norm_{role}.weight": (dim,) for role in "qk"}
    shapes["transformer.ln_f.weight"] = (HIDDEN,)
    gain = {"wte": 1.0, "mlp.gate.": 2.0, "ln_f": 1.0}
    tensors = random_tensors(shapes, seed, gain=gain)
    tensors["transformer.ln_f.weight"] = 1.2 + 0.3 * tensors["transformer.ln_f.weight"]
    write_state_dict(folder / "lit_model.pth", tensors)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="litgpt",
    title="litgpt, TinyLlama's lit_gpt",
    matches=matches,
    build=build,
    preferred_targets=("llama", "granite_swa", "qwen3"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
