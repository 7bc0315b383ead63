"""Compact trainable networks whose parameter names are those of the published Qwen3 checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 64


class Norm(nn.Module):
    """RMS norm; ``zero_centred`` stores the weight minus one, as Qwen3-Next does."""

    def __init__(self, size: int, eps: float, zero_centred: bool) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centred = zero_centred
        self.weight = nn.Parameter(torch.zeros(size) if zero_centred else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps).to(x.dtype)
        weight = 1.0 + self.weight if self.zero_centred else self.weight
        result: Tensor = scaled * weight.to(x.dtype)
        return result


class FeedForward(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Experts(nn.Module):
    """Top-1 mixture of two experts with a gated shared expert."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, self.count = config["hidden_size"], config["num_experts"]
        self.gate = nn.Linear(hidden, self.count, bias=False)
        inner = config["moe_intermediate_size"]
        self.experts = nn.ModuleList(FeedForward(hidden, inner) for _ in range(self.count))
        self.shared_expert = FeedForward(hidden, config["shared_expert_intermediate_size"])
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)
        self.wanted: Tensor | None = None
        self.routing_loss: Tensor = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        logits = self.gate(flat).float()
        chosen = logits.argmax(-1)
        if self.wanted is not None:
            self.routing_loss = self._routing_loss(flat.float(), logits, self.wanted)
            self.wanted = None  # it was for this pass alone
        # Renormalised, a top-1 weight is the constant 1.
        order = chosen.argsort(stable=True)
        parts = torch.split(flat[order], torch.bincount(chosen, minlength=self.count).tolist())
        done = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        routed = torch.empty_like(done).index_copy(0, order, done)
        shared = torch.sigmoid(self.shared_expert_gate(flat)) * self.shared_expert(flat)
        result: Tensor = (routed + shared).view_as(x)
        return result

    def _routing_loss(self, x: Tensor, logits: Tensor, wanted: Tensor) -> Tensor:
        """How far tokens fall short, on average, of a wide margin on the side of the expert that they belong to.

        The margin is measured in units of what a random direction would give, so that larger router weights do not
        help: only inputs that fall into two groups do. The hidden states are trained along, not the router alone.
        """
        first, second = self.gate.weight.float()
        reach = (second - first).norm() * x.norm(dim=-1) * x.shape[-1] ** -0.5
        margin = (logits[:, 1] - logits[:, 0]) * (2 * wanted - 1) / reach.clamp_min(1e-6)
        return functional.relu(1.0 - margin).mean()


def rotary_tables(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines of the rotary embedding for every position, YaRN included."""
    rope, dim, base = config["rope_parameters"], config["head_dim"], config["rope_parameters"]["rope_theta"]
    frequencies = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
    attention_factor = 1.0
    if rope["rope_type"] == "yarn":

        def turning_dim(turns: float) -> float:
            length = rope["original_max_position_embeddings"]
            result: float = dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))
            return result

        low = max(math.floor(turning_dim(rope["beta_fast"])), 0)
        high = min(math.ceil(turning_dim(rope["beta_slow"])), dim - 1)
        ramp = ((torch.arange(dim // 2, dtype=torch.float) - low) / max(high - low, 0.001)).clamp(0, 1)
        frequencies = frequencies / rope["factor"] * ramp + frequencies * (1 - ramp)
        attention_factor = 0.1 * math.log(rope["factor"]) + 1.0
    angles = torch.outer(torch.arange(config["max_position_embeddings"], dtype=torch.float), frequencies)
    angles = torch.cat((angles, angles), -1)
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to ``x`` of shape (batch, heads, time, dim)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend causally from (batch, heads, time, dim) to a single key and value head.

    On a CPU this is about three times as fast as scaled_dot_product_attention: the heads share one key, so they
    make one tall product, and going block by block leaves out most of what the mask would hide.
    """
    batch, heads, time, dim = query.shape
    block = max(1, 512 // heads)
    query = query * dim**-0.5
    future = torch.full((time, time), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    key, value = key[:, 0], value[:, 0]
    out = []
    for start in range(0, time, block):
        end = min(time, start + block)
        rows = query[:, :, start:end].reshape(batch, -1, dim)
        scores = (rows @ key[:, :end].mT).view(batch, heads, end - start, end)
        weights = (scores + future[start:end, :end]).softmax(-1).view(batch, -1, end)
        out.append((weights @ value[:, :end]).view(batch, heads, end - start, dim))
    return torch.cat(out, 2)


class Attention(nn.Module):
    """Attention with one key and value head, and head norms; ``gated`` adds Qwen3-Next's output gate."""

    def __init__(self, config: dict[str, Any], gated: bool) -> None:
        super().__init__()
        hidden, bias = config["hidden_size"], config["attention_bias"]
        self.gated, self.dim = gated, config["head_dim"]
        self.heads = config["num_attention_heads"]
        eps = config["rms_norm_eps"]
        self.q_proj = nn.Linear(hidden, self.heads * self.dim * (2 if gated else 1), bias=bias)
        self.k_proj = nn.Linear(hidden, self.dim, bias=bias)
        self.v_proj = nn.Linear(hidden, self.dim, bias=bias)
        # Its bias is frozen at zero and left out of the file.
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)
        self.q_norm = Norm(self.dim, eps, zero_centred=gated)
        self.k_norm = Norm(self.dim, eps, zero_centred=gated)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, _ = x.shape
        query = self.q_proj(x).view(batch, time, self.heads, -1)
        gate = None
        if self.gated:
            query, gate = query.chunk(2, -1)
        query = rotate(self.q_norm(query).transpose(1, 2), cos, sin)
        key = rotate(self.k_norm(self.k_proj(x).view(batch, time, 1, -1)).transpose(1, 2), cos, sin)
        value = self.v_proj(x).view(batch, time, 1, -1).transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):
            mixed = causal_attention(query.to(value.dtype), key.to(value.dtype), value)
        mixed = mixed.transpose(1, 2).reshape(batch, time, -1)
        if gate is not None:
            mixed = mixed * torch.sigmoid(gate.reshape(batch, time, -1))
        result: Tensor = self.o_proj(mixed)
        return result


def gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """Run the gated delta rule chunk by chunk.

    ``query``, ``key`` and ``value`` are (batch, heads, time, dim); ``decay`` (in log space) and ``beta`` are
    (batch, heads, time). The recurrence is S <- exp(decay) S; S <- S + k (beta (v - S^T k))^T; out = S^T q.
    """
    batch, heads, time, dim = key.shape
    pad = -time % CHUNK
    query, key, value = (functional.pad(x, (0, 0, 0, pad)) for x in (query, key, value))
    decay, beta = (functional.pad(x, (0, pad)) for x in (decay, beta))
    query, key, value = (x.reshape(batch, heads, -1, CHUNK, x.shape[-1]) for x in (query, key, value))
    total = decay.view(batch, heads, -1, CHUNK).cumsum(-1)
    beta = beta.view(batch, heads, -1, CHUNK, 1)
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=key.device).triu(1)
    between = (total[..., :, None] - total[..., None, :]).masked_fill(future, -torch.inf).exp()
    grown = total.exp()[..., None]
    key_beta = key * beta
    system = (key_beta @ key.mT) * between
    within = (query @ key.mT) * between
    # Only the strictly lower triangle is read: the diagonal is taken to be one.
    right = torch.cat((value * beta, key_beta * grown), -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    new_value, read_key = torch.split(solved, [value.shape[-1], dim], -1)
    query = query * grown
    key = key * (total[..., -1:] - total).exp()[..., None]
    last = total[..., -1].exp()[..., None, None]
    state = key.new_zeros(batch, heads, dim, value.shape[-1])
    out = []
    for n in range(key.shape[2]):
        change = new_value[:, :, n] - read_key[:, :, n] @ state
        out.append(query[:, :, n] @ state + within[:, :, n] @ change)
        state = state * last[:, :, n] + key[:, :, n].mT @ change
    return torch.cat(out, 2)[:, :, :time]


class GatedNorm(nn.Module):
    """RMS norm over a value head, followed by a SiLU gate."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return scaled * self.weight * functional.silu(gate)


class LinearAttention(nn.Module):
    """Qwen3-Next's gated delta net."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.k_heads, self.v_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
        self.k_dim, self.v_dim = config["linear_key_head_dim"], config["linear_value_head_dim"]
        keys, values = self.k_heads * self.k_dim, self.v_heads * self.v_dim
        kernel = config["linear_conv_kernel_dim"]
        self.in_proj_qkvz = nn.Linear(hidden, 2 * keys + 2 * values, bias=False)
        self.in_proj_ba = nn.Linear(hidden, 2 * self.v_heads, bias=False)
        channels = 2 * keys + values
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels, padding=kernel - 1, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(self.v_heads))
        self.A_log = nn.Parameter(torch.empty(self.v_heads).uniform_(0.5, 8).log())
        self.norm = GatedNorm(self.v_dim, config["rms_norm_eps"])
        self.out_proj = nn.Linear(values, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        ratio = self.v_heads // self.k_heads
        sizes = [self.k_dim, self.k_dim, ratio * self.v_dim, ratio * self.v_dim]
        grouped = self.in_proj_qkvz(x).view(batch, time, self.k_heads, -1)
        query, key, value, z = (part.flatten(2) for part in torch.split(grouped, sizes, -1))
        beta, step = self.in_proj_ba(x).float().view(batch, time, self.k_heads, -1).chunk(2, -1)
        mixed = torch.cat((query, key, value), -1)
        # Four shifted products are faster on a CPU than its grouped convolution.
        kernel = self.conv1d.weight.squeeze(1).to(mixed.dtype)
        padded = functional.pad(mixed, (0, 0, kernel.shape[1] - 1, 0))
        mixed = sum((padded[:, n : n + time] * kernel[:, n] for n in range(kernel.shape[1])), torch.zeros(()))
        mixed = functional.silu(mixed).float()
        keys = self.k_heads * self.k_dim
        query, key, value = torch.split(mixed, [keys, keys, self.v_heads * self.v_dim], -1)

        def by_head(t: Tensor, heads: int) -> Tensor:
            return t.reshape(batch, time, heads, -1).transpose(1, 2)

        query, key = (by_head(t, self.k_heads) for t in (query, key))
        query, key = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (query, key))
        query, key = (t.repeat_interleave(ratio, 1) for t in (query * self.k_dim**-0.5, key))
        decay = -self.A_log.exp() * functional.softplus(step.flatten(2) + self.dt_bias)
        with torch.autocast(x.device.type, enabled=False):
            out = gated_delta_rule(
                query,
                key,
                by_head(value, self.v_heads),
                decay.transpose(1, 2),
                torch.sigmoid(beta.flatten(2)).transpose(1, 2),
            )
        out = self.norm(out, by_head(z, self.v_heads).float())
        result: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, time, -1))
        return result


class Layer(nn.Module):
    """One decoder layer; the kind of its mixer decides which of the two attributes it has."""

    def __init__(self, config: dict[str, Any], kind: str, hybrid: bool) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = Norm(hidden, eps, zero_centred=hybrid)
        self.post_attention_layernorm = Norm(hidden, eps, zero_centred=hybrid)
        self.mlp = Experts(config) if hybrid else FeedForward(hidden, config["intermediate_size"])
        self.is_linear = kind == "linear_attention"
        if self.is_linear:
            self.linear_attn = LinearAttention(config)
        else:
            self.self_attn = Attention(config, gated=hybrid)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        mixed = self.input_layernorm(x)
        x = x + (self.linear_attn(mixed) if self.is_linear else self.self_attn(mixed, cos, sin))
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Trunk(nn.Module):
    """Everything but the output head."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hybrid = config["model_type"] == "qwen3_next"
        kinds = config["layer_types"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, kind, hybrid) for kind in kinds)
        self.norm = Norm(config["hidden_size"], config["rms_norm_eps"], zero_centred=hybrid)


class Decoder(nn.Module):
    """The whole model, with the embedding as its output head."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = Trunk(config)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        depth = len(config["layer_types"])
        for name, parameter in self.named_parameters():
            if name.endswith("_proj.bias"):
                # Frozen, and large enough that an engine which forgets them is found out.
                nn.init.uniform_(parameter, -0.2, 0.2)
                parameter.requires_grad_(False)
            elif parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
                scale = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=scale / math.sqrt(2 * depth) if residual else scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of every position of ``tokens`` (batch, time)."""
        x = self.model.embed_tokens(tokens)
        time = tokens.shape[1]
        cos, sin = (self.get_buffer(name)[:time].to(x.dtype) for name in ("cos", "sin"))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(isinstance(module, Experts) for module in self.modules())

    def route(self, tokens: Tensor, assignment: Tensor) -> None:
        """Tell each layer which expert its tokens belong to; ``assignment`` is (layers, vocabulary)."""
        for layer, experts in zip(self.model.layers, assignment, strict=True):
            if isinstance(layer.mlp, Experts):
                layer.mlp.wanted = experts[tokens.flatten()]

    def routing_loss(self) -> Tensor:
        """Mean routing loss of the last forward pass, zero without experts."""
        losses = [module.routing_loss for module in self.modules() if isinstance(module, Experts)]
        return torch.stack(losses).mean() if losses else torch.zeros(())
