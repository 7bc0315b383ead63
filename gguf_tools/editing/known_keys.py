"""The metadata keys that llama.cpp reads, with the types that it accepts.

Source: `LLM_KV_NAMES` in src/llama-arch.cpp of llama.cpp; the types are those of the variables that `get_key`, `get_key_or_arr`
and `get_arr` read into (src/llama-model.cpp, src/llama-vocab.cpp, src/models/), and for keys that only describe the model those
that gguf-py writes (gguf/gguf_writer.py). `get_key` accepts one type only: a u16 where a u32 is read is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Length = Literal["", "layers", "vocabulary", "sections"]


@dataclass(frozen=True)
class KnownKey:
    """The types of a key by their short names, the usual one first; the length that an array of it has.

    `loaded` says whether llama.cpp reads it when it loads a model, so that a wrong value keeps it from loading.
    """

    types: tuple[str, ...]
    length: Length = ""
    loaded: bool = True


_LAYERS = ("u32", "[u32]", "[i32]", "[bool]")
_FLOAT_LAYERS = ("f32", "[f32]")

_U32 = """
vocab_size context_length embedding_length embedding_length_out embedding_length_per_layer_input features_length block_count
leading_dense_block_count attn_res.block_size expert_shared_feed_forward_length expert_chunk_feed_forward_length expert_count
expert_shared_count expert_group_count expert_group_used_count expert_latent_length expert_gating_func experts_per_group
moe_every_n_layers moe_latent_size nextn_predict_layers n_deepstack_layers pooling_type decoder_start_token_id
decoder_block_count rescale_every_n_layers time_mix_extra_dim time_decay_extra_dim adapters.count adapters.lora_rank
token_shift_count interleave_moe_layer_step full_attention_interval num_loops hrm.layers_per_stack hrm.h_cycles hrm.l_cycles
attention.key_length attention.value_length attention.group_norm_groups attention.q_lora_rank attention.kv_lora_rank
attention.decay_lora_rank attention.iclr_lora_rank attention.value_residual_mix_lora_rank attention.gate_lora_rank
attention.relative_buckets_count attention.sliding_window attention.temperature_length attention.key_length_mla
attention.value_length_mla attention.key_length_swa attention.value_length_swa attention.key_length_mla_swa
attention.value_length_mla_swa attention.kv_lora_rank_swa attention.indexer.head_count attention.indexer.key_length
attention.indexer.top_k attention.indexer.block_size attention.indexer.local_blocks attention.indexer.kpool
attention.output_group_count attention.output_lora_rank attention.shared_kv_layers hyper_connection.count
hyper_connection.sinkhorn_iterations hyper_connection.low_rank ple.ngram_size ple.heads_per_ngram ple.conv_kernel
ple.eos_token_id ple.image_token_id hash_layer_count rope.dimension_count rope.dimension_count_swa
rope.scaling.original_context_length ssm.conv_kernel ssm.inner_size ssm.state_size ssm.time_step_rank ssm.group_count
kda.head_dim wkv.head_size posnet.embedding_length posnet.block_count convnext.embedding_length convnext.block_count
classifier.pooling_type target_hidden_size block_size conv_kernel_size conv_group_size selector_rank selector_top_k
shortconv.l_cache dense_2_feat_in dense_2_feat_out dense_3_feat_in dense_3_feat_out
"""
_F32 = """
activation.situ_beta activation.situ_linear_beta expert_weights_scale expert_group_scale logit_scale attn_logit_softcapping
router_logit_softcapping final_logit_softcapping residual_scale embedding_scale adapters.router_gain attention.max_alibi_bias
attention.clamp_kqv attention.layer_norm_epsilon attention.layer_norm_rms_epsilon attention.group_norm_epsilon attention.scale
attention.output_scale attention.value_scale attention.temperature_scale attention.compress_rope_freq_base
hyper_connection.epsilon hyper_connection.magnitude rope.freq_base rope.freq_base_swa rope.scale_linear rope.scaling.factor
rope.scaling.alpha rope.scaling.attn_factor rope.scaling.yarn_log_multiplier rope.scaling.yarn_ext_factor
rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow kda.gate_lower_bound
"""
_BOOL = """
use_parallel_residual expert_weights_norm swin_norm skip_loop_final_norm hrm.prefix_lm attention.causal
attention.indexer.kpool_select_tail rope.scaling.finetuned ssm.dt_b_c_rms kda.safe_gate norm_before_residual norm_before_fc
"""
_PER_LAYER = """
feed_forward_length expert_feed_forward_length expert_used_count attention.head_count attention.head_count_kv
attention.sliding_window_pattern attention.rope_pattern attention.indexer.types attention.compress_ratios
attention.recurrent_layers
"""
ARCHITECTURE_KEYS: dict[str, KnownKey] = {
    **{name: KnownKey(("u32",)) for name in _U32.split()},
    **{name: KnownKey(("f32",)) for name in _F32.split()},
    **{name: KnownKey(("bool",)) for name in _BOOL.split()},
    **{name: KnownKey(_LAYERS, "layers") for name in _PER_LAYER.split()},
    **{name: KnownKey(_FLOAT_LAYERS, "layers") for name in ("swiglu_clamp_exp", "swiglu_clamp_shexp")},
    **{name: KnownKey(("str",)) for name in ("hidden_activation", "rope.scaling.type")},
    "tensor_data_layout": KnownKey(("str",), loaded=False),
    "rope.dimension_sections": KnownKey(("[i32]", "[u32]", "u32"), "sections"),
    "classifier.output_labels": KnownKey(("[str]",)),
    **{
        name: KnownKey(("[i32]", "[u32]"))
        for name in (
            "deepstack_mapping",
            "adapters.token_ids_activate",
            "adapters.token_ids_substitute",
            "target_layers",
            "ple.layers",
        )
    },
    **{name: KnownKey(("[u64]",)) for name in ("ple.layer_multipliers", "ple.head_offsets", "ple.head_vocab_sizes")},
}
"""What follows `ARCHITECTURE.` in a key."""

_TOKEN_IDS = """
bos eos eot eom unknown seperator padding cls mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep prefix suffix middle
"""
_FLAGS = """
add_bos_token add_eos_token add_sep_token add_space_prefix remove_extra_whitespaces normalizer.lowercase
normalizer.strip_accents
"""
TOKEN_ID_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in _TOKEN_IDS.split())
_DESCRIPTIONS = """
author version organization finetune basename description quantized_by size_label license license.name license.link url doi
uuid repo_url source.url source.doi source.uuid source.repo_url source.huggingface.repository sampling.sequence
"""
_SAMPLING = {
    **dict.fromkeys(("top_k", "penalty_last_n", "mirostat"), "i32"),
    **dict.fromkeys(
        (
            "top_p",
            "min_p",
            "xtc_probability",
            "xtc_threshold",
            "temp",
            "penalty_repeat",
            "mirostat_tau",
            "mirostat_eta",
        ),
        "f32",
    ),
}
WHOLE_KEYS: dict[str, KnownKey] = {
    "general.type": KnownKey(("str",), loaded=False),
    "general.architecture": KnownKey(("str",)),
    "general.quantization_version": KnownKey(("u32",), loaded=False),
    "general.alignment": KnownKey(("u32",)),
    "general.file_type": KnownKey(("u32",)),
    "general.name": KnownKey(("str",)),
    "general.tensor_extra.name": KnownKey(("[str]",)),
    "general.tensor_extra.prec_a4": KnownKey(("[bool]",)),
    **{f"general.{name}": KnownKey(("str",), loaded=False) for name in _DESCRIPTIONS.split()},
    **{f"general.sampling.{name}": KnownKey((kind,), loaded=False) for name, kind in _SAMPLING.items()},
    **{f"general.{name}": KnownKey(("u32",), loaded=False) for name in ("base_model.count", "dataset.count")},
    **{f"general.{name}": KnownKey(("[str]",), loaded=False) for name in ("tags", "languages")},
    "tokenizer.ggml.model": KnownKey(("str",)),
    "tokenizer.ggml.pre": KnownKey(("str",)),
    "tokenizer.ggml.tokens": KnownKey(("[str]",), "vocabulary"),
    "tokenizer.ggml.token_type": KnownKey(("[i32]",), "vocabulary"),
    "tokenizer.ggml.token_type_count": KnownKey(("u32",)),
    "tokenizer.ggml.scores": KnownKey(("[f32]", "[i32]"), "vocabulary"),
    "tokenizer.ggml.merges": KnownKey(("[str]",)),
    "tokenizer.ggml.precompiled_charsmap": KnownKey(("[u8]", "[i8]")),
    "tokenizer.ggml.suppress_tokens": KnownKey(("[i32]",)),
    **{name: KnownKey(("u32",)) for name in TOKEN_ID_KEYS},
    **{f"tokenizer.ggml.{name}": KnownKey(("bool",)) for name in _FLAGS.split()},
    "tokenizer.chat_template": KnownKey(("str",)),
    "tokenizer.chat_templates": KnownKey(("[str]",), loaded=False),
    "tokenizer.huggingface.json": KnownKey(("str",), loaded=False),
    "tokenizer.rwkv.world": KnownKey(("str",), loaded=False),
    "adapter.type": KnownKey(("str",)),
    "adapter.lora.alpha": KnownKey(("f32",)),
    "adapter.lora.task_name": KnownKey(("str",), loaded=False),
    "adapter.lora.prompt_prefix": KnownKey(("str",), loaded=False),
    "adapter.alora.invocation_tokens": KnownKey(("[u32]",)),
    **{f"xielu.{name}": KnownKey(_FLOAT_LAYERS, "layers") for name in ("alpha_n", "alpha_p", "beta", "eps")},
}
"""Keys without an architecture."""

_NUMBERED = re.compile(
    r"general\.(base_model|dataset)\.\d+\.(name|author|version|organization|description|url|doi|uuid|repo_url)"
)
_NAMED_TEMPLATE = re.compile(r"tokenizer\.chat_template\.[\w.-]+")
TEMPLATES = re.compile(r"tokenizer\.chat_template(\.[\w.-]+)?")
"""The keys of chat templates."""


def known_key(key: str, architecture: str) -> KnownKey | None:
    """What llama.cpp expects of a key in a file of this architecture, or None if it does not read it."""
    if key in WHOLE_KEYS:
        return WHOLE_KEYS[key]
    if _NUMBERED.fullmatch(key) or _NAMED_TEMPLATE.fullmatch(key):
        return KnownKey(("str",), loaded=False)
    prefix = f"{architecture}."
    return ARCHITECTURE_KEYS.get(key.removeprefix(prefix)) if key.startswith(prefix) else None


def near_keys(key: str, architecture: str, present: Iterable[str] = ()) -> list[str]:
    """Keys that a misspelt one was probably meant to be, the likeliest first; also one with another architecture's name."""
    other, dot, name = key.partition(".")
    if dot and other != architecture and name in ARCHITECTURE_KEYS:
        return [f"{architecture}.{name}"]
    known = [*WHOLE_KEYS, *(f"{architecture}.{name}" for name in ARCHITECTURE_KEYS), *present]
    return get_close_matches(key, [name for name in dict.fromkeys(known) if name != key], n=2, cutoff=0.88)
