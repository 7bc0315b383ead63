"""Softmax attention."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.model.features import Place, option, part, size
from gguf_tools.model.norms import Norm, Shape
from gguf_tools.model.rope import Rope

_BIASES = {"o": "a bias on the attention output"}


def _window(window: int, place: Place) -> str:
    return f"a sliding window of {window} tokens in a context of {place.spec.context_length}"


def _scale(scale: float, place: Place) -> str:
    return f"attention scores multiplied by {scale:g} with heads of {place.owner.head_dim}"


def _value_dim(_: int, place: Place) -> str:
    return f"value heads of {place.owner.value_size} dimensions with key heads of {place.owner.head_dim}"


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax attention with grouped queries (Ainslie et al. 2023).

    Scores are multiplied by `scale`, or 1/sqrt(head_dim) where that is None. Without `rope` positions are told apart by the
    causal mask alone (NoPE). `bias` names the projections that have one (of q, k, v, o).
    `qk_norm` is applied to each head of q and k before RoPE; with `norm_per_head` each head has its own norm weights, and
    `norm_gain` adds a learned scalar gain per head after the norm. `value_scale` is a learned scalar per value head.
    With `norm_whole` the norm is over all heads together and not over each, and with `norm_after_rope` it follows RoPE.
    `softcap` bounds the scores s smoothly, softcap · tanh(s / softcap), and `clip` limits q, k and v to ± its value.
    `gated` multiplies the heads' output elementwise by sigmoid(gate · x), before the output projection.
    With `sinks` each head has a learned logit beside its scores, which takes a share of the softmax and adds no value (Xiao et
    al. 2023, in the form of gpt-oss).
    With `alibi` m (Press et al. 2022, which has 8) the score of a position d tokens back is lowered by d times a slope of the
    head, `slopes`.
    With `window` a position attends to itself and the window - 1 positions before it (Mistral; Beltagy et al. 2020), else
    to all positions up to its own. Value heads have `value_dim` dimensions, or `head_dim` where that is None.
    """

    heads: int = size()
    kv_heads: int = size()
    head_dim: int = size()
    rope: Rope | None = part(lambda rope, _: "rotary position embedding" if rope else "layers without rope")
    bias: frozenset[str] = option(lambda name, _: _BIASES.get(name, f"a bias on the attention's {name}"), frozenset())
    qk_norm: Norm | None = option("q/k norm")
    gated: bool = option("an attention gate", False)
    norm_per_head: bool = option("different q/k norm weights per head", False)
    norm_whole: bool = option("one q/k norm over all heads together", False)
    norm_after_rope: bool = option("a q/k norm after rope", False)
    norm_gain: bool = option("a gain after the q/k norm", False)
    value_scale: bool = option("a scale per value head", False)
    window: int | None = option(
        _window, neutral=lambda window, place: not window or window >= place.spec.context_length
    )
    alibi: float | None = option(lambda alibi, _: f"ALiBi with a bias of {alibi:g}")
    sinks: bool = option("attention sinks", False)
    value_dim: int | None = option(_value_dim, neutral=lambda _, place: place.owner.value_size == place.owner.head_dim)

    scale: float | None = option(_scale, neutral=lambda _, place: place.owner.score_scale == place.owner.head_dim**-0.5)

    softcap: float | None = option(lambda cap, _: f"attention scores capped at {cap:g}")
    clip: float | None = option(lambda clip, _: f"queries, keys and values clipped at {clip:g}")

    @property
    def score_scale(self) -> float:
        """The factor on the scores."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def value_size(self) -> int:
        """Dimensions of a value head."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def slopes(self) -> tuple[float, ...]:
        """ALiBi's slope for each head.

        The first n heads, n the largest power of 2 up to their number, have the powers of 2^(-alibi / n), the others the odd
        powers of its square root.
        """
        whole = 1 << (self.heads.bit_length() - 1)
        step = (self.alibi or 0.0) / whole
        first = [2.0 ** (-step * (n + 1)) for n in range(whole)]
        return tuple(first + [2.0 ** (-step / 2 * (2 * n + 1)) for n in range(self.heads - whole)])

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        out, v = self.heads * self.value_size, self.kv_heads * self.value_size
        roles: dict[str, Shape] = {
            "attn.q": (q, hidden),
            "attn.k": (k, hidden),
            "attn.v": (v, hidden),
            "attn.o": (hidden, out),
        }
        for name in sorted(self.bias):
            roles[f"attn.{name}_bias"] = roles[f"attn.{name}"][:1]
        for name, heads in (("q", self.heads), ("k", self.kv_heads)):
            if self.qk_norm:
                shape = (heads, self.head_dim) if self.norm_per_head else (self.head_dim,)
                shape = (heads * self.head_dim,) if self.norm_whole else shape
                roles |= self.qk_norm.roles(f"attn.{name}_norm", *shape)
            if self.norm_gain:
                roles[f"attn.{name}_gain"] = (heads,)
        if self.sinks:
            roles["attn.sinks"] = (self.heads,)
        if self.value_scale:
            roles["attn.v_scale"] = (self.kv_heads,)
        if self.gated:
            roles["attn.gate"] = (out, hidden)
            if "q" in self.bias:
                roles["attn.gate_bias"] = (out,)
        return roles
