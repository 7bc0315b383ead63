"""Runs code in float64 that requests float32: norms, softmax, RoPE and routers of most model code compute in float32 for
weights of any type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class InFloat64(TorchFunctionMode):
    """A context in which every request for float32 gives float64.

    It intercepts torch functions and tensor methods, so that the calling code need not change. `rounded` has the names of
    functions whose results were nevertheless of another floating-point type; if it is empty, all results were float64.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounded: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func` with float32 replaced by float64 in its arguments."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        result = func(*map(_wide, args), **{name: _wide(value) for name, value in (kwargs or {}).items()})
        if isinstance(result, torch.Tensor) and result.is_floating_point() and result.dtype != torch.float64:
            self.rounded.add(getattr(func, "__name__", str(func)))
        return result


@contextmanager
def in_float64() -> Iterator[InFloat64]:
    """`InFloat64`, with float64 also as the default type of new tensors."""
    before = torch.get_default_dtype()
    mode = InFloat64()
    torch.set_default_dtype(torch.float64)
    try:
        with mode:
            yield mode
    finally:
        torch.set_default_dtype(before)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
