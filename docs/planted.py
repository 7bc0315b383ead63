"""Misreadings of checkpoints, each on a small random one; `docs/misreadings.py` plants them and asks who notices.

A misreading changes what the families see: the config's values, the tensors, or the spec that they make of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.model.spec import Attention, LayerSpec, ModelSpec, MoE
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import InMemory

Array = NDArray[np.float32]
Change = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Misreading:
    """One planted mistake, and the small checkpoint that it is made on.

    `stated` changes config.json on disk first. `sees` is what the family is shown instead of the checkpoint, `states` what
    becomes of the spec that it makes.
    """

    name: str
    family: str
    variant: str = "plain"
    stated: Mapping[str, Any] = field(default_factory=dict)
    sees: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint
    states: Callable[[ModelSpec], ModelSpec] = lambda spec: spec


# What a family is shown


def config(**values: Any) -> Callable[[Checkpoint], Checkpoint]:
    """Other values in config.json."""
    return lambda checkpoint: replace(checkpoint, config={**checkpoint.config, **values})


def nested(key: str, **values: Any) -> Callable[[Checkpoint], Checkpoint]:
    """Other values in an object of config.json."""
    return lambda checkpoint: config(**{key: {**checkpoint.config[key], **values}})(checkpoint)


def tensors(end: str, change: Change) -> Callable[[Checkpoint], Checkpoint]:
    """The tensors whose names end so, changed."""

    def see(checkpoint: Checkpoint) -> Checkpoint:
        changed = {
            name: InMemory(np.ascontiguousarray(change(tensor.array())), (name,))
            for name, tensor in checkpoint.tensors.items()
            if name.endswith(end)
        }
        assert changed, f"no tensor ends in {end}"
        return replace(checkpoint, tensors={**checkpoint.tensors, **changed})

    return see


def exchanged(one: str, other: str) -> Callable[[Checkpoint], Checkpoint]:
    """Tensors under each other's names."""

    def see(checkpoint: Checkpoint) -> Checkpoint:
        names = {name: name.replace(one, "\0").replace(other, one).replace("\0", other) for name in checkpoint.tensors}
        assert any(name != new for name, new in names.items()), f"no tensor is called {one} or {other}"
        return replace(checkpoint, tensors={new: checkpoint.tensors[name] for name, new in names.items()})

    return see


def without(*parts: str) -> Callable[[Checkpoint], Checkpoint]:
    """Tensors left out."""

    def see(checkpoint: Checkpoint) -> Checkpoint:
        kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not any(part in name for part in parts)}
        assert len(kept) < len(checkpoint.tensors), f"no tensor is called {parts}"
        return replace(checkpoint, tensors=kept)

    return see


def both(*steps: Callable[[Checkpoint], Checkpoint]) -> Callable[[Checkpoint], Checkpoint]:
    """One after the other."""

    def see(checkpoint: Checkpoint) -> Checkpoint:
        for step in steps:
            checkpoint = step(checkpoint)
        return checkpoint

    return see


def heads(count: int, change: Change, axis: int = 0) -> Change:
    """A change of the order of `count` equal parts along an axis, the parts being the first axis of what is changed."""

    def apply(values: Array) -> Array:
        moved = np.moveaxis(values, axis, 0)
        parts = moved.reshape(count, moved.shape[0] // count, *moved.shape[1:])
        return np.asarray(np.moveaxis(change(parts).reshape(moved.shape), 0, axis), np.float32)

    return apply


# What becomes of the spec


def layers(change: Callable[[int, LayerSpec], LayerSpec]) -> Callable[[ModelSpec], ModelSpec]:
    """Each layer changed."""
    return lambda spec: replace(spec, layers=tuple(change(n, layer) for n, layer in enumerate(spec.layers)))


def attention(**values: Any) -> Callable[[ModelSpec], ModelSpec]:
    """Fields of every attention, a function of the mixer where the value is one."""

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            return layer
        found = {name: value(mixer) if callable(value) else value for name, value in values.items()}
        return replace(layer, mixer=replace(mixer, **found))

    return layers(change)


def routers(**values: Any) -> Callable[[ModelSpec], ModelSpec]:
    """Fields of every router."""

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        moe = layer.feed_forward
        return (
            replace(layer, feed_forward=replace(moe, router=replace(moe.router, **values)))
            if isinstance(moe, MoE)
            else layer
        )

    return layers(change)


def norms(offset: float) -> Callable[[ModelSpec], ModelSpec]:
    """Another offset of all norms but the DeltaNet's own."""

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        mixer = layer.mixer
        if isinstance(mixer, Attention) and mixer.qk_norm:
            mixer = replace(mixer, qk_norm=replace(mixer.qk_norm, offset=offset))
        assert layer.mixer_norm
        norm = replace(layer.mixer_norm, offset=offset)
        return replace(layer, mixer=mixer, mixer_norm=norm, ffn_norm=norm)

    return lambda spec: replace(layers(change)(spec), output_norm=replace(spec.output_norm, offset=offset))


def windows_elsewhere(spec: ModelSpec) -> ModelSpec:
    """Windows in the layers that have none, and none in those that do."""
    (window,) = {m.window for layer in spec.layers if isinstance(m := layer.mixer, Attention) and m.window}

    def change(_: int, layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.mixer, Attention)
        return replace(layer, mixer=replace(layer.mixer, window=None if layer.mixer.window else window))

    return layers(change)(spec)


def _turned(parts: Array) -> Array:
    return np.roll(parts, 1, axis=0)


def _transposed(groups: int) -> Change:
    """Parts numbered group by group, taken as if numbered across the groups."""
    return lambda parts: parts.reshape(groups, -1, *parts.shape[1:]).swapaxes(0, 1).reshape(parts.shape)


def _swapped_halves(values: Array) -> Array:
    return np.concatenate(np.split(values, 2)[::-1])


Q, O = "self_attn.q_proj.weight", "self_attn.o_proj.weight"  # noqa: E741
MISREADINGS = (
    Misreading(name="rope theta 10,000 for 500,000", family="llama", variant="llama3", sees=config(rope_theta=1e4)),
    Misreading(name="norm epsilon 1e-6 for 1e-5", family="qwen3", sees=config(rms_norm_eps=1e-6)),
    Misreading(name="1 not added to norm weights", family="qwen3-next", variant="irregular", states=norms(0.0)),
    Misreading(name="1 added to norm weights that are whole", family="llama", states=norms(1.0)),
    Misreading(
        name="rope turns neighbours for halves",
        family="llama",
        states=attention(rope=lambda m: replace(m.rope, pairs="interleaved")),
    ),
    Misreading(
        name="rope turns whole heads for halves",
        family="qwen3-next",
        variant="irregular",
        sees=nested("rope_parameters", partial_rotary_factor=1.0),
    ),
    Misreading(name="llama3 rope scaling dropped", family="llama", variant="llama3", sees=config(rope_scaling=None)),
    Misreading(name="YaRN factor 2 for 4", family="qwen2", variant="yarn", sees=nested("rope_scaling", factor=2.0)),
    Misreading(
        name="YaRN's original context 256 for 64",
        family="qwen3",
        variant="yarn",
        sees=nested("rope_scaling", original_max_position_embeddings=256),
    ),
    Misreading(
        name="YaRN's attention factor left out",
        family="qwen3",
        variant="yarn",
        sees=nested("rope_scaling", attention_factor=1.0),
    ),
    Misreading(
        name="sliding window dropped", family="llama", variant="mistral-window", sees=config(sliding_window=None)
    ),
    Misreading(
        name="sliding window one token longer",
        family="llama",
        variant="mistral-window",
        states=attention(window=lambda m: m.window + 1),
    ),
    Misreading(
        name="sliding window of 24 tokens dropped",
        family="llama",
        variant="mistral-window",
        stated={"sliding_window": 24},
        sees=config(sliding_window=None),
    ),
    Misreading(name="windows in the wrong layers", family="qwen3", variant="window", states=windows_elsewhere),
    Misreading(name="head_dim 16 read as 8", family="llama", sees=config(head_dim=8, num_attention_heads=8)),
    Misreading(
        name="query heads grouped across key heads",
        family="qwen3",
        sees=both(tensors(Q, heads(4, _transposed(2))), tensors(O, heads(4, _transposed(2), axis=1))),
    ),
    Misreading(name="q/k norm left out", family="qwen3", sees=without("q_norm", "k_norm")),
    Misreading(name="q norm and k norm exchanged", family="qwen3", sees=exchanged("q_norm", "k_norm")),
    Misreading(name="biases of q, k and v dropped", family="qwen2", sees=without("_proj.bias")),
    Misreading(
        name="attention gate before the query in q_proj",
        family="qwen3-next",
        variant="irregular",
        sees=tensors(Q, heads(8, lambda parts: np.stack([_swapped_halves(part) for part in parts]))),
    ),
    Misreading(name="gate and up exchanged", family="qwen3", sees=exchanged("gate_proj", "up_proj")),
    Misreading(
        name="experts one place off from the router's rows",
        family="qwen3-moe",
        sees=tensors("mlp.gate.weight", _turned),
    ),
    Misreading(name="one expert a token for two", family="mixtral", sees=config(num_experts_per_tok=1)),
    Misreading(
        name="router weights not renormalised",
        family="mixtral",
        states=routers(normalised=False),
    ),
    Misreading(
        name="shared expert's gate dropped",
        family="qwen3-next",
        variant="irregular",
        sees=without("shared_expert_gate"),
    ),
    Misreading(
        name="output tied to the embedding",
        family="qwen3",
        sees=both(without("lm_head"), config(tie_word_embeddings=True)),
    ),
    Misreading(
        name="decay exp(-A_log) for exp(A_log)",
        family="qwen3-next",
        variant="irregular",
        sees=tensors("A_log", np.negative),
    ),
    Misreading(
        name="convolution read backwards",
        family="qwen3-next",
        variant="irregular",
        sees=tensors("conv1d.weight", lambda values: values[..., ::-1]),
    ),
    Misreading(
        name="q and k exchanged in in_proj_qkv",
        family="qwen3.5",
        variant="dense",
        sees=tensors("in_proj_qkv.weight", lambda v: np.concatenate([v[32:64], v[:32], v[64:]])),
    ),
    Misreading(
        name="alpha and beta exchanged", family="qwen3.5", variant="dense", sees=exchanged("in_proj_a.", "in_proj_b.")
    ),
)
