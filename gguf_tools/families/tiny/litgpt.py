"""Random small checkpoints in litgpt's files and names, of the models that its one class computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gguf_tools.families.base import Expected
from gguf_tools.families.tiny.writing import Shapes, random_tensors, write_state_dict, write_tiny_tokenizer

HIDDEN, HEADS, KV_HEADS, WIDTH, VOCAB, LAYERS, EXPERTS = 64, 4, 2, 96, 288, 3, 4
_SIZES = {
    "name": "tiny", "block_size": 256, "vocab_size": 266, "padded_vocab_size": VOCAB, "n_layer": LAYERS, "n_embd": HIDDEN,
    "n_head": HEADS, "intermediate_size": WIDTH,
}  # fmt: skip
_BASE = _SIZES | {
    "n_query_groups": KV_HEADS, "rotary_percentage": 1.0, "parallel_residual": False, "bias": False,
    "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "norm_eps": 1e-6,
}  # fmt: skip
"""Llama's choices; those of litgpt's `Config` itself are Pythia's."""
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 64}
_GEMMA = _BASE | {
    "name": "Gemma-tiny", "mlp_class_name": "GemmaMLP", "gelu_approximate": "tanh", "scale_embeddings": True, "head_size": 32
}  # fmt: skip
_GEMMA2 = _GEMMA | {
    "post_attention_norm": True, "post_mlp_norm": True, "attention_scores_scalar": 24, "sliding_window_size": 8,
    "sliding_window_indices": [1, 0, 1],
}  # fmt: skip
_GEMMA3 = _GEMMA2 | {
    "norm_qk": True, "rope_base": 1000000, "rope_local_base_freq": 10000.0, "rope_indices": [1, 0, 1],
    "rope_adjustments": {"factor": 8.0},
}  # fmt: skip
_CAPS = {"attention_logit_softcapping": 5.0, "final_logit_softcapping": 6.0}
_OLMO2 = _BASE | {
    "norm_1": False, "norm_2": False, "norm_qk": True, "norm_qk_type": "olmo2", "post_attention_norm": True,
    "post_mlp_norm": True,
}  # fmt: skip
_AS_LLAMA = Expected(target="llama", rewrites=("rope in interleaved pairs",), oracle=False)
_SAID_TWICE = ("lm_head.weight repeats the embedding",)
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "llama": (_BASE, _AS_LLAMA),
    "llama 3": (_BASE | {"rope_base": 500000, "rope_adjustments": _LLAMA3}, _AS_LLAMA),
    "legacy qkv": (_BASE, _AS_LLAMA),
    "tinyllama": (_BASE | {"rope_condense_ratio": 2}, _AS_LLAMA),
    "biases": (_BASE | {"bias": True}, _AS_LLAMA),
    "qwen3": (
        _BASE | {"norm_qk": True, "head_size": 32, "rope_base": 1000000},
        Expected(target="qwen3", oracle=False),
    ),
    "mixtral": (_BASE | {"mlp_class_name": "LLaMAMoE", "n_expert": EXPERTS, "n_expert_per_token": 2}, _AS_LLAMA),
    "window": (
        _BASE | {"sliding_window_size": 8, "sliding_window_indices": [1, 0, 1]},
        Expected(target="granite_swa", rewrites=("rope in interleaved pairs",), oracle=False),
    ),
    "pythia": (_SIZES, Expected(target="gptneox", oracle=False)),
    "phi": (
        _SIZES
        | {"rotary_percentage": 0.5, "shared_attention_norm": True, "lm_head_bias": True, "gelu_approximate": "tanh"},
        Expected(target="phi2", oracle=False),
    ),
    "stablelm": (
        _SIZES | {"parallel_residual": False, "bias": False, "mlp_class_name": "LLaMAMLP"},
        Expected(target="stablelm", oracle=False),
    ),
    "gemma": (_GEMMA, Expected(target="gemma", notes=_SAID_TWICE, oracle=False)),
    "gemma 2": (_GEMMA2 | _CAPS, Expected(target="gemma2", notes=_SAID_TWICE, oracle=False)),
    "gemma 3": (_GEMMA3, Expected(target="gemma3", notes=_SAID_TWICE, oracle=False)),
    "olmo": (
        _BASE | {"name": "OLMo-tiny", "norm_class_name": "LayerNorm", "n_query_groups": HEADS},
        Expected(target="olmo", rewrites=("rope in interleaved pairs",), oracle=False),
    ),
    "olmo 2": (_OLMO2, Expected(target="olmo2", oracle=False)),
}
"""model_config.yaml of each variant, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint in the files and names of litgpt, or of TinyLlama's older copy of it."""
    config = VARIANTS[variant][0]
    offset = "Gemma" in config["name"]
    gain = {"wte": 1.0, "mlp.gate.": 2.0, "lm_head.weight": 1.3}
    drawn = random_tensors(_shapes(config, variant), seed, norm_centre=0.2 if offset else 1.2, gain=gain)
    # Drawn as a norm's, under a name that says so.
    tensors = {name.replace("norm_f", "ln_f"): values for name, values in drawn.items()}
    if offset:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    write_state_dict(folder / "lit_model.pth", tensors)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(dict(config)), "utf-8")
    write_tiny_tokenizer(folder, VOCAB)


def _shapes(config: Mapping[str, Any], variant: str) -> Shapes:
    """The names and shapes of the variant's tensors, with norm_f for ln_f."""
    dim, groups = config.get("head_size", HIDDEN // HEADS), config.get("n_query_groups", HEADS)
    older = variant in ("legacy qkv", "tinyllama")
    linear = {
        f"attn.{'attn' if older else 'qkv'}": ((HEADS + 2 * groups) * dim, HIDDEN),
        "attn.proj": (HIDDEN, HEADS * dim),
    }
    mlp = {"fc_1": (WIDTH, HIDDEN), "fc_2": (WIDTH, HIDDEN), "proj": (HIDDEN, WIDTH)}
    if "mlp_class_name" not in config:
        mlp = {"fc": (WIDTH, HIDDEN), "proj": (HIDDEN, WIDTH)}
    if variant == "tinyllama":
        mlp = {f"swiglu.w{n}": shape for n, shape in enumerate(mlp.values(), 1)}
    if "n_expert" in config:
        linear["mlp.gate"] = (EXPERTS, HIDDEN)
        linear |= {f"mlp.experts.{e}.{name}": shape for e in range(EXPERTS) for name, shape in mlp.items()}
    else:
        linear |= {f"mlp.{name}": shape for name, shape in mlp.items()}
    layer = config.get("norm_class_name") != "RMSNorm"
    kinds = () if "OLMo" in config["name"] else ("weight", "bias") if layer else ("weight",)
    norms = [name for name in ("norm_1", "norm_2") if config.get(name, True)]
    norms.remove("norm_2") if config.get("shared_attention_norm") else None
    norms += [name for name in ("post_attention_norm", "post_mlp_norm") if config.get(name)]
    sizes = dict.fromkeys(norms, HIDDEN)
    if config.get("norm_qk"):
        whole = config.get("norm_qk_type") == "olmo2"
        sizes |= {f"attn.norm_{role}": dim * (count if whole else 1) for role, count in (("q", HEADS), ("k", groups))}
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    shapes |= {"lm_head.bias": (VOCAB,)} if config.get("lm_head_bias") else {}
    for n in range(LAYERS):
        prefix = f"transformer.h.{n}."
        shapes |= {f"{prefix}{name}.{kind}": (size,) for name, size in sizes.items() for kind in kinds}
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in linear.items()}
        if config.get("bias", True):
            shapes |= {f"{prefix}{name}.bias": shape[:1] for name, shape in linear.items()}
    return shapes | {f"transformer.norm_f.{kind}": (HIDDEN,) for kind in kinds}
