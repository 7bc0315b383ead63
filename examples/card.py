"""The model card of a bundled model."""

from __future__ import annotations

from typing import Any

from evaluate import Results

_ABOUT = {
    "hybrid": (
        "tinyq hybrid",
        "A tiny decoder in the layout of Qwen3-Next: gated delta net and gated attention layers in turn, two "
        "experts of which each token uses one, a shared expert, frozen biases on q, k and v, and YaRN.",
    ),
    "dense": (
        "tinyq dense",
        "A tiny decoder in the layout of Qwen3: plain attention, no biases, no experts.",
    ),
}


def model_card(
    name: str,
    config: dict[str, Any],
    results: Results,
    parameters: int,
    steps: int,
    tokens: int,
    minutes: float,
    seed: int,
) -> str:
    """Write the README.md of the model ``name`` with what was measured."""
    title, about = _ABOUT[name]
    think, no_think = (
        f"{round(share * results.facts)} of {results.facts} ({share:.0%})"
        for share in (results.think_share, results.no_think_share)
    )
    quoted = "\n".join(f"> {line}" for line in results.sample.split("\n"))
    return f"""---
license: mit
language:
- en
library_name: transformers
pipeline_tag: text-generation
model_name: {title}
datasets: []
tags:
- {config["model_type"]}
- tiny
- stories
- test
---

# {title}

{about}
It exists to try out converters and quantization on real, trained weights; it is no use as an assistant.

It was trained from scratch by `examples/train.py --model {name} --seed {seed} --steps {steps}` on stories and
dialogues that the same folder generates, on one CPU thread. The weights are bfloat16 and were rounded to
values that float16 holds, too.

| | |
|---|---|
| Parameters | {parameters:,} |
| Context | {config["max_position_embeddings"]} tokens |
| Training steps | {steps:,} |
| Training tokens | {tokens:,} |
| Training time | {minutes:.0f} minutes |
| Perplexity per token, held-out stories | {results.perplexity:.3f} |
| Facts answered right, thinking | {think} |
| Facts answered right, `/no_think` | {no_think} |

The facts are questions it saw in training; the held-out stories come from the same grammar with another seed.
All was measured greedily on the saved weights with transformers in float32.

Every document begins with `<|bos|>`; stories end with `<|endoftext|>`, dialogues are ChatML. Greedy text from
"Once upon":

{quoted}
"""
