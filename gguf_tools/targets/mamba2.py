"""llama.cpp's `mamba2`: a Mamba-2 state space in every layer, and no feed-forwards (`src/models/mamba2.cpp`).

The graph of the mixer (`build_mamba2_layer` of `src/models/mamba-base.cpp`) is shared by the architectures that have it beside
or among attention layers, and so are the functions here. It always has a bias on the convolution; the norm of its output has
one row for each group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf.header import Metadata, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, LayerTensors, Mamba2, Model, ModelSpec, Norm
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import DECODER, STATE_SPACE, norm_limits, same
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Mapped, Reshaped, concatenate, take

NAME = "mamba2"
SSM_NAMES = {
    "ssm.in": "ssm_in.weight",
    "ssm.conv": "ssm_conv1d.weight",
    "ssm.conv_bias": "ssm_conv1d.bias",
    "ssm.dt_bias": "ssm_dt.bias",
    "ssm.decay": "ssm_a",
    "ssm.skip": "ssm_d",
    "ssm.norm": "ssm_norm.weight",
    "ssm.o": "ssm_out.weight",
}
NAMES = {"mixer_norm": "attn_norm.weight", **SSM_NAMES}

EXPRESSES = (
    (DECODER - {"LayerSpec.ffn_norm=Norm"})
    | STATE_SPACE
    | {"LayerSpec.mixer=Mamba2", "LayerSpec.feed_forward=None", "LayerSpec.ffn_norm=None"}
)


def state_spaces(spec: ModelSpec) -> list[Mamba2]:
    """The state spaces of the layers that have one, in order."""
    return [layer.state_space for layer in spec.layers if layer.state_space]


def state_space_limits(spec: ModelSpec, *, norm: bool) -> list[str]:
    """All state spaces must have the same sizes; `norm` says whether the graph requires the norm of their output."""
    found = state_spaces(spec)
    limits = same(((m.heads, m.head_dim, m.groups, m.state, m.kernel) for m in found), "the sizes of state spaces")
    limits += ["a convolution over 1 token"] if any(mixer.kernel == 1 for mixer in found) else []
    if norm and any(mixer.norm is None for mixer in found):
        limits.append("state spaces without a norm of their output")
    return limits


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = state_space_limits(spec, norm=True) + norm_limits(spec)
    return found + (
        [] if all(layer.mixer_norm for layer in spec.layers) else ["layers without a norm before the mixer"]
    )


def state_space_metadata(arch: str, mixer: Mamba2) -> Metadata:
    """The sizes of a state space, under the architecture's prefix."""
    values = {
        "ssm.conv_kernel": mixer.kernel,
        "ssm.inner_size": mixer.inner,
        "ssm.state_size": mixer.state,
        "ssm.time_step_rank": mixer.heads,
        "ssm.group_count": mixer.groups,
    }
    return {f"{arch}.{key}": u32(value) for key, value in values.items()}


def with_conv_bias(layer: LayerSpec) -> LayerSpec:
    """The layer with a bias on its state space's convolution, for `lowering.completed`."""
    if isinstance(layer.mixer, Mamba2):
        return replace(layer, mixer=replace(layer.mixer, conv_bias=True))
    return replace(layer, beside=replace(layer.beside, conv_bias=True)) if layer.beside else layer


def join_state_space(layer: Layer) -> Mapping[str, Tensor]:
    """The layer's tensors with one input projection, the decay as a rate, -exp(log), and the shapes of llama.cpp.

    Those of a layer without a state space are unchanged.
    """
    mixer = layer.spec.state_space
    if mixer is None:
        return layer.tensors
    out = dict(layer.tensors)
    out["ssm.in"] = concatenate([out.pop(f"ssm.{name}") for name in mixer.widths])
    if mixer.decay == "log":
        out["ssm.decay"] = Mapped(out["ssm.decay"], lambda a, _: -np.exp(a.astype(np.float64)), "-exp")
    for role in ("ssm.decay", "ssm.skip"):
        out[role] = Reshaped(out[role], (mixer.heads, 1))
    if mixer.norm:
        out["ssm.norm"] = Reshaped(out["ssm.norm"], (mixer.groups, mixer.inner // mixer.groups))
    return out


def lower(model: Model) -> Lowered:
    """The model as a `mamba2` file."""
    full = lowering.completed(model, with_conv_bias)
    metadata = lowering.common_metadata(NAME, full.spec) | state_space_metadata(NAME, state_spaces(full.spec)[0])
    metadata |= {f"{NAME}.feed_forward_length": u32(0), f"{NAME}.attention.head_count": u32(0)}

    def named(layer: Layer) -> Mapping[str, Tensor]:
        return names.rename(join_state_space(layer), NAMES)

    return Lowered(NAME, metadata, lowering.lower_tensors(full, named))


def lift_state_space(source: GGUFSource, n: int, norm: Norm) -> tuple[Mamba2, LayerTensors]:
    """Layer n's state space, the inverse of `join_state_space`, by the `ssm.*` keys. CheckpointError if they do not fit."""
    part = lifting.lift_named(source, n, SSM_NAMES)
    part |= {
        role: source.tensor(f"blk.{n}.{SSM_NAMES[role]}") for role in SSM_NAMES.keys() - {"ssm.conv_bias", "ssm.norm"}
    }
    heads, inner = source.integer("ssm.time_step_rank"), source.integer("ssm.inner_size")
    groups = source.integer("ssm.group_count")
    if heads < 1 or groups < 1 or inner < 1 or inner % heads or heads % groups:
        raise CheckpointError(
            f"{source.path}: {inner} channels of the state space (ssm.inner_size) do not divide into {heads} heads in {groups} "
            "groups; write the file again"
        )
    mixer = Mamba2(
        heads=heads,
        head_dim=inner // heads,
        groups=groups,
        state=source.integer("ssm.state_size"),
        kernel=source.integer("ssm.conv_kernel"),
        norm=norm if "ssm.norm" in part else None,
        decay="rate",
        conv_bias="ssm.conv_bias" in part,
    )
    both, start = part.pop("ssm.in"), 0
    rows = sum(mixer.widths.values())
    sizes = {"ssm.decay": heads, "ssm.skip": heads, "ssm.norm": inner}
    wrong = [role for role, size in sizes.items() if role in part and part[role].size != size]
    if both.shape[0] != rows or wrong:
        name = SSM_NAMES[wrong[0] if wrong else "ssm.in"]
        raise CheckpointError(
            f"{source.path}: tensor blk.{n}.{name} does not have the size that the ssm.* keys state; write the file again"
        )
    for name, width in mixer.widths.items():
        part[f"ssm.{name}"] = take(both, range(start, start + width))
        start += width
    return mixer, part | {role: Reshaped(part[role], (size,)) for role, size in sizes.items() if role in part}


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lift_state_space(source, n, Norm(source.number("attention.layer_norm_rms_epsilon")))
        return Layer(LayerSpec(mixer, None, None, None), part)

    return lifting.lift_normed(source, layer)


TARGET = Target(name=NAME, rewrites=(), expresses=EXPRESSES, limits=limits, lower=lower, lift=lift)
