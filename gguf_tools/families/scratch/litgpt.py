"""litgpt (Lightning-AI/litgpt) and TinyLlama's lit_gpt: `lit_model.pth` with `model_config.yaml`.

One `GPT` class computes Llama, Pythia, Phi, Gemma, OLMo and others, by its `Config`: the norm (`norm_class_name`; RMSNorm adds 1
to the weights of every model whose name has "Gemma" in it), norms before and after mixer and feed-forward, layers in parallel
(`parallel_residual`) with one norm (`shared_attention_norm`) or two, the feed-forward (`mlp_class_name`), windows, softcaps.

`attn.qkv` holds the rows of all queries, then keys, then values; before 2025 it was `attn.attn`, with the queries, the key and
the value of one query group after another. `mlp.fc_1` is gate, `fc_2` up (`mlp.swiglu.w1`, `w2`, and `w3` for the way back, in
TinyLlama's). Rope is half-split on the first int(rotary_percentage · head_size) dimensions. Keys that the config leaves out
have the defaults of litgpt's `Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Family
from gguf_tools.families.reading import Config, Inventory, is_number, layer_count
from gguf_tools.families.scratch import experts
from gguf_tools.families.tiny import litgpt as tiny_litgpt
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.rope import LinearScaling, Llama3Scaling, Rope, Scaling
from gguf_tools.model.spec import (
    Activation,
    Attention,
    FeedForward,
    Layer,
    LayerSpec,
    LayerTensors,
    Model,
    Norm,
)
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import TIE
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take

DEFAULTS: Mapping[str, Any] = {
    "block_size": 4096, "norm_class_name": "LayerNorm", "norm_eps": 1e-5, "parallel_residual": True, "n_head": 32,
    "rope_base": 10000, "rotary_percentage": 0.25, "mlp_class_name": "GptNeoxMLP", "gelu_approximate": "none",
}  # fmt: skip
"""Defaults of litgpt's `Config` for what the model depends on."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "norm_class_name": ("LayerNorm", "RMSNorm"),
    "mlp_class_name": ("GptNeoxMLP", "LLaMAMLP", "GemmaMLP", "LLaMAMoE"),
    "gelu_approximate": ("none", "tanh"),
    "norm_qk_type": ("default", "olmo2"),
}
"""The values of keys that name something."""
READ = {
    *DEFAULTS, *CHOICES, "n_layer", "n_embd", "padded_vocab_size", "head_size", "n_query_groups", "intermediate_size", "norm_qk",
    "moe_intermediate_size", "n_expert", "n_expert_per_token", "scale_embeddings", "sliding_window_size",
    "sliding_window_indices", "attention_scores_scalar", "rope_adjustments", "rope_condense_ratio", "name", "norm_1", "norm_2",
    "post_attention_norm", "post_mlp_norm", "shared_attention_norm", "attention_logit_softcapping", "final_logit_softcapping",
    "rope_local_base_freq", "rope_indices", "max_position_embeddings", "max_seq_len", TIE,
}  # fmt: skip
UNUSED = {
    "hf_config", "vocab_size", "padding_multiple", "bias", "attn_bias", "lm_head_bias", "org", "_norm_class", "_mlp_class",
    "rope_n_elem", "norm_topk_prob", "n_topk_groups", "n_topk_scores_per_group",
}  # fmt: skip
"""Keys that the tensors show too, that only name things, or that nothing heeds without `n_expert_groups`."""
NEUTRAL: Mapping[str, Any] = {
    "latent_attention": None, "rope_interleave": False, "first_k_dense_replace": None, "n_shared_expert": 0,
    "n_expert_groups": 0, "routed_scaling_factor": 1.0,
}  # fmt: skip
"""Choices of litgpt, and the value of each with which a model converts."""
NORMS = {
    "mixer_norm": "norm_1", "mixer_post_norm": "post_attention_norm", "ffn_norm": "norm_2", "ffn_post_norm": "post_mlp_norm"
}  # fmt: skip
"""Role of a layer's norm → its name, which is also the key that says whether there is one."""
GATED = {"gate": "fc_1", "up": "fc_2", "down": "proj"}


def matches(checkpoint: Checkpoint) -> bool:
    """`transformer.wte`, and an attention with fused projections by litgpt's name of today or before."""
    names = checkpoint.tensors
    fused = any(f"transformer.h.0.attn.{name}.weight" in names for name in ("qkv", "attn"))
    return "transformer.wte.weight" in names and fused


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError, by the key's name, for choices that have no form here."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    if not config.values:
        raise CheckpointError(
            f"{checkpoint.folder / 'model_config.yaml'}: missing; litgpt writes it beside lit_model.pth, and no shape tells "
            "the number of heads"
        )
    config.values = {**DEFAULTS, **{key: value for key, value in config.values.items() if value is not None}}
    _refuse_others(config)
    context = "max_position_embeddings" if "max_position_embeddings" in config.values else "block_size"
    embedding, output = embedding_and_output(
        inventory, config, "transformer.wte.weight", "lm_head.weight", by_values=True
    )
    vocab, hidden = embedding.shape
    norm = _norm(inventory, config)
    layers = [_layer(inventory, config, n, hidden, norm) for n in range(layer_count(inventory, "transformer.h."))]
    tensors: dict[str, Tensor | None] = {"embedding": embedding, "output": output}
    tensors |= hf.norm(inventory, "transformer.ln_f", norm, "output_norm", hidden)
    biased = "lm_head.bias" in inventory
    tensors["output_bias"] = inventory.take("lm_head.bias", vocab) if biased else None
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=norm,
        context=config.integer(context),
        keys=("padded_vocab_size", "n_embd", "n_layer"),
        fields={
            "embedding_scale": hidden**0.5 if config.flag("scale_embeddings", False) else 1.0,
            "output_bias": biased,
            "logit_softcap": _above_zero(config, "final_logit_softcapping"),
        },
    )


def _refuse_others(config: Config) -> None:
    """UnsupportedError for a choice that does not convert, or a key that is not litgpt's."""
    for key, value in config.values.items():
        if key in NEUTRAL and value not in (NEUTRAL[key], False, 0):
            raise UnsupportedError(
                f"{config.path}: {key} is {value!r:.40}; of litgpt's models those with {NEUTRAL[key]} convert"
            )
        if key in CHOICES and value not in CHOICES[key]:
            raise UnsupportedError(
                f"{config.path}: {key} is {value!r:.40}; of litgpt's models those with {' or '.join(CHOICES[key])} convert"
            )
        if key not in READ | UNUSED | NEUTRAL.keys() and value is not False:
            raise UnsupportedError(
                f"{config.path}: {key} is a key that litgpt's Config does not have in tinyq, so that the model may compute "
                "something else; remove it if it does not"
            )


def _above_zero(config: Config, key: str) -> float | None:
    """A number above 0, or None where the config has none."""
    return None if config.values.get(key) is None else config.positive(key)


def _norm(inventory: Inventory, config: Config) -> Norm:
    """The one class of norm of a model: RMS norms, or layer norms with the weights and biases that the last one has."""
    eps = config.number("norm_eps")
    if config.values["norm_class_name"] == "RMSNorm":
        return Norm(eps, 1.0 if "Gemma" in str(config.values.get("name")) else 0.0)
    weighted, bias = (f"transformer.ln_f.{name}" in inventory for name in ("weight", "bias"))
    return Norm(eps, centred=True, weighted=weighted, bias=bias)


def _layer(inventory: Inventory, config: Config, n: int, hidden: int, norm: Norm) -> Layer:
    """Layer `n`. UnsupportedError for parallel layers of which only the mixer has a norm, and for one norm outside of these."""
    prefix = f"transformer.h.{n}."
    parallel, shared = config.flag("parallel_residual", True), config.flag("shared_attention_norm", False)
    there = {role: config.flag(key, key in ("norm_1", "norm_2")) for role, key in NORMS.items()}
    if shared and not parallel:
        raise UnsupportedError(
            f"{config.path}: shared_attention_norm is true without parallel_residual, as litgpt refuses"
        )
    if parallel and not shared and there["mixer_norm"] != there["ffn_norm"]:
        raise UnsupportedError(
            f"{config.path}: norm_1 and norm_2 differ in parallel layers, of which both halves convert normed, or neither"
        )
    there["ffn_norm"] = there["ffn_norm"] and not shared
    norms = {role: norm if there[role] else None for role in NORMS}
    mixer, part = _attention(inventory, config, n, hidden, norm)
    ffn, ffn_part = _feed_forward(inventory, config, f"{prefix}mlp.", hidden)
    part |= ffn_part
    for role, name in NORMS.items():
        part |= hf.norm(inventory, f"{prefix}{name}", norms[role], role, hidden)
    spec = LayerSpec(
        mixer,
        ffn,
        norms["mixer_norm"],
        norms["ffn_norm"],
        mixer_post_norm=norms["mixer_post_norm"],
        ffn_post_norm=norms["ffn_post_norm"],
        parallel=parallel,
    )
    return Layer(spec, part)


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
        biases = inventory.take(f"{name}.bias", rows)
        part |= {f"attn.{role}_bias": take(biases, chosen) for role, chosen in index.items()}
        bias |= set("qkv")
    if f"{prefix}proj.bias" in inventory:
        part["attn.o_bias"] = inventory.take(f"{prefix}proj.bias", hidden)
        bias.add("o")
    normed = config.flag("norm_qk", False)
    whole = normed and config.values.get("norm_qk_type") == "olmo2"
    for role, count in (("q", heads), ("k", kv_heads)) if normed else ():
        size = count * dim if whole else dim
        part |= hf.norm(inventory, f"{prefix}norm_{role}", norm, f"attn.{role}_norm", size)
    windowed = _listed(config, "sliding_window_size", "sliding_window_indices", n)
    scalar = _above_zero(config, "attention_scores_scalar") if config.values.get("attention_scores_scalar") else None
    spec = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        rope=_rope(config, dim, local=_is_local(config, n)),
        bias=frozenset(bias),
        qk_norm=norm if normed else None,
        norm_whole=whole,
        window=config.integer("sliding_window_size") if windowed else None,
        scale=None if scalar is None else scalar**-0.5,
        softcap=_above_zero(config, "attention_logit_softcapping"),
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


def _listed(config: Config, key: str, indices: str, n: int) -> bool:
    """Whether `key` is given and holds for layer `n`: for every layer, or for those whose entry in `indices` is 1."""
    listed = config.values.get(indices)
    if key not in config.values or listed is None:
        return key in config.values
    if not isinstance(listed, list) or n >= len(listed) or listed[n] not in (0, 1):
        raise config.wrong(indices, listed, "a list with 0 or 1 for each layer")
    return bool(listed[n])


def _is_local(config: Config, n: int) -> bool:
    """Whether layer `n` has the rope of rope_local_base_freq. CheckpointError for rope_indices without it, as litgpt fails."""
    if "rope_indices" in config.values and "rope_local_base_freq" not in config.values:
        raise CheckpointError(
            f"{config.path}: rope_indices is given without rope_local_base_freq; give the base of the layers with 1"
        )
    return _listed(config, "rope_local_base_freq", "rope_indices", n)


def _rope(config: Config, dim: int, *, local: bool) -> Rope:
    """Rope by rope_base, rotary_percentage, rope_condense_ratio (positions divided by it) and rope_adjustments.

    The rope of `local` layers has the base rope_local_base_freq, and no adjustments.
    """
    key = "rope_local_base_freq" if local else "rope_base"
    theta, share = config.number(key), config.number("rotary_percentage")
    turned = int(share * dim)
    if theta <= 0 or turned % 2 or not 0 < turned <= dim:
        raise CheckpointError(
            f"{config.path}: {key} {theta:g} and rotary_percentage {share:g} turn {turned} of {dim} dimensions; expected a "
            "base above 0 and an even number of dimensions"
        )
    ratio, stated = config.number("rope_condense_ratio", 1), config.mapping("rope_adjustments")
    scaling: Scaling | None = LinearScaling(ratio) if ratio != 1 else None
    if stated and not local:
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
    """Two matrices, three with a gate, or experts whose softmax runs over the selected ones."""
    kind = config.values["mlp_class_name"]
    gelu: Activation = "gelu" if config.values["gelu_approximate"] == "none" else "gelu_tanh"
    if kind == "GptNeoxMLP":
        return hf.ungated_mlp(inventory, prefix, hidden, gelu, "fc", "proj")
    if kind != "LLaMAMoE":
        older = f"{prefix}swiglu.w1.weight" in inventory
        names = {"gate": "swiglu.w1", "up": "swiglu.w2", "down": "swiglu.w3"} if older else GATED
        return hf.gated_mlp(inventory, prefix, hidden, activation=gelu if kind == "GemmaMLP" else "silu", names=names)
    key = "n_expert_per_token"
    names = {role: f"experts.{{}}.{name}" for role, name in GATED.items()}
    ffn, part = experts.routed(inventory, config, prefix, hidden, names, config.integer(key), key)
    config.expect("n_expert", ffn.experts)
    return ffn, part


FAMILY = Family(
    name="litgpt",
    title="litgpt (Llama, Pythia, Phi, Gemma, OLMo …), TinyLlama's lit_gpt",
    matches=matches,
    build=build,
    preferred_targets=(
        "llama",
        "granite_swa",
        "qwen3",
        "gptneox",
        "phi2",
        "gemma",
        "gemma2",
        "gemma3",
        "olmo",
        "olmo2",
    ),
    variants={name: expected for name, (_, expected) in tiny_litgpt.VARIANTS.items()},
    tiny=tiny_litgpt.tiny,
)
