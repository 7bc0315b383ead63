"""nanochat (karpathy/nanochat) as its training writes it: `model_NNNNNN.pt` with `meta_NNNNNN.json` beside it.

The first version (October 2025 to January 2026) is what `families/nanochat.py` describes. Later ones multiply the residual stream
by a learned number before each layer (`resid_lambdas`), which is read here, and add things that no llama.cpp graph has, which are
refused by name (`NOWHERE`). Norms are torch's `rms_norm` without an epsilon, which takes float32's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import finished
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.nanochat import HOSTED
from gguf_tools.families.reading import Config, Inventory, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_state_dict, write_tiny_tokenizer
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.sources.checkpoint import CONTEXT_KEYS, Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take

EPSILON = float(np.finfo(np.float32).eps)
CAP, THETA = 15.0, 10000.0
KEYS = {"sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "window_pattern"}
"""nanochat's `GPTConfig`."""
NOWHERE: Mapping[str, str] = {
    "value_embeds.": "value embeddings (a table of tokens that is added to the values)",
    ".ve_gate.": "value embeddings (a table of tokens that is added to the values)",
    "smear_": "smeared embeddings (each token's mixed with the one before)",
    "backout_lambda": "backout (the stream of a middle layer subtracted before the last norm)",
    "bigram": "bigram embeddings (a table of pairs of tokens)",
}
"""A part of tensor names → what it means, which no llama.cpp graph has."""


def matches(checkpoint: Checkpoint) -> bool:
    """GPT-2's modules with separate projections of q, k and v by nanochat's names."""
    names = checkpoint.tensors
    layer = "transformer.h.0."
    return all(f"{layer}{name}.weight" in names for name in ("attn.c_q", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for what later versions have and llama.cpp has not."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint)
    config.refuse_unknown(KEYS.union(CONTEXT_KEYS), "nanochat's GPTConfig")
    _refuse_newer(inventory)
    rows, hidden = inventory.shape("transformer.wte.weight")
    vocab = config.integer("vocab_size", rows)
    if vocab > rows:
        raise CheckpointError(f"{config.path}: vocab_size is {vocab}, but transformer.wte.weight has {rows} rows")
    heads = config.integer("n_head")
    if hidden % heads:
        raise CheckpointError(f"{config.path}: n_head is {heads}, which does not divide the hidden size {hidden}")
    count, size = layer_count(inventory, "transformer.h."), hidden // heads
    # The user may give another context length; windows follow from the one in training.
    context = config.integer("max_position_embeddings", config.integer("sequence_len"))
    norm = Norm(EPSILON, weighted=False)
    rope = Rope(THETA, size, backwards=True)
    scales = _stream_scales(inventory, count)
    layers = []
    for n, window in enumerate(_windows(config, count)):
        prefix = f"transformer.h.{n}."
        keys = inventory.shape(f"{prefix}attn.c_k.weight")[0]
        kv_heads = keys // size
        if keys % size or heads % max(1, kv_heads):
            raise CheckpointError(
                f"{config.path}: n_head is {heads}, so heads have {size} dimensions, but {prefix}attn.c_k has {keys} rows"
            )
        part = {
            "attn.q": inventory.take(f"{prefix}attn.c_q.weight", hidden, hidden),
            "attn.k": inventory.take(f"{prefix}attn.c_k.weight", keys, hidden),
            "attn.v": inventory.take(f"{prefix}attn.c_v.weight", keys, hidden),
            "attn.o": inventory.take(f"{prefix}attn.c_proj.weight", hidden, hidden),
        }
        mixer = Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            rope=rope,
            qk_norm=norm,
            norm_after_rope=True,
            window=window,
        )
        config.expect("n_kv_head", kv_heads)
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{prefix}mlp.", hidden, "relu2", "c_fc", "c_proj")
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm, input_scale=scales[n]), part | ffn_part))
    tensors: dict[str, Tensor] = {
        "embedding": take(inventory.take("transformer.wte.weight", rows, hidden), range(vocab)),
        "output": take(inventory.take("lm_head.weight", rows, hidden), range(vocab)),
    }
    inventory.finish()
    for key, actual in (("n_layer", count), ("n_embd", hidden)):
        config.expect(key, actual)
    spec = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=context,
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm,
        tied=False,
        embedding_norm=norm,
        logit_softcap=CAP,
    )
    return finished(checkpoint, config, FAMILY.name, spec, tensors, layers)


def _refuse_newer(inventory: Inventory) -> None:
    """Raise UnsupportedError for tensors of what no llama.cpp graph has, by the name of the thing."""
    found = {what: name for name in sorted(inventory.tensors) for part, what in NOWHERE.items() if part in name}
    if found:
        things = ", ".join(f"{what}: {name}" for what, name in found.items())
        raise UnsupportedError(f"{inventory.path}: no llama.cpp architecture has {things}")


def _stream_scales(inventory: Inventory, count: int) -> list[float]:
    """What the residual stream is multiplied by before each layer.

    Before layer i the model computes r_i · x + s_i · x0, where x0 is the normed embedding, which is x before layer 0. Raises
    UnsupportedError for s_i other than 0 in later layers.
    """
    if "resid_lambdas" not in inventory:
        return [1.0] * count
    factors = inventory.take("resid_lambdas", count).array().tolist()
    added = inventory.take("x0_lambdas", count).array().tolist() if "x0_lambdas" in inventory else [0.0] * count
    if any(added[1:]):
        raise UnsupportedError(
            f"{inventory.path}: x0_lambdas are not 0, which add the embedding to the stream before every layer; no llama.cpp "
            "architecture has that together with this model's cap on the logits"
        )
    return [float(factors[0] + added[0]), *map(float, factors[1:])]


def _windows(config: Config, count: int) -> list[int | None]:
    """Each layer's sliding window: by the letters of window_pattern, in turn, S for half the sequence length and the position
    itself, L for none; the last layer has none."""
    pattern = config.values.get("window_pattern") or "L"
    if not isinstance(pattern, str) or set(pattern.upper()) - set("SL"):
        raise config.wrong("window_pattern", pattern, "a text of S and L")
    short = config.integer("sequence_len") // 2 + 1
    windows = [short if pattern[n % len(pattern)].upper() == "S" else None for n in range(count)]
    return [*windows[:-1], None]


HIDDEN, HEADS, LAYERS, VOCAB, ROWS, CONTEXT = 64, 4, 3, 290, 320, 64
_SCALED = ("factors on the residual stream folded into the output projections", *HOSTED)
VARIANTS: Mapping[str, Expected] = {
    "first": Expected(target="gemma3", rewrites=HOSTED, oracle=False),
    "lambdas and windows": Expected(target="gemma3", rewrites=_SCALED, oracle=False),
    "x0": Expected(refused="x0_lambdas are not 0", oracle=False),
    "value embeddings": Expected(refused="no llama.cpp architecture has value embeddings", oracle=False),
}


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint: the state dict and its meta_NNNNNN.json, in BF16 as nanochat saves embeddings."""
    config: dict[str, Any] = {
        "sequence_len": CONTEXT,
        "vocab_size": VOCAB,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_kv_head": HEADS,
    }
    config |= {"n_embd": HIDDEN}
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (ROWS, HIDDEN), "lm_head.weight": (ROWS, HIDDEN)}
    for n in range(LAYERS):
        for name in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj"):
            shapes[f"transformer.h.{n}.{name}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"transformer.h.{n}.mlp.c_fc.weight"] = (4 * HIDDEN, HIDDEN)
        shapes[f"transformer.h.{n}.mlp.c_proj.weight"] = (HIDDEN, 4 * HIDDEN)
    if variant == "value embeddings":
        shapes["value_embeds.1.weight"] = (ROWS, HIDDEN)
    tensors = random_tensors(shapes, seed, gain={"wte": 1.0, "c_q": 1.0, "c_k": 1.0})
    if variant in ("lambdas and windows", "x0"):
        tensors["resid_lambdas"] = np.asarray([1.1, 0.9, 1.25], np.float32)
        tensors["x0_lambdas"] = np.asarray([0.1, 0.05 if variant == "x0" else 0.0, 0.0], np.float32)
    if variant == "lambdas and windows":
        config = {**config, "window_pattern": "SSL"}
    write_state_dict(folder / "model_000650.pt", tensors)
    (folder / "meta_000650.json").write_text(json.dumps({"step": 650, "model_config": config}), "utf-8")
    (folder / "optim_000650.pt").write_bytes(b"not read")
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="nanochat-training",
    title="nanochat, as its training saves it",
    matches=matches,
    build=build,
    preferred_targets=("qwen3", "gemma3"),
    variants=VARIANTS,
    tiny=tiny,
)
