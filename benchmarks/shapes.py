"""Random checkpoints of real sizes, written in the published layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from gguf_tools.bundled import bundled_model

SHARD_BYTES = 500 << 20


@dataclass(frozen=True)
class Qwen3Shape:
    """Sizes of a dense Qwen3."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in the order of the published files; tied embeddings."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for n in range(self.layers):
            layer = {
                "input_layernorm.weight": (self.hidden,),
                "self_attn.q_proj.weight": (q, self.hidden),
                "self_attn.k_proj.weight": (kv, self.hidden),
                "self_attn.v_proj.weight": (kv, self.hidden),
                "self_attn.o_proj.weight": (self.hidden, q),
                "self_attn.q_norm.weight": (self.head_dim,),
                "self_attn.k_norm.weight": (self.head_dim,),
                "post_attention_layernorm.weight": (self.hidden,),
                "mlp.gate_proj.weight": (self.width, self.hidden),
                "mlp.up_proj.weight": (self.width, self.hidden),
                "mlp.down_proj.weight": (self.hidden, self.width),
            }
            out |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
        return out | {"model.norm.weight": (self.hidden,)}

    def config(self) -> dict[str, object]:
        """config.json as transformers writes it."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.width,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }


@dataclass(frozen=True)
class Qwen3MoeShape(Qwen3Shape):
    """Sizes of a Qwen3 with experts, `width` wide each: many small matrices."""

    experts: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in the order of the published files; tied embeddings."""
        out: dict[str, tuple[int, ...]] = {}
        for name, shape in super().tensors().items():
            before, mlp, part = name.partition("mlp.")
            if not mlp:
                out[name] = shape
                continue
            out |= {f"{before}mlp.experts.{n}.{part}": shape for n in range(self.experts)}
            out[f"{before}mlp.gate.weight"] = (self.experts, self.hidden)
        return out

    def config(self) -> dict[str, object]:
        """config.json as transformers writes it."""
        more = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": self.experts,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": self.width,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        return super().config() | more


QWEN3_0_6B = Qwen3Shape(151_936, 1024, 28, 16, 8, 128, 3072)
QWEN3_MOE = Qwen3MoeShape(151_936, 1024, 12, 16, 4, 128, 256, 48)
"""0.65 billion weights, 1728 matrices of experts."""
SHAPES = {"dense": QWEN3_0_6B, "moe": QWEN3_MOE}


def write_checkpoint(folder: Path, shape: Qwen3Shape, seed: int = 0) -> Path:
    """A random bf16 checkpoint with the bundled tokenizer, sharded; what is already there is kept."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    number = 0

    def flush() -> None:
        nonlocal shard, number
        number += 1
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard = {}

    for name, dims in shape.tensors().items():
        values = rng.standard_normal(dims, np.float32)
        values = values * 0.02 if len(dims) > 1 else 1 + values * 0.1
        shard[name] = torch.from_numpy(values).to(torch.bfloat16)
        if sum(array.nbytes for array in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model("dense") / name, folder / name)
    index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    return folder
