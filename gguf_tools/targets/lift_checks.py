"""Checks of a GGUF that is read as a model, whatever its architecture.

llama.cpp reads some keys for every architecture (`llama_model_base::load_hparams`), of which some change what it computes though
no lifter reads them; numbers out of range end its process by a failed assertion.
"""

from __future__ import annotations

from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.features import parts_of
from gguf_tools.model.norms import Norm
from gguf_tools.model.rope import LongRopeScaling, Rope, YarnScaling
from gguf_tools.model.spec import Attention, Model

MOST_LAYERS, MOST_EXPERTS = 512, 1024
"""LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS of llama-hparams.h."""
SCALINGS = ("none", "linear", "yarn", "longrope")
"""The values of rope.scaling.type that llama.cpp knows; it ends its process for others."""
LIFTED_SIZES = ("step35",)
"""Architectures whose lifter reads the sizes of layers with a window (`…_swa`)."""
UNREAD = {
    "glm4": ("rope.dimension_sections",),
    "glm4moe": ("rope.dimension_sections",),
    "hunyuan-dense": ("rope.scaling.alpha",),
    "lfm2": ("attention.sliding_window",),
    "lfm2moe": ("attention.sliding_window",),
}
"""Keys that an architecture's graph reads where they are not 0, and its lifter does not: rotation in sections, another base of
rope, windows."""
ADVICE = "write the file again"


def check_keys(source: GGUFSource) -> None:
    """Check the keys that llama.cpp reads for every architecture.

    Raises CheckpointError for values for which it ends its process, UnsupportedError for those that tinyq does not compute.
    """
    count, experts = source.integer("block_count"), source.integer("expert_count", 0)
    used, groups = _most(source, "expert_used_count"), source.integer("expert_group_count", 0)
    kind = source.key("rope.scaling.type", "linear")
    nextn = source.integer("nextn_predict_layers", 0)
    selected = f"1 to {experts}, expert_count" if experts else "0, as expert_count is"
    checks = (
        ("block_count", count, 0 < count <= MOST_LAYERS, f"1 to {MOST_LAYERS}"),
        ("nextn_predict_layers", nextn, nextn <= count, f"at most block_count, {count}"),
        ("expert_count", experts, experts <= MOST_EXPERTS, f"at most {MOST_EXPERTS}"),
        ("expert_used_count", used, 0 < used <= experts or used == experts == 0, selected),
        ("rope.scaling.type", repr(kind)[:40], kind in SCALINGS, f"one of {', '.join(SCALINGS)}"),
    )
    for key, found, fits, expected in checks:
        if not fits:
            raise CheckpointError(
                f"{source.path}: metadata {source.architecture}.{key} is {found}; expected {expected}; {ADVICE}"
            )
    if not source.key("attention.causal", True):
        raise _unsupported(source, "attention.causal is false: every token would see those after it")
    if source.key("attention.sliding_window", 0) and source.architecture not in LIFTED_SIZES:
        _check_sizes(source)
    for key in UNREAD.get(source.architecture, ()):
        stated = source.key(key, 0)
        if any(_each(stated)):
            raise _unsupported(source, f"{key} is {repr(stated)[:40]}")
    if groups > 1:
        raise _unsupported(source, f"expert_group_count is {groups}: experts would be selected from some groups alone")


def _check_sizes(source: GGUFSource) -> None:
    """Raise UnsupportedError if layers with a window have heads, or rotate dimensions, of another number."""
    per_head = source.integer("embedding_length", 0) // max(1, _most(source, "attention.head_count"))
    width = source.integer("attention.key_length", per_head)
    sizes = {
        "attention.key_length": width,
        "attention.value_length": source.integer("attention.value_length", per_head),
        "rope.dimension_count": source.integer("rope.dimension_count", width),
    }
    for key, size in sizes.items():
        local = source.integer(f"{key}_swa", size)
        if local != size:
            raise _unsupported(
                source, f"{key}_swa is {local}, and {key} {size}: layers with a window differ from the others"
            )


def check_model(source: GGUFSource, model: Model) -> None:
    """Check numbers of a lifted model. Raises CheckpointError for one out of range, UnsupportedError as `check_keys`."""
    ropes = []
    for part in parts_of(model.spec):
        if isinstance(part, Norm) and part.eps < 0.0:
            raise CheckpointError(
                f"{source.path}: the epsilon of a norm is {part.eps:g} (metadata {source.architecture}.attention.layer_norm_*"
                f"epsilon); expected 0 or more; {ADVICE}"
            )
        if isinstance(part, Attention) and part.rope:
            ropes.append(part.rope)
    factor = source.number("rope.scaling.attn_factor", 1.0)
    if factor != 1.0 and ropes and not any(_has_magnitude(rope) for rope in ropes):
        raise _unsupported(source, f"rope.scaling.attn_factor is {factor:g} beside neither YaRN nor LongRoPE")


def _has_magnitude(rope: Rope) -> bool:
    return isinstance(rope.scaling, YarnScaling | LongRopeScaling)


def _most(source: GGUFSource, name: str) -> int:
    """The largest number of a key that has one for the model or one for each layer; 0 without it."""
    stated = source.key(name, 0)
    numbers = _each(stated)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise CheckpointError(
            f"{source.path}: metadata {source.architecture}.{name} is {repr(stated)[:60]}; expected numbers from 0; {ADVICE}"
        )
    return max(numbers, default=0)


def _each(stated: Any) -> tuple[Any, ...]:
    """The values of a key that has one for the model or one for each layer."""
    return stated if isinstance(stated, tuple) else (stated,)


def _unsupported(source: GGUFSource, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{source.path}: {source.architecture}.{why}, which tinyq's reference does not compute; compare the file with "
        "transformers' own code (--reference FOLDER), or score it as llama.cpp runs it (tinyq eval FILE --suite card)"
    )
