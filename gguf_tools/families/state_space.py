"""Mamba-2 in the layout of its authors' code and of transformers, shared by the families that have it."""

from __future__ import annotations

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.reading import Config, Inventory, is_number
from gguf_tools.families.tiny.writing import Shapes
from gguf_tools.model.spec import LayerTensors, Mamba2, Norm
from gguf_tools.tensors.views import Reshaped, take

INFINITY = float("inf")


def mamba2(
    inventory: Inventory,
    config: Config,
    prefix: str,
    hidden: int,
    *,
    groups: int,
    norm: Norm,
    step_limit: tuple[float, float] | None = None,
) -> tuple[Mamba2, LayerTensors]:
    """A Mamba-2 mixer: `in_proj`, whose rows are z, x, B, C and the steps, `conv1d`, `dt_bias`, `A_log`, `D`, `out_proj`.

    `groups` is the number of groups, and `norm` the norm of the output, which the mixer has if there is a `norm.weight`.
    Raises CheckpointError if the tensors' shapes do not fit each other or the groups.
    """
    inner, heads = inventory.shape(f"{prefix}out_proj.weight")[1], inventory.shape(f"{prefix}A_log", 1)[0]
    channels, _, kernel = inventory.take(f"{prefix}conv1d.weight", None, 1, None).shape
    state, rest = divmod(channels - inner, 2 * groups)
    if rest or state < 1 or inner % heads or heads % groups:
        raise CheckpointError(
            f"{inventory.path}: {prefix}conv1d.weight has {channels} channels and out_proj {inner} columns, which do not divide "
            f"into {heads} heads (the length of A_log) in {groups} groups; check the number of groups in {config.path.name}"
        )
    bias = frozenset(name for name in ("in", "o") if f"{prefix}{_PROJECTION[name]}.bias" in inventory)
    normed = f"{prefix}norm.weight" in inventory
    spec = Mamba2(
        heads=heads,
        head_dim=inner // heads,
        groups=groups,
        state=state,
        kernel=kernel,
        norm=norm if normed else None,
        conv_bias=f"{prefix}conv1d.bias" in inventory,
        bias=bias,
        step_limit=step_limit,
    )
    rows = sum(spec.widths.values())
    both = inventory.take(f"{prefix}in_proj.weight", rows, hidden)
    part: LayerTensors = {}
    start = 0
    for name, width in spec.widths.items():
        index = range(start, start + width)
        part[f"ssm.{name}"] = take(both, index)
        if "in" in bias:
            part[f"ssm.{name}_bias"] = take(inventory.take(f"{prefix}in_proj.bias", rows), index)
        start += width
    conv = inventory.take(f"{prefix}conv1d.weight", channels, 1, kernel)
    part |= {
        "ssm.conv": Reshaped(conv, (channels, kernel)),
        "ssm.dt_bias": inventory.take(f"{prefix}dt_bias", heads),
        "ssm.decay": inventory.take(f"{prefix}A_log", heads),
        "ssm.skip": inventory.take(f"{prefix}D", heads),
        "ssm.o": inventory.take(f"{prefix}out_proj.weight", hidden, inner),
    }
    optional = (
        ("ssm.conv_bias", "conv1d.bias", channels, spec.conv_bias),
        ("ssm.norm", "norm.weight", inner, normed),
        ("ssm.o_bias", "out_proj.bias", hidden, "o" in bias),
    )
    part |= {role: inventory.take(f"{prefix}{name}", size) for role, name, size, has in optional if has}
    return spec, part


_PROJECTION = {"in": "in_proj", "o": "out_proj"}


def step_limit(config: Config) -> tuple[float, float] | None:
    """`time_step_limit` of the config: the least and the greatest step, or None if every positive step is within.

    Raises CheckpointError if it is not two numbers, and UnsupportedError for an infinite lower limit.
    """
    stated = config.values.get("time_step_limit")
    if stated is None:
        return None
    pair = stated if isinstance(stated, list | tuple) else ()
    if len(pair) != 2 or not all(is_number(end) or end == INFINITY for end in pair):
        raise config.wrong("time_step_limit", stated, "two numbers")
    low, high = map(float, pair)
    if low == INFINITY:
        raise UnsupportedError(
            f"{config.path}: time_step_limit has no finite lower limit, so that no step is within it"
        )
    return None if low <= 0 and high == INFINITY else (low, high)


def mixer_shapes(spec: Mamba2, hidden: int) -> Shapes:
    """Names and shapes of the tensors of a small checkpoint's mixer, for `Family.tiny`."""
    rows = sum(spec.widths.values())
    shapes = {
        "in_proj.weight": (rows, hidden),
        "conv1d.weight": (spec.channels, 1, spec.kernel),
        "dt_bias": (spec.heads,),
        "A_log": (spec.heads,),
        "D": (spec.heads,),
        "out_proj.weight": (hidden, spec.inner),
    }
    shapes |= {"conv1d.bias": (spec.channels,)} if spec.conv_bias else {}
    shapes |= {"norm.weight": (spec.inner,)} if spec.norm else {}
    shapes |= {"in_proj.bias": (rows,)} if "in" in spec.bias else {}
    return shapes | ({"out_proj.bias": (hidden,)} if "o" in spec.bias else {})
