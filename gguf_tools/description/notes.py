"""The comments in a description: what is not told by shapes, with the other candidates, and what was solved."""

from __future__ import annotations

from typing import get_args

from gguf_tools.description.assignment import Assignment
from gguf_tools.description.choices import Choices
from gguf_tools.description.forms import head_dims
from gguf_tools.description.schema import KeyPath
from gguf_tools.model.feed_forward import Activation
from gguf_tools.model.spec import Attention, GatedMLP, ModelSpec, MoE

_USUAL = "a usual value: shapes do not tell it"


def candidates(assignment: Assignment, choices: Choices, spec: ModelSpec) -> dict[KeyPath, str]:
    """Place → comment, for everything that shapes do not tell."""
    root = assignment.structure.hidden**0.5
    notes: dict[KeyPath, str] = {
        ("model", "embedding_scale"): f"or {root:g} (√hidden), or another factor on the embeddings",
        ("model", "logit_scale"): "or another factor on the logits",
        ("norm", "eps"): "or 1e-06, 1e-08 …",
        ("norm", "offset"): "or 1.0, if the model adds 1 to the stored weights",
        ("norm", "centred"): "or true: a layer norm instead of an RMS norm",
        ("layer", "parallel"): "or true: mixer and feed-forward read the same",
        ("layer", "residual_scale"): "or another factor on what a layer adds",
    }
    mixer: KeyPath = ("layer", "mixer")
    feed: KeyPath = ("layer", "feed_forward")
    layer = spec.layers[0]
    for form in choices.forms:
        if form.mixer == "Attention":
            others = [str(size) for size in head_dims(form) if size != choices.head_dim]
            notes |= {(*mixer, "head_dim"): f"or {', '.join(others)} (and other numbers of heads)" if others else ""}
    if isinstance(layer.mixer, Attention) and layer.mixer.rope:
        dims = layer.mixer.rope.dims
        notes |= {(*mixer, "rope", "theta"): f"{_USUAL}; false in place of the table [layer.mixer.rope] for none"}
        notes |= {(*mixer, "rope", "dims"): f"or {dims // 2}, {dims // 4}"}
        notes |= {(*mixer, "rope", "pairs"): 'or "interleaved"'}
    if isinstance(layer.feed_forward, MoE):
        router = (*feed, "router")
        notes |= {(*router, "top_k"): f"or 1 to {layer.feed_forward.experts}"}
        notes |= {(*router, "normalised"): "or false"}
        notes |= {(*router, "score"): 'or "sigmoid"'}
        notes |= {(*router, "scale"): "or another factor on the experts' sum"}
    else:
        others = [repr(name).replace("'", '"') for name in get_args(Activation) if name != choices.activation]
        notes |= {(*feed, "activation"): f"or {', '.join(others)}"}
    if isinstance(layer.feed_forward, GatedMLP):
        notes[("tensors", "layer", "ffn.gate")] = "or ffn.up: they have the same shape"
    notes[("tensors", "layer", "attn.k")] = "or attn.v: they have the same shape"
    return {place: text for place, text in notes.items() if text}
