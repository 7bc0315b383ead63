"""Random small GGUF files of llama.cpp's architectures, which can be written with their layers in any order.

`Tiny.write` with an order is what surgery must come out as, made without it: each layer's tensors, its entry in every array with
a value a layer, and its part of the tensors outside of the layers are laid out anew from the arrays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from tests.tiny_gguf import VOCAB, Array, add_vocabulary

EMBED, HEADS, HEAD, FF, EXPERTS = 64, 2, 32, 64, 4
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A model: numbers by key without prefix, arrays with a value a layer, tensors outside, of each layer, and in parts.

    `columns` and `rows` are tensors that hold a part for each layer, each as a list of those parts.
    """

    arch: str
    keys: dict[str, Any]
    arrays: dict[str, list[Any]] = field(default_factory=dict)
    outside: dict[str, Array]
    layers: list[dict[str, Array]]
    columns: dict[str, list[Array]] = field(default_factory=dict)
    rows: dict[str, list[Array]] = field(default_factory=dict)

    def write(self, path: Path, order: Sequence[int] | None = None, **keys: Any) -> Path:
        """The file, with the layers of `order` in place of all in theirs; `keys` replace numbers."""
        order = range(len(self.layers)) if order is None else order
        writer = GGUFWriter(path, self.arch)
        add_vocabulary(writer, chat=False)
        writer.add_name(f"tiny {self.arch}")
        writer.add_block_count(len(order))
        for key, value in (self.keys | keys).items():
            _add(writer, f"{self.arch}.{key}", value)
        for key, values in self.arrays.items():
            tail = values[len(self.layers) :]
            name = key if key.startswith("xielu") else f"{self.arch}.{key}"
            writer.add_array(name, [*(values[n] for n in order), *tail])
        for name, tensor in self.outside.items():
            writer.add_tensor(name, tensor)
        for name, parts in self.columns.items():
            writer.add_tensor(name, np.ascontiguousarray(np.concatenate([parts[n] for n in order], axis=1)))
        for name, parts in self.rows.items():
            writer.add_tensor(name, np.ascontiguousarray(np.concatenate([parts[n] for n in order])))
        for place, n in enumerate(order):
            for name, tensor in self.layers[n].items():
                writer.add_tensor(f"blk.{place}.{name}", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def changed(self, change: Callable[[int, dict[str, Array]], dict[str, Array]]) -> Tiny:
        """The model with other tensors in its layers."""
        return replace(self, layers=[change(n, layer) for n, layer in enumerate(self.layers)])


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def make(
    arch: str,
    count: int,
    layer: Shapes | Callable[[int], Shapes],
    *,
    keys: dict[str, Any] | None = None,
    seed: int = 0,
    outside: Shapes | None = None,
    **more: Any,
) -> Tiny:
    """A model with random numbers: matrices scaled by their width, vectors about 1 (biases about 0)."""
    rng = np.random.default_rng(seed)
    common = {
        "context_length": 256,
        "embedding_length": EMBED,
        "feed_forward_length": FF,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD,
    }
    given = {"token_embd.weight": (VOCAB, EMBED), "output_norm.weight": (EMBED,), **(outside or {})}
    return Tiny(
        arch=arch,
        keys={key: value for key, value in (common | (keys or {})).items() if value is not None},
        outside={name: number(rng, name, shape) for name, shape in given.items()},
        layers=[
            {name: number(rng, name, shape) for name, shape in (layer(n) if callable(layer) else layer).items()}
            for n in range(count)
        ],
        **more,
    )


def number(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    """A random tensor."""
    if name.endswith("ssm_a"):
        return np.asarray(-0.5 - rng.random(shape), np.float32)
    if len(shape) == 1:
        centre = 0.0 if name.endswith("bias") else 1.0
        return (centre + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    return np.asarray(1.5 * rng.standard_normal(shape) / np.sqrt(shape[-1]), np.float32)


def weights(**shapes: tuple[int, ...]) -> Shapes:
    """Tensors by name without `.weight`."""
    return {f"{name}.weight": shape for name, shape in shapes.items()}


ATTENTION = weights(
    attn_norm=(EMBED,),
    attn_q=(HEADS * HEAD, EMBED),
    attn_k=(HEAD, EMBED),
    attn_v=(HEAD, EMBED),
    attn_output=(EMBED, HEADS * HEAD),
)
QK_NORM = weights(attn_q_norm=(HEAD,), attn_k_norm=(HEAD,))
DENSE = weights(ffn_gate=(FF, EMBED), ffn_up=(FF, EMBED), ffn_down=(EMBED, FF))
FFN_NORM = weights(ffn_norm=(EMBED,))
POST_NORMS = weights(post_attention_norm=(EMBED,), post_ffw_norm=(EMBED,))
MOE = weights(
    ffn_gate_inp=(EXPERTS, EMBED),
    ffn_gate_exps=(EXPERTS, FF, EMBED),
    ffn_up_exps=(EXPERTS, FF, EMBED),
    ffn_down_exps=(EXPERTS, EMBED, FF),
)
MOE_KEYS = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": FF}
LAYER_NORM = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5}


def llama(count: int = 4) -> Tiny:
    """A plain decoder."""
    return make("llama", count, ATTENTION | FFN_NORM | DENSE)


def gemma3(count: int = 4, *, size: int = HEAD, pattern: list[bool] | None = None) -> Tiny:
    """Sliding windows by a period of 6, or by an array; `size` is the key length."""
    layer = ATTENTION | FFN_NORM | DENSE | POST_NORMS
    layer |= weights(
        attn_q=(HEADS * size, EMBED), attn_k=(size, EMBED), attn_v=(size, EMBED), attn_output=(EMBED, HEADS * size)
    )
    layer |= weights(attn_q_norm=(size,), attn_k_norm=(size,))
    keys = {
        "attention.sliding_window": 4,
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "rope.freq_base": 1e6,
    }
    arrays = {"attention.sliding_window_pattern": pattern} if pattern else {}
    return make("gemma3", count, layer, keys=keys, arrays=arrays)


def gemma2(count: int, size: int) -> Tiny:
    """The attention scale depends on there being 46 layers."""
    found = gemma3(count, size=size)
    keys = found.keys | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
    plain = found.changed(lambda _, layer: {k: v for k, v in layer.items() if "q_norm" not in k and "k_norm" not in k})
    return replace(plain, arch="gemma2", keys=keys)


def smallthinker(count: int, *, window: int = 64) -> Tiny:
    """Every fourth layer, from the first on, has no RoPE if there is a window."""
    keys = MOE_KEYS | {"attention.sliding_window": window, "expert_gating_func": 2}
    return make("smallthinker", count, ATTENTION | FFN_NORM | MOE, keys=keys)


def smollm3(count: int) -> Tiny:
    """Layers 3, 7, … have no RoPE."""
    return make("smollm3", count, ATTENTION | FFN_NORM | DENSE)


def cohere2(count: int) -> Tiny:
    """Windows in three of four layers, RoPE only in those; parallel halves under one norm."""
    keys = LAYER_NORM | {"attention.sliding_window": 4, "logit_scale": 0.5}
    return make("cohere2", count, ATTENTION | DENSE, keys=keys)


def command_r(count: int) -> Tiny:
    """Norms of queries and keys from 64 layers on."""
    layer = ATTENTION | DENSE
    if count >= 64:
        layer = layer | weights(attn_q_norm=(HEADS, HEAD), attn_k_norm=(1, HEAD))
    return make("command-r", count, layer, keys=LAYER_NORM | {"logit_scale": 0.5})


def minicpm(count: int) -> Tiny:
    """Outputs scaled by 1.4/√layers unless a key says otherwise."""
    return replace(llama(count), arch="minicpm")


def baichuan(count: int) -> Tiny:
    """No positions at all but with 32 or 40 layers."""
    return replace(
        llama(count),
        arch="baichuan",
        outside=llama(1).outside | {"output.weight": llama(1).outside["token_embd.weight"]},
    )


def exaone4(count: int) -> Tiny:
    """Windows only with 64 layers; norms behind the halves."""
    layer = {k: v for k, v in ATTENTION.items() if k != "attn_norm.weight"} | QK_NORM | DENSE | POST_NORMS
    return make("exaone4", count, layer, keys={"attention.sliding_window": 4})


def qwen3moe(count: int = 3) -> Tiny:
    """Experts in every layer."""
    return make("qwen3moe", count, ATTENTION | QK_NORM | FFN_NORM | MOE, keys=MOE_KEYS)


def per_layer(count: int, width: int, seed: int) -> dict[str, Any]:
    """The tensors with a part for each layer of Gemma 3n and 4."""
    rng = np.random.default_rng(seed)
    return {
        "columns": {"per_layer_token_embd.weight": [number(rng, "", (VOCAB, width)) for _ in range(count)]},
        "rows": {"per_layer_model_proj.weight": [number(rng, "", (width, EMBED)) for _ in range(count)]},
    }


GEMMA4_KEYS = {
    "attention.key_length_swa": HEAD,
    "attention.value_length_swa": HEAD,
    "rope.dimension_count_swa": HEAD,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
    "attention.sliding_window": 4,
}


def gemma4(count: int = 6, *, shared: int = 0, width: int = 32) -> Tiny:
    """As E2B: embeddings for each layer, a factor on the stream, the last `shared` layers without keys of their own."""
    layer = ATTENTION | QK_NORM | FFN_NORM | DENSE | POST_NORMS
    layer |= weights(inp_gate=(width, EMBED), proj=(EMBED, width), post_norm=(EMBED,), layer_output_scale=(1,))
    start = count - shared
    # The last layers with keys of their own, which the others read, are a sliding and a full one.
    full = [n == start - 1 or (n > start and n % 2 == 1) if shared else n % 3 == 2 for n in range(count)]
    return make(
        "gemma4",
        count,
        layer,
        keys=GEMMA4_KEYS | {"embedding_length_per_layer_input": width, "attention.shared_kv_layers": shared},
        outside={"per_layer_proj_norm.weight": (width,), "rope_freqs.weight": (HEAD // 2,)},
        arrays={"attention.sliding_window_pattern": [not one for one in full]},
        **per_layer(count, width, 1),
    )


def gemma4_experts(count: int = 3) -> Tiny:
    """As 26B-A4B: a router with a factor for each input, experts with one each."""
    layer = ATTENTION | QK_NORM | FFN_NORM | DENSE | POST_NORMS
    layer |= weights(post_ffw_norm_1=(EMBED,), post_ffw_norm_2=(EMBED,), pre_ffw_norm_2=(EMBED,))
    layer |= weights(
        ffn_gate_inp=(EXPERTS, EMBED), ffn_gate_up_exps=(EXPERTS, 2 * FF, EMBED), ffn_down_exps=(EXPERTS, EMBED, FF)
    )
    layer |= {"ffn_gate_inp.scale": (EMBED,), "ffn_down_exps.scale": (EXPERTS,)}
    return make(
        "gemma4",
        count,
        layer,
        keys=GEMMA4_KEYS | MOE_KEYS | {"embedding_length_per_layer_input": 0},
        outside={"rope_freqs.weight": (HEAD // 2,)},
        arrays={"attention.sliding_window_pattern": [n % 3 != 2 for n in range(count)]},
    )


def gemma3n(count: int = 24) -> Tiny:
    """Sparse activations below layer 10, shared keys and values from 20 on, embeddings for each layer."""
    inputs, rank, width = 4, 64, 256
    layer = ATTENTION | QK_NORM | FFN_NORM | DENSE | POST_NORMS
    layer |= weights(
        post_norm=(EMBED,), altup_correct_scale=(EMBED,), altup_router_norm=(EMBED,), laurel_post_norm=(EMBED,),
        inp_gate=(width, EMBED), proj=(EMBED, width), altup_correct_coef=(inputs, inputs),
        altup_predict_coef=(inputs * inputs, inputs), altup_router=(inputs, EMBED),
        laurel_l=(rank, EMBED), laurel_r=(EMBED, rank),
    )  # fmt: skip
    return make(
        "gemma3n",
        count,
        layer,
        keys={
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 1e4,
            "embedding_length_per_layer_input": 32,
            "altup.num_inputs": inputs,
            "altup.active_idx": 0,
            "attention.sliding_window": 4,
        },
        outside={
            "per_layer_proj_norm.weight": (width,),
            "altup_proj.weight": (inputs - 1, EMBED, EMBED),
            "altup_unembd_proj.weight": (inputs - 1, EMBED, EMBED),
        },
        arrays={"attention.sliding_window_pattern": [n % 5 != 4 for n in range(count)]},
        **per_layer(count, width, 1),
    )


def qwen3next(count: int = 4) -> Tiny:
    """Linear attention but in every second layer, experts in all."""
    state, key_heads, value_heads, kernel = 16, 2, 4, 4
    key, value = state * key_heads, state * value_heads
    shared = weights(
        ffn_gate_shexp=(FF, EMBED), ffn_up_shexp=(FF, EMBED), ffn_down_shexp=(EMBED, FF), ffn_gate_inp_shexp=(EMBED,)
    )
    common = MOE | shared | weights(attn_norm=(EMBED,), post_attention_norm=(EMBED,))
    full = common | ATTENTION | QK_NORM | weights(attn_q=(2 * HEADS * HEAD, EMBED))
    linear = common | weights(
        attn_qkv=(2 * key + value, EMBED),
        attn_gate=(value, EMBED),
        ssm_conv1d=(2 * key + value, kernel),
        ssm_ba=(2 * value_heads, EMBED),
        ssm_norm=(state,),
        ssm_out=(EMBED, value),
    )
    linear |= {"ssm_dt.bias": (value_heads,), "ssm_a": (value_heads,)}
    keys = MOE_KEYS | {
        "expert_shared_feed_forward_length": FF,
        "ssm.conv_kernel": kernel,
        "ssm.state_size": state,
        "ssm.group_count": key_heads,
        "ssm.time_step_rank": value_heads,
        "ssm.inner_size": value,
        "full_attention_interval": 2,
    }
    return make("qwen3next", count, lambda n: full if n % 2 else linear, keys=keys)
