"""Files as llama.cpp's own converter lays them out, written with the gguf package and nothing of tinyq's.

Sources: `conversion/{base,llama,qwen}.py` of llama.cpp for what becomes of each tensor, gguf's TensorNameMap for the names.
Norms, biases, routers and convolutions stay in F32; the order is that of the checkpoint; keys that have defaults are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from gguf_tools.families.tiny.writing import Shapes, random_tensors, write_checkpoint, write_tiny_tokenizer

HIDDEN, WIDTH, HEADS, KV_HEADS, LAYERS, VOCAB, EXPERTS = 256, 256, 4, 2, 2, 288, 4
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
Array = NDArray[np.float32]

_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_MOE = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "mlp_only_layers": []}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": _COMMON | {"model_type": "llama"},
    "qwen3": _COMMON | {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True, "sliding_window": None},
    "qwen2moe": _COMMON
    | _MOE
    | {
        "model_type": "qwen2_moe",
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": 256,
        "sliding_window": None,
    },
}


def write_source(folder: Path, kind: str, seed: int = 1) -> Path:
    """A random checkpoint in BF16 with a tokenizer and a chat template."""
    config = CONFIGS[kind]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for n in range(LAYERS):
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in _layer(kind).items()}
    write_checkpoint(folder, config, random_tensors(shapes, seed), "BF16")
    write_tiny_tokenizer(folder, VOCAB)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "chat_template": TEMPLATE}), "utf-8")
    return folder


def _layer(kind: str) -> Shapes:
    head = HIDDEN // HEADS
    rows = {"q": HEADS * head, "k": KV_HEADS * head, "v": KV_HEADS * head}
    shapes: dict[str, tuple[int, ...]] = {
        f"self_attn.{name}_proj.weight": (size, HIDDEN) for name, size in rows.items()
    }
    shapes["self_attn.o_proj.weight"] = (HIDDEN, HEADS * head)
    shapes |= {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
    if kind == "qwen3":
        shapes |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    if kind == "qwen2moe":
        shapes |= {f"self_attn.{name}_proj.bias": (size,) for name, size in rows.items()}
        shapes |= {"mlp.gate.weight": (EXPERTS, HIDDEN), "mlp.shared_expert_gate.weight": (1, HIDDEN)}
        for part in ("shared_expert", *(f"experts.{n}" for n in range(EXPERTS))):
            shapes |= _mlp(f"mlp.{part}.", 256)
        return shapes
    return {**shapes, **_mlp("mlp.", WIDTH)}


def _mlp(prefix: str, width: int) -> Shapes:
    return {
        f"{prefix}gate_proj.weight": (width, HIDDEN),
        f"{prefix}up_proj.weight": (width, HIDDEN),
        f"{prefix}down_proj.weight": (HIDDEN, width),
    }


def tensors_of(source: Path, kind: str) -> dict[str, Array]:
    """The source's tensors under GGUF names, changed as the converter changes them, in float32."""
    found = _read(source)
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, LAYERS)
    out: dict[str, Array] = {}
    for name, values in found.items():
        if ".mlp.experts." in name:
            continue
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        if kind == "llama" and heads:
            # LlamaModel.permute
            values = values.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(values.shape)
        out[_name(names, name)] = values
    for n in range(LAYERS if kind == "qwen2moe" else 0):
        for part in ("gate", "up", "down"):
            merged = f"model.layers.{n}.mlp.experts.{part}_proj.weight"
            each = [found[merged.replace("experts.", f"experts.{e}.")] for e in range(EXPERTS)]
            out[_name(names, merged)] = np.stack(each)
    return out


def _name(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found, name
    return str(found)


def _read(source: Path) -> dict[str, Array]:
    """The checkpoint's numbers, BF16 widened by shifting their bits."""
    import torch
    from safetensors.torch import load_file

    found = load_file(source / "model.safetensors")
    return {name: tensor.to(torch.float32).numpy() for name, tensor in found.items()}


def write_theirs(
    source: Path, kind: str, out: Path, dtype: str = "bf16", change: Mapping[str, Any] | None = None, split: int = 0
) -> Path:
    """The file that the converter would write, all matrices in `dtype`.

    `change` replaces tensors by name (arrays) and metadata by key; `split` is how many tensors a part may have.
    """
    change = dict(change or {})
    config = json.loads((source / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(out, kind, split_max_tensors=split)
    writer.add_type("model")
    writer.add_block_count(LAYERS)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(change.pop("rope_theta", config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if kind == "qwen3":
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if kind == "qwen2moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(256)
        writer.add_expert_shared_feed_forward_length(256)
    _add_vocabulary(writer, source, change)
    for name, values in tensors_of(source, kind).items():
        _add(writer, name, change.pop(name, values), dtype)
    for name, values in change.items():
        _add(writer, name, values, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add(writer: gguf.GGUFWriter, name: str, values: Array, dtype: str) -> None:
    plain = values.ndim == 1 or "ffn_gate_inp" in name or dtype == "f32"
    kind = gguf.GGMLQuantizationType["F32" if plain else dtype.upper()]
    data = np.ascontiguousarray(values, np.float32) if plain else gguf.quants.quantize(values, kind)
    writer.add_tensor(name, data, raw_dtype=kind)


def _add_vocabulary(writer: gguf.GGUFWriter, source: Path, change: dict[str, Any]) -> None:
    document = json.loads((source / "tokenizer.json").read_text("utf-8"))
    ids = {**document["model"]["vocab"], **{token["content"]: token["id"] for token in document["added_tokens"]}}
    special = {token["id"] for token in document["added_tokens"]}
    names = {number: token for token, number in ids.items()}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(change.pop("tokens", [names.get(n, f"[PAD{n}]") for n in range(VOCAB)]))
    writer.add_token_types(
        [kinds.CONTROL if n in special else kinds.NORMAL if n in names else kinds.UNUSED for n in range(VOCAB)]
    )
    writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
    writer.add_bos_token_id(ids["<|bos|>"])
    writer.add_eos_token_id(change.pop("eos", ids["<|eos|>"]))
    writer.add_add_bos_token(False)
    writer.add_chat_template(change.pop("template", TEMPLATE))


def as_arrays(path: Path, root: Path) -> Path:
    """An importance matrix as the arrays that llama_model_quantize takes."""
    from gguf_tools.formats.gguf.imatrix import read_imatrix

    out = root / f"{path.stem}.npz"
    arrays: dict[str, Any] = {name: entry.importance for name, entry in read_imatrix(path).entries.items()}
    np.savez(out, **arrays)
    return out
