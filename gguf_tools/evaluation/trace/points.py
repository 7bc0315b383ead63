"""Which tensor of llama.cpp's graph equals which point of the torch reference.

Sources: the `cb(…)` calls of `src/llama-graph.cpp` and `src/models/*.cpp` of llama-cpp-python 0.3.36. A test holds each pair to
rounding, for every target here. A tensor is known by name, layer and operation, because names repeat: `Qcur` is the product, the
sum with the bias, and the result of RoPE.
A tensor without a name in the graph is known by the weight that it is computed from (`runtime.intermediates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_tools.model.spec import DeltaNet, LayerSpec, ModelSpec, MoE
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.runtime.interface import Intermediate

Doubles = NDArray[np.float64]

TILED = frozenset({"qwen35", "qwen35moe"})
"""Architectures whose value head m · key_heads + k is the model's head k · group + m (`targets/qwen35.py`)."""
VALUE_HEADS = ("delta.out", "delta.z", "delta.gated", "delta.beta", "delta.alpha", "delta.step", "delta.log_decay")

STATES = ("delta.state", "ssm.state")
"""Points that are those after the last token."""


@dataclass(frozen=True)
class Named:
    """A tensor's name without its layer, and its operation, any if empty; the last one computed counts, or the `first`.

    `shift` is added to the layer, and `counted` says that the name has no layer: the n-th of its kind is that of layer n.
    """

    name: str
    op: str = ""
    shift: int = 0
    counted: bool = False
    first: bool = False


def _named(text: str) -> Named:
    """`name`, or `name:OP`; `name:OP!` is the first; `name+1` is that of the next layer, and `*name` is counted."""
    name, _, ops = text.removesuffix("!").partition(":")
    shift = 1 if name.endswith("+1") else 0
    counted = name.startswith("*")
    return Named(name.removesuffix("+1").removeprefix("*"), ops, shift, counted, text.endswith("!"))


def _table(rows: Mapping[str, str]) -> dict[str, tuple[Named, ...]]:
    return {point: tuple(map(_named, names.split())) for point, names in rows.items()}


_ACTIVATED = "ffn_xielu ffn_gate_par ffn_swiglu ffn_geglu ffn_reglu ffn_sqr(relu) ffn_gelu ffn_relu ffn_silu ffn_act"
PLACES = _table(
    {
        "embedding": "inp_scaled inp_norm embd:SCALE inpL:ADD attn_norm_in:GET_ROWS model.embed_tokens model.input_embed embd",
        "final_norm": "result_norm",
        "logits": "result_output",
        "mixer_norm": "attn_norm model.layers.{}.operator_norm:MUL",
        "attn.q_product": "Qcur:MUL_MAT",
        "attn.k_product": "Kcur:MUL_MAT",
        "attn.v_product": "Vcur:MUL_MAT",
        "attn.q": "Qcur_view Qcur_reshaped:VIEW Qcur:ADD Qcur:MUL_MAT Qcur:VIEW",
        "attn.k": "Kcur:ADD Kcur:MUL_MAT Kcur:VIEW",
        "attn.v": "Vcur:ADD Vcur:MUL_MAT Vcur:VIEW",
        "attn.q_normed": "Qcur_normed:MUL model.layers.{}.self_attn.q_layernorm",
        "attn.k_normed": "Kcur_normed:MUL model.layers.{}.self_attn.k_layernorm",
        "attn.q_rope": "Qcur_pos:ROPE Qcur:ROPE Qcur-post-rope:ROPE",
        "attn.k_rope": "Kcur_pos:ROPE Kcur:ROPE Kcur-post-rope:ROPE",
        "attn.shares": "kq_soft_max",
        "attn.heads": "attn_pregate kqv_out attn_out:CONT",
        "attn.gate": "gate_reshaped:CONT gate:VIEW",
        "attn.gated": "attn_gated",
        "delta.qkv": "linear_attn_qkv_mixed",
        "delta.conv": "conv_output_raw",
        "delta.conv_act": "conv_output_silu",
        "delta.q_unit": "q_conv_predelta",
        "delta.k_unit": "k_conv_predelta",
        "delta.beta": "b:VIEW beta:RESHAPE",
        "delta.alpha": "a:VIEW alpha:RESHAPE",
        "delta.step": "a_softplus",
        "delta.log_decay": "gate:MUL",
        "delta.out": "attn_output:VIEW",
        "delta.state": "new_state",
        "delta.z": "z:MUL_MAT",
        "delta.gated": "final_output",
        "conv.in": "model.layers.{}.conv.in_proj:MUL_MAT",
        "conv.conv": "model.layers.{}.conv.conv:SSM_CONV",
        "ssm.in": "ssm_in.weight:MUL_MAT",
        "ssm.conv": "ssm_conv1d.bias:ADD",
        "ssm.dt": "ssm_dt.bias:ADD",
        "ssm.scan": "ssm_a:SSM_SCAN",
        "ssm.state": "ssm_a:SSM_SCAN",
        "ssm.out": "mamba2_y_add_d",
        "ssm.gated": "ssm_norm.weight:MUL",
        "mixer_out": "layer_out:ADD linear_attn_out:MUL_MAT attn_output:MUL_MAT attn_out:ADD attn_out:MUL_MAT attn_proj "
        "model.layers.{}.conv.out_proj:MUL_MAT model.layers.{}.self_attn.out_proj mamba_out "
        "attn_output.bias:ADD attn_output.weight:MUL_MAT",
        "mixer_post_norm": "attn_post_norm post_attn_norm:MUL",
        "mixer_residual": "ffn_inp attn_residual sa_out",
        "ffn_norm": "ffn_norm:ADD ffn_norm:MUL ffn_norm:NORM model.layers.{}.ffn_out:MUL attn_post_norm:MUL post_attn_norm:MUL",
        "ffn.gate_product": "ffn_gate:MUL_MAT",
        "ffn.up_product": "ffn_up:MUL_MAT",
        "ffn.gate": "ffn_gate_b ffn_gate:MUL_MAT",
        "ffn.up": "ffn_up_b ffn_up:MUL_MAT",
        "ffn.act": _ACTIVATED,
        "ffn.down_product": "ffn_down:MUL_MAT",
        "moe.logits": "ffn_moe_logits_biased ffn_moe_probs:ADD ffn_moe_logits ffn_moe_probs",
        "moe.chosen": "ffn_moe_topk:VIEW",
        "moe.weights": "ffn_moe_weights_scaled ffn_moe_weights_norm:DIV ffn_moe_weights_softmax ffn_moe_weights",
        "expert.gate": "ffn_moe_gate:MUL_MAT_ID",
        "expert.up": "ffn_moe_up:MUL_MAT_ID",
        "expert.gate_biased": "ffn_moe_gate_biased",
        "expert.up_biased": "ffn_moe_up_biased",
        "expert.act": "ffn_moe_swiglu:GLU ffn_moe_swiglu_oai",
        "expert.down": "ffn_moe_down:MUL_MAT_ID",
        "expert.down_biased": "ffn_moe_down_biased",
        "moe.out": "ffn_moe_out",
        "shared.gate": "ffn_gate:MUL_MAT",
        "shared.up": "ffn_up:MUL_MAT",
        "shared.act": _ACTIVATED,
        "shared.down": "ffn_shexp:MUL_MAT ffn_shexp_out:MUL_MAT ffn_shared_out:MUL_MAT",
        "shared.sigmoid": "ffn_shexp_gate_inp shared_expert_gate:MUL_MAT",
        "shared.gated": "ffn_shexp_out:MUL ffn_shexp_gated",
        "ffn_out": "ffn_out:ADD! ffn_out:MUL_MAT ffn_moe_out ffn_down.bias:ADD ffn_down.weight:MUL_MAT",
        "ffn_post_norm": "ffn_post_norm:MUL *ffn_post_norm:MUL post_mlp_norm:MUL",
        "layer_out": "l_out attn_norm_in+1 h_nextn",
    }
)
"""Point of the reference → the tensors that equal it; the first one that the graph has is compared."""
NAMES = frozenset(named.name for places in PLACES.values() for named in places)
"""The names to ask llama.cpp for."""


def exists(point: str, layer: LayerSpec | None) -> bool:
    """Whether the point is one of its own in a layer of this form, or only another name for the point before it."""
    if layer is None:
        return True
    ffn = layer.feed_forward
    if point.endswith("_product"):
        part = layer.mixer if point.startswith("attn.") else ffn
        return point.partition(".")[2].removesuffix("_product") in getattr(part, "bias", ())
    match point:
        case "mixer_norm" | "mixer_post_norm" | "ffn_post_norm":
            return getattr(layer, point) is not None
        case "ffn_norm":
            return layer.ffn_norm is not None
        case "ffn.down" | "ssm.z":  # ffn_out, and a part of ssm.in
            return False
        case "moe.out":
            return isinstance(ffn, MoE) and ffn.shared is not None
    return True


class Graph:
    """The tensors of llama.cpp's graphs for one sequence that was read in one or several batches."""

    def __init__(
        self, found: Sequence[Intermediate], architecture: str, spec: ModelSpec, length: int, step: int | None = None
    ) -> None:
        """`spec` is that of the model as the reference runs it; the sequence has `length` tokens, read `step` at a time."""
        self.architecture, self.spec, self.length = architecture, spec, length
        self._step = step or length
        self._found: dict[tuple[str, int | None], list[Intermediate]] = {}
        for one in found:
            self._found.setdefault((one.name, one.layer), []).append(one)

    def values(self, n: int, point: str, width: int) -> Doubles | None:
        """The point of layer n (`OUTSIDE` for none) in the reference's layout, (tokens, width), or None if it has no name.

        That of the state is (1, width), after the last token.
        """
        for batches in self._candidates(n, point):
            parts = [self._aligned(n, point, one) for one in batches]
            whole = parts[-1] if point in STATES else np.concatenate(parts)
            if whole.shape[-1] == width:
                return whole
        return None

    def width(self, n: int, point: str) -> int:
        """Values per token of the first tensor that equals the point; 0 if there is none."""
        for batches in self._candidates(n, point):
            return int(self._aligned(n, point, batches[0]).shape[-1])
        return 0

    def name_of(self, n: int, point: str) -> str:
        """The first tensor that equals the point, with its layer and operation; "" if there is none."""
        for batches in self._candidates(n, point):
            one = batches[0]
            return f"{one.name}{'' if one.layer is None else f'-{one.layer}'} ({one.op})"
        return ""

    def _candidates(self, n: int, point: str) -> Iterator[list[Intermediate]]:
        """For each of the point's names that the graph has, the tensors of that name in order of the batches."""
        for named in PLACES.get(point, ()):
            # The norm before the feed-forward has the name of a norm after the mixer, where there is none of those.
            taken = point == "ffn_norm" and n != OUTSIDE and self.spec.layers[n].mixer_post_norm is not None
            batches = [] if taken and "post" in named.name else self._batches(named, n)
            if batches:
                yield batches

    def _batches(self, named: Named, n: int) -> list[Intermediate]:
        """The last tensor of this name in each batch."""
        layer = None if n == OUTSIDE or named.counted else n + named.shift
        found = self._found.get((named.name, layer), [])
        if named.name in ("attn_norm_in", "inp_norm") and n == OUTSIDE:
            found = self._found.get((named.name, 0), [])
        if named.name == "h_nextn" and n == len(self.spec.layers) - 1:
            # In step35 the last layer's output; in hybrid architectures, which have `l_out`, the final norm.
            found = self._found.get((named.name, None), [])
        if named.op:
            found = [one for one in found if one.op == named.op]
        if named.counted:
            found = [one for one in found if one.occurrence == n]
        if named.first:
            found = [one for one in found if one.occurrence == 0]
        return list({one.batch: one for one in found}.values())

    def _aligned(self, n: int, point: str, one: Intermediate) -> Doubles:
        """One batch's values as (tokens, width), with heads in the reference's order."""
        rows = min(self._step, self.length - one.batch * self._step)
        array = one.values.astype(np.float64)
        if point == "attn.shares":  # (1, heads, tokens, cache), of which the cache's unused end is masked
            array = array.reshape(array.shape[-3], rows, -1)[..., : self.length].transpose(1, 0, 2)
        mixer = self.spec.layers[n].mixer if n != OUTSIDE else None
        if isinstance(mixer, DeltaNet):
            array = self._of_delta(point, array, mixer, rows)
        space = self.spec.layers[n].state_space if n != OUTSIDE else None
        if space and point in ("ssm.scan", "ssm.state"):  # the outputs of all tokens, and after them the state
            array = array.reshape(-1)
            array = array[: rows * space.inner] if point == "ssm.scan" else array[rows * space.inner :]
        return array.reshape(1 if point in STATES else rows, -1)

    def _of_delta(self, point: str, array: Doubles, mixer: DeltaNet, rows: int) -> Doubles:
        """A DeltaNet's values: the state with keys before values, value heads in the model's order, unit keys repeated."""
        group = mixer.value_heads // mixer.key_heads
        order = [member * mixer.key_heads + key for key in range(mixer.key_heads) for member in range(group)]
        if self.architecture not in TILED:
            order = list(range(mixer.value_heads))
        if point == "delta.state":
            state: Doubles = array.reshape(mixer.value_heads, mixer.value_dim, mixer.key_dim).transpose(0, 2, 1)[order]
            return state
        if point in VALUE_HEADS:
            return array.reshape(rows, mixer.value_heads, -1)[:, order]
        if point in ("delta.q_unit", "delta.k_unit") and array.size == rows * mixer.key_heads * mixer.key_dim:
            return array.reshape(rows, mixer.key_heads, -1).repeat(group, axis=1)
        if point in ("delta.qkv", "delta.conv", "delta.conv_act"):
            joined = array.reshape(rows, -1)
            keys = 2 * mixer.key_heads * mixer.key_dim
            values = joined[:, keys:].reshape(rows, mixer.value_heads, -1)[:, order]
            return np.concatenate([joined[:, :keys], values.reshape(rows, -1)], axis=1)
        return array
