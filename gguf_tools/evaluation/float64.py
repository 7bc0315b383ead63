"""Float64 for code that asks for float32: norms, softmax, rope and routers of most model code compute in float32, whatever
the type of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class InFloat64(TorchFunctionMode):
    """A context in which every request for float32 gives float64.

    Works on the calls (torch functions and tensor methods), so that the code that makes them is not touched.
    `rounded` names the functions whose results were floating point of another type all the same: where it is empty,
    everything was computed in float64.
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
        """Call `func` with float64 wherever float32 was given."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        result = func(*map(_wide, args), **{name: _wide(value) for name, value in (kwargs or {}).items()})
        if isinstance(result, torch.Tensor) and result.is_floating_point() and result.dtype != torch.float64:
            self.rounded.add(getattr(func, "__name__", str(func)))
        return result


@contextmanager
def in_float64() -> Iterator[InFloat64]:
    """`InFloat64` with float64 as the default type of new tensors as well."""
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
