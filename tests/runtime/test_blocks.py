"""Logits that llama.cpp gives block by block are those of the whole sequence, and nothing may come between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.runtime.process import Runtime
from tests.tiny_gguf import CONTEXT, VOCAB, write_dense, write_hybrid


@pytest.mark.parametrize("write", [write_dense, write_hybrid])
def test_blocks_are_the_whole(write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(1).integers(0, 256, CONTEXT - 3).tolist()
    with Runtime(write(tmp_path / "a.gguf")) as runtime:
        (whole,) = runtime.logits([tokens])
        monkeypatch.setattr(runtime, "block_size", lambda _: 64)
        blocks = list(runtime.iter_blocks(tokens))
        assert [block.shape for block in blocks] == [(64, VOCAB)] * 3 + [(61, VOCAB)]
        np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=1e-4, atol=1e-5)
        (again,) = runtime.logits([tokens])
        np.testing.assert_array_equal(again, whole)
        assert len(list(runtime.iter_blocks(tokens[:5]))) == 1


def test_a_block_is_shorter_in_a_long_context(tmp_path: Path) -> None:
    with Runtime(write_dense(tmp_path / "a.gguf")) as runtime:
        assert runtime.block_size(range(256)) == runtime.info.batch == 512
        assert runtime.block_size(range(1 << 15)) == 256
        assert runtime.block_size(range(1 << 20)) == 32


def test_another_request_between_two_blocks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = list(range(100))
    with Runtime(write_dense(tmp_path / "a.gguf")) as runtime:
        monkeypatch.setattr(runtime, "block_size", lambda _: 64)
        blocks = runtime.iter_blocks(tokens)
        next(blocks)
        runtime.logits([[1, 2, 3]])
        with pytest.raises(LlamaError, match="the block begins at token 64, but -1 tokens were read"):
            next(blocks)
        with pytest.raises(InputError, match="token id 999"):
            list(runtime.iter_blocks([999]))
        with pytest.raises(InputError, match="sequence 0 needs 300 tokens"):
            list(runtime.iter_blocks([1] * 300))
