"""`tinyq convert --type T` gives the bytes of convert to f32 and then quantize; raw rows are the stored ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.quantization.plan import QuantizeRequest
from gguf_tools.quantization.plan import prepare as prepare_quantize
from gguf_tools.quantization.write import execute as quantize
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped, concatenate, scaled, stack, take
from quant.encode import widen
from quant.options import Override, TypeOptions, writable_type
from quant.types import BF16, F32
from tests.tiny_models import checkpoint, dense, hybrid, moe

CONFIGS = {
    "dense": dense(hidden_size=256, intermediate_size=256, head_dim=64),
    "moe": moe(hidden_size=256, moe_intermediate_size=64),
    "hybrid": hybrid(),
}
OPTIONS = TypeOptions(
    output_type=writable_type("q5_k"), embedding_type=writable_type("q8_0"), overrides=(Override.parse("ffn_up=q5_1"),)
)


def data(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor."""
    tensors = open_gguf(path).tensors
    return {name: (t.dtype, t.raw(0, t.size).tobytes()) for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_pass_gives_the_bytes_of_two(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = checkpoint(tmp_path / name, CONFIGS[name], dtype=dtype)
    execute(prepare(Request(source=folder, type="f32")), tmp_path / "f32.gguf")
    for kind, options in (
        ("q8_0", None),
        ("q4_k_m", None),
        ("q6_k", OPTIONS),
        ("f16", None),
        ("q4_0", TypeOptions(pure=True)),
    ):
        options = options or TypeOptions()
        execute(prepare(Request(source=folder, type=kind, options=options)), tmp_path / "once.gguf", force=True)
        plan = prepare_quantize(QuantizeRequest(source=tmp_path / "f32.gguf", type=kind, options=options))
        quantize(plan, tmp_path / "twice.gguf", force=True, threads=1)
        assert data(tmp_path / "once.gguf") == data(tmp_path / "twice.gguf")


def test_raw_rows_are_the_stored_ones(qwen3_folder: Path) -> None:
    tensors = open_checkpoint(qwen3_folder).tensors
    base = next(tensor for name, tensor in tensors.items() if name.endswith("q_proj.weight"))
    rows, columns = base.shape
    shuffled = take(base, np.random.default_rng(0).permutation(rows))
    views: list[Tensor] = [base, shuffled, concatenate([base, shuffled]), stack([base, base])]
    views.append(Reshaped(base, (rows // 2, 2 * columns)))
    for view in views:
        assert view.stored is BF16
        raw = view.raw(columns, 3 * columns)
        assert raw.dtype == np.uint16
        assert np.array_equal(widen(raw, BF16), view.flat(columns, 3 * columns))  # type: ignore[arg-type]
    for other in (scaled(base, 2.0), concatenate([base, scaled(base, 2.0)])):
        assert other.stored is F32
        assert other.raw(0, columns).dtype == np.float32
