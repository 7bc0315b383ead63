"""Falcon-H1 in Hugging Face layout (transformers: FalconH1ForCausalLM): Mamba-2 beside the attention of every layer.

The config multiplies what nearly every matrix gives by a number of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, is_number
from gguf_tools.families.state_space import mamba2, mixer_shapes, step_limit
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.attention import HIDDEN
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Layer, LayerSpec, Mamba2, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint

NORMS = {"mixer_norm": "input_layernorm", "ffn_norm": "pre_ff_layernorm"}


def matches(checkpoint: Checkpoint) -> bool:
    """A state space and attention in the first layer."""
    names = (
        f"model.layers.0.{name}" for name in ("mamba.A_log", "self_attn.q_proj.weight", "feed_forward.up_proj.weight")
    )
    return all(name in checkpoint.tensors for name in names)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model. Raises CheckpointError for missing, leftover or misshapen tensors."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("falcon_h1"))
    factors, limit = multipliers(config), step_limit(config)
    groups, first = config.integer("mamba_n_groups"), config.flag("mamba_norm_before_gate", True)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """A layer with the multipliers of the tensors that it has."""
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}feed_forward.", hidden)
        space, space_part = mamba2(
            inventory, config, f"{prefix}mamba.", hidden, groups=groups, norm=norm, step_limit=limit
        )
        space = replace(space, norm_first=first and space.norm is not None)
        config.expect("intermediate_size", ffn.width)
        config.expect("mamba_rms_norm", space.norm is not None)
        for key, actual in (
            ("mamba_d_ssm", space.inner),
            ("mamba_n_heads", space.heads),
            ("mamba_d_state", space.state),
        ):
            config.expect(key, actual)
        part = {**part, **ffn_part, **space_part}
        applied = tuple((role, factor) for role, factor in factors.items() if factor != 1.0 and role in part)
        return Layer(LayerSpec(mixer, ffn, norm, norm, beside=space, multipliers=applied), part)

    scales = {}
    for key, field in (("embedding_multiplier", "embedding_scale"), ("lm_head_multiplier", "logit_scale")):
        scales[field] = config.number(key, 1.0)
        if not scales[field]:
            raise config.wrong(key, 0.0, "a number above 0")
    last = "model.final_layernorm"
    return assemble(checkpoint, inventory, config, FAMILY.name, layer, names=NORMS, last=last, fields=scales)


def multipliers(config: ClassConfig) -> dict[str, float]:
    """The number that multiplies the matrix or the bias of each role.

    A multiplier of what a matrix reads leaves its bias alone; one of what it gives multiplies both.
    """
    attention, space = config.number("attention_in_multiplier", 1.0), config.number("ssm_in_multiplier", 1.0)
    key, out = config.number("key_multiplier", 1.0), config.number("attention_out_multiplier", 1.0)
    space_out = config.number("ssm_out_multiplier", 1.0)
    gate, down = _numbers(config, "mlp_multipliers", 2)
    found = {"attn.q": attention, "attn.k": attention * key, "attn.v": attention, "attn.k_bias": key}
    for name, factor in zip(("z", "x", "b", "c", "step"), _numbers(config, "ssm_multipliers", 5), strict=True):
        found |= {f"ssm.{name}": space * factor, f"ssm.{name}_bias": factor}
    for role, factor in (("attn.o", out), ("ssm.o", space_out), ("ffn.gate", gate), ("ffn.down", down)):
        found |= {role: factor, f"{role}_bias": factor}
    return found


def _numbers(config: ClassConfig, key: str, count: int) -> tuple[float, ...]:
    """`count` numbers of at least 0, all 1 if the config does not have them."""
    stated = config.values.get(key)
    if stated is None:
        return (1.0,) * count
    if not isinstance(stated, list) or len(stated) != count or not all(is_number(n) and n >= 0 for n in stated):
        raise config.wrong(key, stated, f"{count} numbers of at least 0")
    return tuple(map(float, stated))


_PLACES = ("attention_in", "attention_out", "key", "ssm_in", "ssm_out", "embedding", "lm_head")
SPACE = Mamba2(heads=6, head_dim=8, groups=2, state=16, kernel=4, conv_bias=True)
BASE: Mapping[str, Any] = {
    **tiny_attention.BASE,
    **{f"{place}_multiplier": 1.0 for place in _PLACES},
    "model_type": "falcon_h1",
    "head_dim": 32,
    "mamba_d_ssm": SPACE.inner,
    "mamba_n_heads": SPACE.heads,
    "mamba_d_head": SPACE.head_dim,
    "mamba_n_groups": SPACE.groups,
    "mamba_d_state": SPACE.state,
    "mamba_d_conv": SPACE.kernel,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_rms_norm": False,
    "mamba_norm_before_gate": False,
    "projectors_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "pad_token_id": 0,
}
_SCALED: Mapping[str, Any] = {
    "attention_in_multiplier": 1.25,
    "attention_out_multiplier": 0.9375,
    "key_multiplier": 0.6,
    "ssm_in_multiplier": 1.5,
    "ssm_out_multiplier": 0.7,
    "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
    "mlp_multipliers": [0.8, 1.3],
    "embedding_multiplier": 2.5,
    "lm_head_multiplier": 0.4,
}
_BIASES = {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True, "projectors_bias": True}
_FOLDS = (
    "multipliers folded into the matrices",
    "embedding scale folded into the embeddings",
    "logit scale folded into the final norm",
)
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": (_SCALED, Expected(target="falcon-h1", rewrites=_FOLDS)),
    "normed": (
        {"mamba_rms_norm": True, "mlp_bias": True, "tie_word_embeddings": True, "mamba_conv_bias": False},
        Expected(target="falcon-h1"),
    ),
    "norm-first": (
        {"mamba_rms_norm": True, "mamba_norm_before_gate": True},
        Expected(refused="falcon-h1 does not support a norm of the state space's output before its gate"),
    ),
    "biases": (
        {**_SCALED, **_BIASES},
        Expected(refused="falcon-h1 does not support a bias on the attention output, biases on"),
    ),
}
"""Keys of each variant's config.json, and what converting it must give."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint with a tokenizer: Llama's tensors with Falcon-H1's names, and a mixer in each layer."""
    config = {**BASE, **VARIANTS[variant][0]}
    space = replace(
        SPACE,
        norm=Norm(1e-5) if config["mamba_rms_norm"] else None,
        conv_bias=config["mamba_conv_bias"],
        bias=frozenset(n for n, key in (("in", "mamba_proj_bias"), ("o", "projectors_bias")) if config[key]),
    )
    bias = "qkvo" if config["attention_bias"] else ""
    llama = tiny_attention.shapes(tiny_attention.Variant(config=config, bias=bias, mlp_bias=config["mlp_bias"]))
    renamed = {"model.norm.": "model.final_layernorm.", ".mlp.": ".feed_forward.", ".post_attention_": ".pre_ff_"}
    shapes = {}
    for name, shape in llama.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        shapes[name] = shape
    for n in range(tiny_attention.LAYERS):
        shapes |= {f"model.layers.{n}.mamba.{name}": shape for name, shape in mixer_shapes(space, HIDDEN).items()}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="falcon-h1",
    title="Falcon-H1",
    model_types=("falcon_h1",),
    matches=matches,
    build=build,
    preferred_targets=("falcon-h1",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
