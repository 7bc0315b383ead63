"""Tiny GGUF files, one a family of architectures, for llama_model_quantize.

It reads the metadata that an architecture's `load_arch_hparams` asks for and takes any tensor names and shapes, so a few
rows a tensor are enough, and no vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

ROWS = 3
EXPERTS = 2

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TinyModel:
    """Metadata (keys without the architecture) and tensors (numpy order) of a model."""

    arch: str
    metadata: Mapping[str, object]
    shapes: Shapes

    @property
    def keys(self) -> dict[str, object]:
        """The metadata as a GGUF reader gives it."""
        return {"general.architecture": self.arch, **{f"{self.arch}.{key}": v for key, v in self.metadata.items()}}


def _ends(hidden: int, tied: bool) -> Shapes:
    ends: Shapes = {"token_embd.weight": (ROWS, hidden), "output_norm.weight": (hidden,)}
    return ends if tied else {**ends, "output.weight": (ROWS, hidden)}


def _attention(at: str, hidden: int, inner: int, qk_norm: bool = True, bias: bool = False) -> Shapes:
    found: Shapes = {f"{at}attn_{part}.weight": (ROWS, hidden) for part in ("q", "k", "v")}
    found[f"{at}attn_output.weight"] = (ROWS, inner)
    found[f"{at}attn_norm.weight"] = (hidden,)
    if qk_norm:
        found |= {f"{at}attn_{part}_norm.weight": (16,) for part in ("q", "k")}
    if bias:
        found |= {f"{at}attn_{part}.bias": (ROWS,) for part in ("q", "k", "v")}
    return found


def _dense(at: str, hidden: int, inner: int) -> Shapes:
    return {
        f"{at}ffn_norm.weight": (hidden,),
        f"{at}ffn_gate.weight": (ROWS, hidden),
        f"{at}ffn_up.weight": (ROWS, hidden),
        f"{at}ffn_down.weight": (ROWS, inner),
    }


def _experts(at: str, hidden: int, inner: int, experts: int = EXPERTS, shared: bool = True) -> Shapes:
    found: Shapes = {
        f"{at}ffn_norm.weight": (hidden,),
        f"{at}ffn_gate_inp.weight": (experts, hidden),
        f"{at}ffn_gate_exps.weight": (experts, ROWS, hidden),
        f"{at}ffn_up_exps.weight": (experts, ROWS, hidden),
        f"{at}ffn_down_exps.weight": (experts, ROWS, inner),
    }
    if shared:
        found |= {
            f"{at}ffn_gate_inp_shexp.weight": (hidden,),
            f"{at}ffn_gate_shexp.weight": (ROWS, hidden),
            f"{at}ffn_up_shexp.weight": (ROWS, hidden),
            f"{at}ffn_down_shexp.weight": (ROWS, inner),
        }
    return found


def _delta_net(at: str, hidden: int, inner: int, fused: bool) -> Shapes:
    found: Shapes = {
        f"{at}attn_norm.weight": (hidden,),
        f"{at}ssm_conv1d.weight": (64, 4),
        f"{at}ssm_dt.bias": (4,),
        f"{at}ssm_a": (4,),
        f"{at}ssm_norm.weight": (16,),
        f"{at}ssm_out.weight": (ROWS, inner),
        f"{at}attn_gate.weight": (ROWS, hidden),
    }
    if fused:
        return {**found, f"{at}ssm_in.weight": (ROWS, hidden), f"{at}ssm_ba.weight": (ROWS, hidden)}
    return {
        **found,
        f"{at}attn_qkv.weight": (ROWS, hidden),
        f"{at}ssm_alpha.weight": (ROWS, hidden),
        f"{at}ssm_beta.weight": (ROWS, hidden),
    }


def _base(hidden: int, inner: int, layers: int, heads: int, kv_heads: int | list[int]) -> dict[str, object]:
    return {
        "context_length": 64,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "block_count": layers,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }


_MOE: dict[str, object] = {"expert_count": EXPERTS, "expert_used_count": 1, "expert_feed_forward_length": 64}
_SSM: dict[str, object] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 64,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
}


def llama_model(hidden: int, inner: int, layers: int = 16, kv_heads: int = 1, tied: bool = False) -> TinyModel:
    """Llama: dense, query groups of 8 / `kv_heads`."""
    shapes = _ends(hidden, tied)
    for n in range(layers):
        shapes |= _attention(f"blk.{n}.", hidden, hidden, qk_norm=False) | _dense(f"blk.{n}.", hidden, inner)
    return TinyModel("llama", _base(hidden, inner, layers, 8, kv_heads), shapes)


def mixtral(hidden: int, inner: int) -> TinyModel:
    """Llama with 8 experts, which has rules of its own."""
    shapes = _ends(hidden, False)
    for n in range(9):
        shapes |= _attention(f"blk.{n}.", hidden, hidden, qk_norm=False)
        shapes |= _experts(f"blk.{n}.", hidden, inner, experts=8, shared=False)
    metadata = {**_base(hidden, inner, 9, 8, 2), "expert_count": 8, "expert_used_count": 2}
    return TinyModel("llama", metadata, shapes)


def seventy_b(arch: str, layers: int = 80, kv_heads: int = 8) -> TinyModel:
    """As many layers as a 70B model has, of which only the values."""
    shapes = _ends(256, False) | {f"blk.{n}.attn_v.weight": (ROWS, 256) for n in range(layers)}
    metadata = {**_base(256, 256, layers, 8, kv_heads), "attention.layer_norm_epsilon": 1e-5}
    return TinyModel(arch, metadata, shapes)


def deep(layers: int) -> TinyModel:
    """A Llama of that many layers, of which only the values and the last matrices."""
    parts = ("attn_v", "ffn_down")
    shapes = _ends(256, False) | {f"blk.{n}.{part}.weight": (2, 256) for n in range(layers) for part in parts}
    return TinyModel("llama", _base(256, 256, layers, 8, 8), shapes)


def qwen3(hidden: int, inner: int) -> TinyModel:
    """Qwen3: dense, norms on queries and keys, tied."""
    shapes = _ends(hidden, True)
    for n in range(12):
        shapes |= _attention(f"blk.{n}.", hidden, hidden) | _dense(f"blk.{n}.", hidden, inner)
    return TinyModel("qwen3", _base(hidden, inner, 12, 4, 2), shapes)


def qwen3moe(hidden: int, inner: int) -> TinyModel:
    """Qwen3-MoE: experts in every layer."""
    shapes = _ends(hidden, False)
    for n in range(11):
        shapes |= _attention(f"blk.{n}.", hidden, hidden) | _experts(f"blk.{n}.", hidden, inner, shared=False)
    return TinyModel("qwen3moe", {**_base(hidden, inner, 11, 8, 2), **_MOE}, shapes)


def _qwen_hybrid(arch: str, hidden: int, inner: int, fused: bool, extra: dict[str, object]) -> TinyModel:
    shapes, kv_heads = _ends(hidden, False), []
    for n in range(8):
        full = n % 4 == 3
        kv_heads.append(1 if full else 0)
        shapes |= _attention(f"blk.{n}.", hidden, hidden) if full else _delta_net(f"blk.{n}.", hidden, inner, fused)
        shapes |= _experts(f"blk.{n}.", hidden, inner)
    return TinyModel(arch, {**_base(hidden, inner, 8, 8, kv_heads), **_MOE, **_SSM, **extra}, shapes)


def qwen3next(hidden: int, inner: int) -> TinyModel:
    """Qwen3-Next: recurrent and full layers, a shared expert; no key/value heads in layer 0."""
    return _qwen_hybrid("qwen3next", hidden, inner, True, {})


def qwen35moe(hidden: int, inner: int) -> TinyModel:
    """Qwen3.5-MoE: like Qwen3-Next, with separate projections (fused qkv in recurrent layers)."""
    return _qwen_hybrid("qwen35moe", hidden, inner, False, {"rope.dimension_sections": [8, 8, 0, 0]})


def step35(hidden: int, inner: int) -> TinyModel:
    """Step 3.5: dense layers first, then experts with a shared one."""
    shapes = _ends(hidden, False)
    for n in range(9):
        at = f"blk.{n}."
        shapes |= _attention(at, hidden, hidden) | {f"{at}attn_gate.weight": (ROWS, hidden)}
        shapes |= _dense(at, hidden, inner) if n < 3 else _experts(at, hidden, inner)
        shapes |= {} if n < 3 else {f"{at}exp_probs_b.bias": (EXPERTS,)}
    extra = {"attention.sliding_window": 64, "attention.sliding_window_pattern": [True] * 9}
    return TinyModel("step35", {**_base(hidden, inner, 9, 8, 1), **_MOE, **extra}, shapes)


def glm4moe(hidden: int, inner: int) -> TinyModel:
    """GLM-4.5: a leading dense layer, biases, and a prediction (MTP) layer at the end."""
    shapes = _ends(hidden, False)
    for n in range(10):
        at = f"blk.{n}."
        shapes |= _attention(at, hidden, hidden, bias=True)
        shapes |= _dense(at, hidden, inner) if n < 1 else _experts(at, hidden, inner)
        shapes |= {f"{at}nextn.eh_proj.weight": (ROWS, 2 * hidden)} if n == 9 else {}
    extra = {"expert_shared_count": 1, "leading_dense_block_count": 1, "nextn_predict_layers": 1}
    return TinyModel("glm4moe", {**_base(hidden, inner, 10, 8, 1), **_MOE, **extra}, shapes)


def falcon(hidden: int, inner: int) -> TinyModel:
    """Falcon: fused qkv, no gate, recipes of its own."""
    shapes = _ends(hidden, False)
    for n in range(17):
        at = f"blk.{n}."
        shapes |= {
            f"{at}attn_norm.weight": (hidden,),
            f"{at}attn_qkv.weight": (ROWS, hidden),
            f"{at}attn_output.weight": (ROWS, hidden),
            f"{at}ffn_up.weight": (ROWS, hidden),
            f"{at}ffn_down.weight": (ROWS, inner),
        }
    return TinyModel("falcon", {**_base(hidden, inner, 17, 8, 8), "attention.layer_norm_epsilon": 1e-5}, shapes)


FAMILIES: Mapping[str, Callable[[], TinyModel]] = {
    "llama-gqa8": lambda: llama_model(256, 512),
    "llama-tied": lambda: llama_model(512, 256, layers=5, kv_heads=8, tied=True),
    "llama-640": lambda: llama_model(640, 128, layers=9, kv_heads=2),
    "llama-96": lambda: llama_model(96, 48, layers=9, kv_heads=8, tied=True),
    "mixtral": lambda: mixtral(256, 512),
    "mixtral-640": lambda: mixtral(640, 256),
    "qwen3": lambda: qwen3(256, 768),
    "qwen3-128": lambda: qwen3(128, 256),
    "qwen3moe": lambda: qwen3moe(256, 256),
    "qwen3moe-640": lambda: qwen3moe(640, 48),
    "qwen3next": lambda: qwen3next(256, 512),
    "qwen3next-128": lambda: qwen3next(128, 640),
    "qwen35moe": lambda: qwen35moe(256, 256),
    "qwen35moe-96": lambda: qwen35moe(96, 256),
    "step35": lambda: step35(256, 256),
    "step35-640": lambda: step35(640, 256),
    "glm4moe": lambda: glm4moe(256, 256),
    "glm4moe-128": lambda: glm4moe(128, 96),
    "falcon": lambda: falcon(256, 256),
}

SEVENTY_B: Mapping[str, Callable[[], TinyModel]] = {
    "llama": lambda: seventy_b("llama", kv_heads=1),
    "llama-65b": lambda: seventy_b("llama"),
    "llama-embed": lambda: seventy_b("llama-embed", kv_heads=1),
    "qwen2": lambda: seventy_b("qwen2"),
    "deci": lambda: seventy_b("deci"),
    "olmo": lambda: seventy_b("olmo"),
    "jais2": lambda: seventy_b("jais2", layers=68),
    "jais2-80": lambda: seventy_b("jais2"),
}


def weights(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Gaussian weights with a heavy tail, a zero block and a constant one, as trained tensors have now and then."""
    rng = np.random.default_rng(seed)
    values: NDArray[np.float32] = (rng.standard_normal(shape) * rng.choice((0.02, 0.02, 0.2), shape)).astype(np.float32)
    flat = values.reshape(-1)
    if seed % 5 == 0:
        flat[:32] = 0.0
        flat[-32:] = 0.125
    return values


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each float: BF16 without rounding."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write(model: TinyModel, path: Path, bf16: bool) -> None:
    """Writes the model; in BF16 all but vectors and the last of every three matrices (so that some F32 ones are in it).

    Tensors are in the order of their reversed names, which is neither llama.cpp's nor a converter's.
    """
    writer = gguf.GGUFWriter(path, model.arch)
    for key, value in model.metadata.items():
        name = f"{model.arch}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            assert isinstance(value, int)
            writer.add_uint32(name, value)
    for seed, name in enumerate(sorted(model.shapes, key=lambda name: name[::-1])):
        values = weights(model.shapes[name], seed)
        if bf16 and values.ndim > 1 and seed % 3:
            raw = to_bf16(values)
            writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
