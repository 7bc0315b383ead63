"""What the arrays of golden files mean, and the README that is written beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_tools.text import one_line

MEANINGS: Mapping[str, str] = {
    "tokens": "token ids of the prompt, (tokens,)",
    "logits": "logits of every position, (tokens, vocabulary)",
    "greedy": "ids of the greedy continuation: the largest logit, the lowest id among equals",
    "margins": "difference of the two largest logits at each token of the continuation",
    "embedding": "what the first layer reads, (tokens, hidden)",
    "final_norm": "hidden state after the last norm",
    "mixer_norm": "the layer's input after the norm before attention (or another mixer)",
    "attn.q_product": "query projection without its bias",
    "attn.k_product": "key projection without its bias",
    "attn.v_product": "value projection without its bias",
    "attn.q": "query projection with its bias, heads one after another",
    "attn.k": "key projection with its bias",
    "attn.v": "value projection with its bias",
    "attn.gate": "projection of the attention gate, before its sigmoid",
    "attn.q_normed": "queries after the q/k norm, (tokens, heads, dim)",
    "attn.k_normed": "keys after the q/k norm",
    "attn.q_rope": "queries after RoPE (and after the q/k norm where that comes before), (tokens, heads, dim)",
    "attn.k_rope": "keys after RoPE",
    "attn.shares": "attention probabilities, (tokens, heads, tokens)",
    "attn.heads": "output of the heads, (tokens, heads · dim)",
    "attn.gated": "output of the heads times sigmoid(gate)",
    "delta.qkv": "projections of q, k and v joined",
    "delta.conv": "after the causal depthwise convolution",
    "delta.conv_act": "after SiLU",
    "delta.q_unit": "queries of unit length, repeated for the value heads",
    "delta.k_unit": "keys of unit length, repeated for the value heads",
    "delta.beta": "projection of beta, before its sigmoid",
    "delta.alpha": "projection of alpha, before the bias",
    "delta.step": "softplus(alpha + dt_bias)",
    "delta.log_decay": "logarithm of the state's decay",
    "delta.out": "output of the recurrence, (tokens, heads, dim)",
    "delta.state": "state after the last token, (1, heads, key dim, value dim)",
    "delta.z": "projection of the output gate z",
    "delta.gated": "normed output times SiLU(z)",
    "ssm.in": "projections of z, x, B, C and the time step, joined",
    "ssm.z": "projection of the output gate z",
    "ssm.conv": "x, B and C after the causal depthwise convolution and its bias, before SiLU",
    "ssm.dt": "time step with its bias, before softplus, (tokens, heads)",
    "ssm.step": "time step after softplus (and its limits)",
    "ssm.scan": "output of the recurrence, without D, (tokens, heads, dim)",
    "ssm.state": "state after the last token, (1, heads, dim, state)",
    "ssm.out": "the same with D times x added, (tokens, heads · dim)",
    "ssm.gated": "the same times SiLU(z), and normed where there is a norm",
    "conv.in": "projection of gate, after-gate and values, joined",
    "conv.gated": "gate times values, the convolution's input",
    "conv.conv": "after the causal depthwise convolution",
    "conv.after": "convolution times the after-gate",
    "mixer_out": "output projection of attention or another mixer",
    "mixer_post_norm": "the same after its norm, where there is one",
    "mixer_residual": "residual stream after the mixer",
    "ffn_norm": "what the feed-forward reads",
    "ffn.gate_product": "gate projection without its bias",
    "ffn.up_product": "up projection without its bias",
    "ffn.down_product": "down projection without its bias",
    "ffn.gate": "gate projection",
    "ffn.up": "up projection",
    "ffn.act": "activation(gate) times up",
    "ffn.down": "down projection",
    "moe.logits": "router logits, (tokens, experts)",
    "moe.chosen": "ids of the selected experts, best first, (tokens, top_k)",
    "moe.weights": "weights of the selected experts as they are used",
    "expert.gate": "gate projection of each selected expert, (tokens, top_k, width)",
    "expert.up": "up projection of each selected expert",
    "expert.act": "SiLU(gate) times up of each selected expert",
    "expert.down": "down projection of each selected expert, before its weight",
    "moe.out": "weighted sum of the selected experts",
    "shared.gate": "gate projection of the shared expert",
    "shared.up": "up projection of the shared expert",
    "shared.act": "SiLU(gate) times up of the shared expert",
    "shared.down": "down projection of the shared expert",
    "shared.sigmoid": "logit of the shared expert's gate",
    "shared.gated": "the shared expert's output times its gate",
    "ffn_out": "output of the feed-forward",
    "ffn_post_norm": "the same after its norm, where there is one",
    "layer_out": "residual stream after the layer",
}
"""Name, without prompt and layer → meaning. Activations are (tokens, width) where nothing else is said."""


def readme(facts: Mapping[str, Any]) -> str:
    """The README of a golden folder."""
    model, source = facts["model"], facts["source"]
    rows = "\n".join(f"| {name} | {values['logits']:.1e} |" for name, values in facts["tolerances"].items())
    kinds: dict[str, str] = {}
    for name, array in facts["arrays"].items():
        kinds.setdefault(_general(name), array["meaning"])
    arrays = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in kinds.items())
    return f"""# Golden values of {one_line(source["name"])}

What any engine must compute for this model ({source["family"]}: {model["layers"]} layers of width {model["hidden"]}, vocabulary
{model["vocab_size"]}), computed in float64 by an implementation in plain torch. SHA-256 of the weights: `{source["digest"]}`.

`golden.safetensors` has the arrays (float32, ids int64), `golden.json` their names with shapes, meanings and tolerances, and
the prompts: token ids, text, greedy tokens, and the text of these (`continuation`). N counts the prompts from 0, L the layers.

| array | meaning |
|---|---|
{arrays}

## How to check an engine

Feed `tokens_N`, without adding tokens, and compare with NMSE = Σ(x - golden)² / Σ golden². Up to these values of the logits the
arithmetic explains the difference:

| arithmetic | NMSE |
|---|---|
{rows}

`golden.json` has the same for every intermediate. `greedy_N` must be equal up to the first token whose `margins_N` is as small as
the error of the logits. In Python:

```python
from safetensors.numpy import load_file
golden = load_file("golden.safetensors")
mine = engine_logits(golden["tokens_0"])  # (tokens, vocabulary)
error = ((mine - golden["logits_0"]) ** 2).sum() / (golden["logits_0"] ** 2).sum()
```

`tinyq check THIS_FOLDER --dump FILE` does it for a file with arrays of these names, as many as the engine can give.
"""


def _general(name: str) -> str:
    """An array's name with N for the prompt and L for the layer."""
    head, dot, point = name.partition(".")
    kind = head.partition("_")[0]
    if not dot:
        return f"{kind}_N"
    parts = point.split(".")
    if parts[0] == "layers":
        parts[1] = "L"
    return f"{kind}_N.{'.'.join(parts)}"
