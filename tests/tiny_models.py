"""Tiny random checkpoints made from transformers' own classes, in folders as Hugging Face lays them out.

Every weight is far from its initial value, norms, biases and decay rates included: a part that were left out, or read
from the wrong place, would show.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    modeling_rope_utils,
)
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.utils import logging as transformers_logging

# Its progress bars, and its regrets that no faster kernels are installed.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
logging.getLogger("transformers").setLevel(logging.ERROR)
torch.set_num_threads(1)  # more of them wait longer than they work, at this size

VOCAB = 288
"""Rows of the embedding; the tokenizer has fewer tokens, so that some rows are padding."""
CONTEXT = 96
WEIGHTS = "model.safetensors"
SPECIAL = ("<|bos|>", "<|eos|>", "<|im_end|>")

Tensors = dict[str, torch.Tensor]

_COMMON = {
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": True}


def dense(**changes: Any) -> PretrainedConfig:
    """A Qwen3 config."""
    return Qwen3Config(**{**_COMMON, "intermediate_size": 56, **changes})


def moe(**changes: Any) -> PretrainedConfig:
    """A Qwen3-MoE config."""
    return Qwen3MoeConfig(**{**_COMMON, **_EXPERTS, "intermediate_size": 56, **changes})


def hybrid(**changes: Any) -> PretrainedConfig:
    """A Qwen3-Next config: linear, full, linear attention, twice as many value heads as key heads."""
    layers = {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        # llama.cpp has one epsilon for all norms, and that of linear attention's keys is 1e-6 in transformers' code.
        "rms_norm_eps": 1e-6,
        "shared_expert_intermediate_size": 24,
        "intermediate_size": 56,
    }
    merged: dict[str, Any] = {**_COMMON, **_EXPERTS, **layers, **changes}
    return Qwen3NextConfig(**{**merged, "num_hidden_layers": len(merged["layer_types"])})


class _Float64Torch:
    """torch, but what is asked for in float32 comes in float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """transformers' code without its roundings to float32 (of norms, rope, softmax, router and delta rule).

    Models have to be made inside too, because they compute the frequencies of rope then.
    """
    modules = (modeling_rope_utils, modeling_qwen3, modeling_qwen3_moe, modeling_qwen3_next)
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "torch", _Float64Torch())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


_CLASSES = {"qwen3": Qwen3ForCausalLM, "qwen3_moe": Qwen3MoeForCausalLM, "qwen3_next": Qwen3NextForCausalLM}


def network(config: PretrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of transformers' class for `config` with random weights, rounded to `dtype` and held in float64.

    The random numbers are torch's own of `seed`, so a test gets the same model each time.
    """
    config._experts_implementation = "eager"
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(seed)
    # The classes initialise their weights by the global state, which other tests need not see change.
    with torch.random.fork_rng():
        made = _CLASSES[config.model_type](config).eval()
    made.double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            values = _random(name, parameter.shape, generator, config.model_type == "qwen3_next")
            parameter.copy_(values.to(dtype))
    made.config.dtype = dtype
    return made  # type: ignore[no-any-return]


def _random(name: str, shape: torch.Size, generator: torch.Generator, offset: bool) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    last = name.rpartition(".")[2]
    if last == "A_log":
        return noise * 1.5
    if last == "dt_bias":
        return noise * 2.0 - 1.0
    if last == "bias":
        return noise * 0.3
    if "norm" in name:
        # Qwen3-Next's norms, but for the one inside the DeltaNet, hold what is added to 1.
        return noise * 0.4 + (0.0 if offset and "linear_attn" not in name else 1.2)
    scale = {"embed_tokens": 1.0, "mlp.gate.": 2.0, "shared_expert_gate": 1.0, "conv1d": 1.0, "in_proj_ba": 1.5}
    factor = next((value for key, value in scale.items() if key in name), 1.3)
    width = 1 if "embed_tokens" in name else shape[-1]
    return noise * (factor / math.sqrt(width))


def save(made: PreTrainedModel, folder: Path, *, max_shard_size: str | int = "5GB", tokenizer: bool = True) -> Path:
    """The checkpoint as save_pretrained writes it, in the type that `network` rounded it to, with a tokenizer."""
    dtype = made.config.dtype
    rounded = {name: tensor.to(dtype) for name, tensor in made.state_dict().items()}
    if made.config.tie_word_embeddings:
        del rounded["lm_head.weight"]
    made.save_pretrained(folder, state_dict=rounded, max_shard_size=max_shard_size)
    change_config(folder, {"dtype": str(dtype).removeprefix("torch.")})
    if tokenizer:
        write_tokenizer(folder)
    return folder


def checkpoint(
    folder: Path,
    config: PretrainedConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | int = "5GB",
) -> Path:
    """A saved random model of `config`."""
    return save(network(config, seed, dtype), folder, max_shard_size=max_shard_size)


def tensors(folder: Path) -> Tensors:
    """All tensors of a checkpoint in one file."""
    return dict(load_file(folder / WEIGHTS))


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors | None]) -> Path:
    """Rewrites the weights of a checkpoint in one file; `change` alters them in place or gives others."""
    found = tensors(folder)
    kept = change(found)
    found = found if kept is None else kept
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def change_config(folder: Path, changes: Mapping[str, Any], remove: Sequence[str] = ()) -> Path:
    """Sets keys of config.json, and removes others."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}), "utf-8")
    return folder


def fuse_experts(found: Tensors) -> Tensors:
    """Experts one tensor each → `experts.gate_up_proj` and `experts.down_proj`, as transformers holds them."""
    fused = {name: tensor for name, tensor in found.items() if ".mlp.experts." not in name}
    experts: dict[str, dict[tuple[int, str], torch.Tensor]] = {}
    for name, tensor in found.items():
        if ".mlp.experts." in name:
            prefix, _, rest = name.partition("experts.")
            number, projection, _ = rest.split(".")
            experts.setdefault(prefix, {})[int(number), projection] = tensor
    for prefix, parts in experts.items():
        count = 1 + max(number for number, _ in parts)
        fused[f"{prefix}experts.gate_up_proj"] = torch.stack(
            [torch.cat([parts[e, "gate_proj"], parts[e, "up_proj"]]) for e in range(count)]
        )
        fused[f"{prefix}experts.down_proj"] = torch.stack([parts[e, "down_proj"] for e in range(count)])
    return fused


@cache
def _tokenizer_files() -> dict[str, str]:
    """A byte-level BPE: all bytes, a few merges, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("Ġ", "a"), ("o", "n"), ("1", "2")]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    made = HFTokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    config = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "add_bos_token": False}
    return {"tokenizer.json": made.to_str(), "tokenizer_config.json": json.dumps(config)}


def write_tokenizer(folder: Path) -> Path:
    """Puts the tokenizer's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _tokenizer_files().items():
        (folder / name).write_text(text, "utf-8")
    return folder


def logits(made: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """transformers' logits of every position of each sequence, in float64 save where its code rounds to float32."""
    with torch.inference_mode():
        return [made(torch.tensor([list(sequence)])).logits[0] for sequence in sequences]
