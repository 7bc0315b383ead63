"""Reads the rotary embedding (rope) from a transformers config: the old keys rope_theta and rope_scaling, or rope_parameters.

Source: transformers 5, `modeling_rope_utils.py` (convert_rope_params_to_dict, standardize_rope_params).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import is_number
from gguf_tools.model.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    Scaling,
    YarnScaling,
    longrope_magnitude,
)
from gguf_tools.text import shortened

PARTIAL, ORIGINAL = "partial_rotary_factor", "original_max_position_embeddings"


def stated_rope(config: ClassConfig) -> Mapping[str, Any]:
    """The config's rope parameters: rope_scaling if it is not empty, else rope_parameters, else the class's default.

    Raises UnsupportedError if the layer types have different rope parameters.
    """
    old, new = config.mapping("rope_scaling"), config.mapping("rope_parameters")
    if old and new and old != new:
        config.note(
            "config.json has both rope_scaling and rope_parameters: only rope_scaling is used, as transformers does"
        )
    stated = old or new
    if config.values.get("rope_parameters") is None and not old:
        stated = config.rules.rope
        if stated:
            config.assumed("rope_parameters", f"{stated['rope_type']} with rope_theta {stated['rope_theta']:g}")
    if any(isinstance(value, dict) for value in stated.values()):
        raise UnsupportedError(f"{config.path}: rope_parameters differ between layer types, which is not supported yet")
    return stated


def scaling_kind(stated: Mapping[str, Any]) -> str:
    """The name of the rope scaling, "default" for none.

    mrope (vision-language models) counts as "default": its three position axes are equal for text.
    """
    kind = stated.get("rope_type", stated.get("type", "default"))
    return "default" if kind in (None, "mrope") else str(kind)


def rope(config: ClassConfig, head_dim: int, *, whole: bool = False, aliases: Mapping[str, str] = {}) -> Rope:
    """The rope of a layer with heads of `head_dim` dimensions.

    `whole`: if the config names no known class, all dimensions are rotated and partial_rotary_factor is ignored. `aliases` are
    names of scalings that the class reads as others. Raises CheckpointError for unusable values, UnsupportedError for a
    scaling that is not supported.
    """
    stated = stated_rope(config)
    kind = aliases.get(scaling_kind(stated), scaling_kind(stated))
    theta = _theta(config, stated)
    dims = _dims(config, stated, head_dim, kind, whole=whole)
    scaling = _scaling(config, stated, kind, dims)
    if isinstance(scaling, YarnScaling) and theta <= 1:
        raise config.wrong("rope_theta", theta, "a number above 1 for YaRN")
    return Rope(theta, dims, "half", scaling)


def rope_of_kind(config: ClassConfig, head_dim: int, *, local: bool, local_key: str | None, local_theta: float) -> Rope:
    """The rope of the layers with a sliding window (`local`) or of those without, in classes with one for each type.

    rope_parameters has an object for each type. Without one, the base of layers with a window is `local_key`'s value, or else
    `local_theta`. rope_scaling is for layers without a window. UnsupportedError if rope_parameters has no types.
    """
    stated = config.mapping("rope_parameters")
    if stated and not any(isinstance(stated.get(kind), dict) for kind in ("sliding_attention", "full_attention")):
        raise UnsupportedError(f"{config.path}: rope_parameters does not have a value for each type of layer")
    own = copy.copy(config)
    found = stated.get("sliding_attention" if local else "full_attention") or {}
    scaling = {} if local else config.mapping("rope_scaling")
    theta = config.number("rope_theta", config.rules.theta)
    if local:
        theta = config.number(local_key, local_theta) if local_key else local_theta
    changes = {
        "rope_parameters": {"rope_type": "default", **found, **scaling},
        "rope_scaling": None,
        "rope_theta": theta,
    }
    # With parameters for each type, transformers reads the original context length among them alone.
    own.values = {key: value for key, value in config.values.items() if key != ORIGINAL} | changes
    return rope(own, head_dim)


def _theta(config: ClassConfig, stated: Mapping[str, Any]) -> float:
    if "rope_theta" not in stated and "rope_theta" not in config.values:
        if config.kind:
            config.assumed("rope_theta", config.rules.theta)
        return config.rules.theta
    theta = stated["rope_theta"] if "rope_theta" in stated else config.values["rope_theta"]
    if not is_number(theta) or theta <= 0:
        raise config.wrong("rope_theta", theta, "a number above 0")
    return float(theta)


def _dims(config: ClassConfig, stated: Mapping[str, Any], head_dim: int, kind: str, *, whole: bool) -> int:
    """The number of dimensions of a head that rope rotates.

    A class that ignores partial_rotary_factor still uses it for the frequencies of a scaled rope, and then fails to run.
    """
    if PARTIAL in stated:
        partial = stated[PARTIAL]
    elif PARTIAL in config.values:
        partial = 1.0 if config.values[PARTIAL] is None else config.values[PARTIAL]
    elif config.rules.partial_default not in (None, 1.0):
        partial = config.rules.partial_default
        config.assumed(PARTIAL, partial)
    else:
        partial = 1.0
    whole = whole if config.kind is None else not config.rules.partial
    if whole and partial != 1 and kind == "default":
        text = f"{PARTIAL} {shortened(repr(partial))}"
        config.note(f"config.json says {text}, but this model rotates all dimensions of a head: it is ignored")
        partial = 1.0
    if not is_number(partial) or not 0 < partial <= 1:
        raise config.wrong(PARTIAL, partial, "a number above 0, at most 1")
    dims = int(head_dim * partial)
    if whole and dims != head_dim:
        raise UnsupportedError(
            f"{config.path}: {PARTIAL} is {partial}, but this model rotates all dimensions of a head, and rope scaling "
            f"{kind!r} is not defined for fewer; remove {PARTIAL}"
        )
    if dims % 2 or not dims:
        raise CheckpointError(
            f"{config.path}: rope would rotate {dims} of {head_dim} dimensions; expected an even number"
        )
    return dims


def _scaling(config: ClassConfig, stated: Mapping[str, Any], kind: str, dims: int) -> Scaling | None:
    """The scaling of a rope of `dims` dimensions, as transformers' modeling_rope_utils reads it.

    Raises UnsupportedError for an unknown one.
    """
    if kind == "default":
        return None

    def number(key: str, default: float | None = None) -> float:
        value = stated.get(key)
        value = default if value is None else value
        if not is_number(value) or value <= 0:
            raise config.wrong(f"rope_scaling.{key}", value, "a number above 0")
        return float(value)

    if kind == "linear":
        return LinearScaling(number("factor"))
    if kind not in ("yarn", "llama3", "longrope"):
        raise UnsupportedError(
            f"{config.path}: rope scaling {shortened(repr(kind))} is not supported; default, linear, yarn, llama3 and longrope "
            "are"
        )
    original = _original_context(config, stated)
    if kind == "longrope":
        return _longrope(config, stated, dims // 2, original)
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if high <= low:
            raise config.wrong("rope_scaling.high_freq_factor", high, f"a number above low_freq_factor {low}")
        return Llama3Scaling(number("factor"), low, high, original)
    truncate = stated.get("truncate", True)
    if not isinstance(truncate, bool):
        raise config.wrong("rope_scaling.truncate", truncate, "true or false")
    null = "factor" in stated and stated["factor"] is None
    factor = _ratio(config, original) if null else number("factor")
    attention = None if stated.get("attention_factor") is None else number("attention_factor")
    if attention is None and stated.get("mscale") and stated.get("mscale_all_dim"):
        mscale = YarnScaling(factor=factor, original_context=original, attention_factor=None).magnitude - 1
        attention = (mscale * number("mscale") + 1) / (mscale * number("mscale_all_dim") + 1)
        if not is_number(attention):
            raise config.wrong(
                "rope_scaling.mscale", stated["mscale"], "a number that float32 can hold, over mscale_all_dim's"
            )
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        attention_factor=attention,
        truncate=truncate,
    )


def _longrope(config: ClassConfig, stated: Mapping[str, Any], pairs: int, original: int) -> LongRopeScaling:
    """LongRoPE with a short and a long factor for each pair; the attention factor follows from `factor` if it is not stated."""
    factors = {}
    for key in ("short_factor", "long_factor"):
        values = stated.get(key)
        if not isinstance(values, list) or len(values) != pairs or not all(is_number(v) and v > 0 for v in values):
            raise config.wrong(
                f"rope_scaling.{key}", values, f"a list of {pairs} numbers above 0, one for each pair of dimensions"
            )
        factors[key] = tuple(map(float, values))
    given = {key: stated.get(key) for key in ("factor", "attention_factor")}
    for key, value in given.items():
        if value is not None and (not is_number(value) or value <= 0):
            raise config.wrong(f"rope_scaling.{key}", value, "a number above 0")
    if original < 2 and given["attention_factor"] is None:
        raise config.wrong(ORIGINAL, original, "more than 1 token for longrope without an attention_factor")
    ratio = config.trained_context() / original if given["factor"] is None else given["factor"]
    attention = longrope_magnitude(ratio, original) if given["attention_factor"] is None else given["attention_factor"]
    config.note(
        f"longrope has other frequencies for sequences above {original} tokens: llama.cpp takes those for every sequence if it "
        f"runs with a context above {original}, so run shorter texts with a context of at most {original}"
    )
    return LongRopeScaling(
        short=factors["short_factor"],
        long=factors["long_factor"],
        original_context=original,
        attention_factor=float(attention),
    )


def _original_context(config: ClassConfig, stated: Mapping[str, Any]) -> int:
    """The context length before scaling, in tokens: a key beside rope_scaling has priority over one inside it."""
    config.fill(ORIGINAL)
    if ORIGINAL in config.values:
        length = config.values[ORIGINAL]
        if stated.get(ORIGINAL) not in (None, length):
            config.note(
                f"config.json gives {ORIGINAL} twice: {length}, beside the rope parameters, is used, as transformers does"
            )
    elif ORIGINAL in stated:
        length = stated[ORIGINAL]
    else:
        length = config.trained_context()
    if not is_number(length) or length != int(length) or not 1 <= length < 1 << 31:
        raise config.wrong(ORIGINAL, length, "a number of tokens")
    return int(length)


def _ratio(config: ClassConfig, original: int) -> float:
    """YaRN's factor if the config gives null: the context length divided by the original context length."""
    factor = config.trained_context() / original
    config.note(
        f"config.json gives no factor of rope scaling: {factor:g} is used, the context length over the original one"
    )
    return factor
