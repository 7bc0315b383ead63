"""Decoders that tinyq has no family for: tiny random ones of transformers' classes, and GGUFs of them by the gguf package."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFValueType, GGUFWriter
from transformers import AutoModelForCausalLM, Gemma2Config, Olmo2Config, PretrainedConfig
from transformers.utils import logging as transformers_logging

from gguf_tools.tokenizers.vocabulary import load_tokenizer
from tests.tiny_models import CONTEXT, VOCAB, write_tokenizer

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
logging.getLogger("transformers").setLevel(logging.ERROR)

HIDDEN, HEADS, KV_HEADS, HEAD, WIDTH, LAYERS, EPS, WINDOW = 64, 4, 2, 16, 96, 2, 1e-5, 8
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": EPS,
}
_BOTH = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_attention_layernorm": "post_attention_norm",
}
_NAMES = {
    "gemma2": _BOTH | {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm"},
    "olmo2": _BOTH | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
}


def config(kind: str) -> PretrainedConfig:
    """Gemma 2 (softcaps, a window in every other layer) or OLMo 2 (norms after the blocks and across all heads)."""
    if kind == "gemma2":
        return Gemma2Config(
            **_COMMON,
            query_pre_attn_scalar=HEAD,
            sliding_window=WINDOW,
            attn_logit_softcapping=20.0,
            final_logit_softcapping=15.0,
            tie_word_embeddings=True,
        )
    return Olmo2Config(**_COMMON, tie_word_embeddings=False)


def write_foreign(folder: Path, kind: str, *, tokenizer: bool = True) -> Path:
    """The checkpoint in `folder`/source and its F32 file, whose path is given back."""
    source = folder / "source"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = AutoModelForCausalLM.from_config(config(kind))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                scale = 0.4 if "norm" in name else 1.0 if "embed" in name else 1.3 / math.sqrt(parameter.shape[-1])
                parameter.copy_(
                    torch.randn(parameter.shape) * scale + (1.0 if kind == "olmo2" and "norm" in name else 0.0)
                )
    made.save_pretrained(source)
    write_tokenizer(folder / "tokenizer")
    if tokenizer:
        write_tokenizer(source)
    return write_gguf(folder / "out.gguf", kind, made.state_dict(), folder / "tokenizer")


def write_gguf(path: Path, kind: str, tensors: dict[str, torch.Tensor], tokenizer: Path) -> Path:
    """A file in llama.cpp's names and terms, by the gguf package."""
    writer = GGUFWriter(path, kind)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_freq_base(10000.0)
    if kind == "gemma2":
        writer.add_sliding_window(WINDOW)
        writer.add_attn_logit_softcapping(20.0)
        writer.add_final_logit_softcapping(15.0)
    for key, field in load_tokenizer(tokenizer, VOCAB, config={}).metadata().items():
        element = None if field.element is None else GGUFValueType(field.element)
        value = list(field.value) if isinstance(field.value, tuple) else field.value
        writer.add_key_value(key, value, GGUFValueType(field.type), element)
    for name, tensor in tensors.items():
        if name != "lm_head.weight" or kind == "olmo2":
            offset = 1.0 if kind == "gemma2" and "norm" in name else 0.0
            writer.add_tensor(f"{_gguf_name(name, kind)}.weight", (tensor + offset).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str, kind: str) -> str:
    name = name.removesuffix(".weight").removeprefix("model.")
    if name in ("embed_tokens", "norm", "lm_head"):
        return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name]
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.{_NAMES[kind][rest]}"
