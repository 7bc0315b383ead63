"""Mamba-2 (transformers: Mamba2ForCausalLM, and the folders of its authors' mamba_ssm): a state space in every layer, no
feed-forwards.

The authors' config has `d_model` and `ssm_cfg`, and their embedding is `backbone.embedding.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import UnsupportedError
from gguf_tools.families.assemble import finished
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_count
from gguf_tools.families.state_space import mamba2, mixer_shapes, step_limit
from gguf_tools.families.tiny.attention import HIDDEN, VOCAB, Shapes
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.spec import Layer, LayerSpec, Mamba2, Model, ModelSpec, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import OUTPUT, TIE

EMBEDDING, OLD_EMBEDDING = "backbone.embeddings.weight", "backbone.embedding.weight"
CONTEXT = 1 << 20
AUTHORS = frozenset(
    {
        *("d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx", "attn_cfg", "rms_norm"),
        *("residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings"),
    }
)
"""Keys of the authors' MambaConfig."""
AUTHORS_MIXER = frozenset({"layer", "d_state", "d_conv", "headdim", "ngroups", "expand", "chunk_size"})
"""Keys of their `ssm_cfg` that change nothing beyond what the shapes tell, and the number of groups."""


def matches(checkpoint: Checkpoint) -> bool:
    """A mixer with a decay for each head, and nothing but mixers."""
    names = checkpoint.tensors
    decay = names.get("backbone.layers.0.mixer.A_log")
    others = ("mlp.", "mixer.x_proj", "mixer.q_proj", "mixer.Wqkv", "norm2.")
    return decay is not None and len(decay.shape) == 1 and not any(part in name for name in names for part in others)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model. Raises CheckpointError for missing, leftover or misshapen tensors."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("mamba2"))
    authors = "ssm_cfg" in config.values
    groups = _authors_groups(config) if authors else config.integer("n_groups")
    activation = config.values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise config.wrong("hidden_act", activation, "silu")
    # The authors' code has the default of its norm.
    norm = Norm(1e-5 if authors else config.number("layer_norm_epsilon"))
    config.assume("max_position_embeddings", CONTEXT, "because a state space has no limit of its own")
    name = EMBEDDING if EMBEDDING in inventory else OLD_EMBEDDING
    embedding, output = embedding_and_output(
        inventory, config, name, OUTPUT, "tie_embeddings" if authors else TIE, by_values=authors
    )
    vocab, hidden = embedding.shape
    count, limit = layer_count(inventory, "backbone.layers."), step_limit(config)
    config.expect("n_layer" if authors else "num_hidden_layers", count)
    layers = []
    for n in range(count):
        prefix = f"backbone.layers.{n}."
        mixer, part = mamba2(inventory, config, f"{prefix}mixer.", hidden, groups=groups, norm=norm, step_limit=limit)
        part["mixer_norm"] = inventory.take(f"{prefix}norm.weight", hidden)
        for key, actual in (("num_heads", mixer.heads), ("head_dim", mixer.head_dim), ("state_size", mixer.state)):
            config.expect(key, actual)
        config.expect("conv_kernel", mixer.kernel)
        layers.append(Layer(LayerSpec(mixer, None, norm, None), part))
    tensors = {"embedding": embedding, "output_norm": inventory.take("backbone.norm_f.weight", hidden)}
    tensors |= {"output": output} if output is not None else {}
    inventory.finish()
    spec = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=config.integer("max_position_embeddings"),
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm,
        tied=output is None,
    )
    return finished(checkpoint, config, FAMILY.name, spec, tensors, layers)


def _authors_groups(config: ClassConfig) -> int:
    """The number of groups by the authors' config, 1 by default; UnsupportedError for a setting that is not implemented."""
    config.refuse_unknown(AUTHORS | {"max_position_embeddings"}, "mamba_ssm's MambaConfig")
    inner = config.mapping("ssm_cfg")
    odd = sorted(inner.keys() - AUTHORS_MIXER) + [
        key for key in ("attn_layer_idx", "d_intermediate") if config.values.get(key)
    ]
    if odd or inner.get("layer", "Mamba2") != "Mamba2" or config.values.get("rms_norm") is False:
        what = odd[0] if odd else "ssm_cfg or rms_norm"
        raise UnsupportedError(
            f"{config.path}: {what} asks for another layer than Mamba-2 with RMS norms, which is not supported"
        )
    groups = inner.get("ngroups", 1)
    if type(groups) is not int or groups < 1:
        raise config.wrong("ssm_cfg.ngroups", groups, "a whole number above 0")
    return groups


HEADS, HEAD_DIM, LAYERS = 4, 32, 3
BASE: Mapping[str, Any] = {
    "model_type": "mamba2",
    "hidden_size": HIDDEN,
    "vocab_size": VOCAB,
    "num_hidden_layers": LAYERS,
    "num_heads": HEADS,
    "head_dim": HEAD_DIM,
    "n_groups": 2,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": HEADS * HEAD_DIM // HIDDEN,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "use_conv_bias": True,
    "use_bias": False,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_ASSUMED = "max_position_embeddings: 1048576 is assumed"
_PLAIN = Expected(target="mamba2", notes=(_ASSUMED,))
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, _PLAIN),
    "tied": ({"tie_word_embeddings": True, "n_groups": 1, "use_conv_bias": False, "conv_kernel": 3}, _PLAIN),
    "authors": (
        {"ssm_cfg": {"layer": "Mamba2", "ngroups": 2}},
        Expected(target="mamba2", notes=(_ASSUMED,), oracle=False),
    ),
    "limited-steps": ({"time_step_limit": [0.1, 0.8]}, Expected(refused="mamba2 does not support limited steps")),
    "biases": ({"use_bias": True}, Expected(refused="biases on the state space's input projection")),
}
"""For each variant: the keys of its config.json, and what converting it must give."""


def shapes(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of all tensors of a small checkpoint."""
    mixer = Mamba2(
        heads=HEADS,
        head_dim=HEAD_DIM,
        groups=config["n_groups"],
        state=config["state_size"],
        kernel=config["conv_kernel"],
        norm=Norm(1e-5),
        conv_bias=config["use_conv_bias"],
        bias=frozenset({"in", "o"}) if config["use_bias"] else frozenset(),
    )
    found: Shapes = {EMBEDDING: (VOCAB, HIDDEN), "backbone.norm_f.weight": (HIDDEN,)}
    found |= {} if config[TIE] else {OUTPUT: (VOCAB, HIDDEN)}
    for n in range(LAYERS):
        prefix = f"backbone.layers.{n}."
        found[f"{prefix}norm.weight"] = (HIDDEN,)
        found |= {f"{prefix}mixer.{name}": shape for name, shape in mixer_shapes(mixer, HIDDEN).items()}
    return found


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint with a tokenizer."""
    config = {**BASE, **VARIANTS[variant][0]}
    tensors = random_tensors(shapes(config), seed)
    if "ssm_cfg" in config:
        tensors[OLD_EMBEDDING] = tensors.pop(EMBEDDING)
        stated = {"d_model": HIDDEN, "n_layer": LAYERS, "vocab_size": VOCAB, "tie_embeddings": False, "rms_norm": True}
        config = {**stated, "ssm_cfg": config["ssm_cfg"]}
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="mamba2",
    title="Mamba-2",
    model_types=("mamba2",),
    matches=matches,
    build=build,
    preferred_targets=("mamba2",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
