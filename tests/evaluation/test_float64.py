"""Code that asks for float32 computes in float64, and what does not is named."""

from __future__ import annotations

import torch

from gguf_tools.evaluation.float64 import in_float64


def norm(x: torch.Tensor) -> torch.Tensor:
    """As most model code has it: the arithmetic in float32 whatever comes in."""
    wide = x.to(torch.float32)
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).float() + 1e-6)


def test_requests_for_float32_give_float64() -> None:
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert norm(x).dtype == torch.float32
    with in_float64() as mode:
        found = norm(x)
        assert torch.tensor(0.5).dtype == torch.arange(3, dtype=torch.float).dtype == torch.float64
        assert x.softmax(-1, dtype=torch.float32).dtype == torch.float64
    assert mode.rounded == set()
    assert torch.allclose(found, exact, rtol=1e-14, atol=0)
    assert torch.get_default_dtype() == torch.float32
    assert norm(x).dtype == torch.float32


def test_what_is_rounded_all_the_same_is_named() -> None:
    with in_float64() as mode:
        torch.ones(2).to(torch.bfloat16)
        torch.ones(2).half()
    assert mode.rounded == {"to", "half"}
