"""Random small GGUF files in F32, written with the gguf package, for the tests of llama.cpp's runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, TokenType

EMBED, HEADS, KV_HEADS, HEAD, FF = 32, 4, 2, 16, 48
CONTEXT = 256
BYTES = 256
EOS = 257
VOCAB = 260
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + rest.index(byte)) for byte in range(256)]


def add_vocabulary(writer: GGUFWriter, chat: bool, size: int = VOCAB) -> None:
    """A byte-level vocabulary of VOCAB tokens, and unused ones up to `size`."""
    tokens = [*_byte_characters(), "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
    tokens += [f"<|unused {number}|>" for number in range(size - VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * BYTES + [TokenType.CONTROL] * (len(tokens) - BYTES))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(BYTES)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)
    if chat:
        writer.add_chat_template(TEMPLATE)


def _random(rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    tensors: Tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        else:
            tensors[name] = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    return tensors


def dense_tensors(layers: int = 2, seed: int = 0) -> Tensors:
    """A Qwen3 decoder's tensors."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, EMBED), "output_norm.weight": (EMBED,)}
    for layer in range(layers):
        block = {
            "attn_norm": (EMBED,),
            "attn_q": (HEADS * HEAD, EMBED),
            "attn_k": (KV_HEADS * HEAD, EMBED),
            "attn_v": (KV_HEADS * HEAD, EMBED),
            "attn_output": (EMBED, HEADS * HEAD),
            "attn_q_norm": (HEAD,),
            "attn_k_norm": (HEAD,),
            "ffn_norm": (EMBED,),
            "ffn_gate": (FF, EMBED),
            "ffn_up": (FF, EMBED),
            "ffn_down": (EMBED, FF),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    tensors = _random(np.random.default_rng(seed), shapes)
    tensors["token_embd.weight"] *= 4  # logits far enough apart that an argmax is not a toss-up
    return tensors


def write_dense(
    path: Path, tensors: Tensors | None = None, *, layers: int = 2, rope: int = HEAD, chat: bool = False
) -> Path:
    """A Qwen3 file; `rope` other than the head size makes llama.cpp abort when it builds its graph."""
    writer = GGUFWriter(path, "qwen3")
    writer.add_name("tiny dense")
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBED)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    return _finish(writer, dense_tensors(layers) if tensors is None else tensors, chat)


def write_hybrid(path: Path, layers: int = 4, seed: int = 0) -> Path:
    """A Qwen3-Next file: linear attention in even layers, full in odd ones, experts in all."""
    state, key_heads, value_heads, kernel, experts = 16, 2, 4, 4, 4
    key, value = state * key_heads, state * value_heads
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, EMBED), "output_norm.weight": (EMBED,)}
    for layer in range(layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (EMBED,),
            "post_attention_norm.weight": (EMBED,),
            "ffn_gate_inp.weight": (experts, EMBED),
            "ffn_gate_exps.weight": (experts, FF, EMBED),
            "ffn_up_exps.weight": (experts, FF, EMBED),
            "ffn_down_exps.weight": (experts, EMBED, FF),
            "ffn_gate_inp_shexp.weight": (EMBED,),
            "ffn_gate_shexp.weight": (FF, EMBED),
            "ffn_up_shexp.weight": (FF, EMBED),
            "ffn_down_shexp.weight": (EMBED, FF),
        }
        if layer % 2:
            block |= {
                "attn_q.weight": (2 * HEADS * HEAD, EMBED),
                "attn_k.weight": (KV_HEADS * HEAD, EMBED),
                "attn_v.weight": (KV_HEADS * HEAD, EMBED),
                "attn_output.weight": (EMBED, HEADS * HEAD),
                "attn_q_norm.weight": (HEAD,),
                "attn_k_norm.weight": (HEAD,),
            }
        else:
            block |= {
                "attn_qkv.weight": (2 * key + value, EMBED),
                "attn_gate.weight": (value, EMBED),
                "ssm_conv1d.weight": (2 * key + value, kernel),
                "ssm_dt.bias": (value_heads,),
                "ssm_a": (value_heads,),
                "ssm_ba.weight": (2 * value_heads, EMBED),
                "ssm_norm.weight": (state,),
                "ssm_out.weight": (EMBED, value),
            }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    tensors = _random(np.random.default_rng(seed), shapes)
    tensors["token_embd.weight"] *= 4
    for name in tensors:
        if name.endswith("ssm_a"):
            tensors[name] = -np.abs(tensors[name])
    writer = GGUFWriter(path, "qwen3next")
    writer.add_name("tiny hybrid")
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBED)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(FF)
    writer.add_expert_shared_feed_forward_length(FF)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_state_size(state)
    writer.add_ssm_group_count(key_heads)
    writer.add_ssm_time_step_rank(value_heads)
    writer.add_ssm_inner_size(value)
    writer.add_array("qwen3next.attention.recurrent_layers", [layer % 2 == 0 for layer in range(layers)])
    return _finish(writer, tensors, chat=False)


def _finish(writer: GGUFWriter, tensors: Tensors, chat: bool) -> Path:
    add_vocabulary(writer, chat, len(tensors["token_embd.weight"]))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path)  # type: ignore[arg-type]
