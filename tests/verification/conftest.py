"""Checkpoints and files in llama.cpp's layout, made once and never changed; `quantized` files likewise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.imatrix import write_imatrix
from quant.imatrix import ImportanceMatrix, Statistics
from quant.recipes import recipe
from tests.quant.quant_oracle import llama
from tests.verification.theirs import as_arrays, write_source, write_theirs

Quantized = Callable[..., Path]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind → the folder of its checkpoint."""
    root, made = tmp_path_factory.mktemp("verify-sources"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_source(root / kind, kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def importance(tmp_path_factory: pytest.TempPathFactory, sources: Callable[[str], Path]) -> Callable[[str], Path]:
    """kind → an importance matrix for its files."""
    root = tmp_path_factory.mktemp("verify-imatrix")

    def get(kind: str) -> Path:
        out = root / f"{kind}.gguf"
        if not out.exists():
            plain = write_theirs(sources(kind), kind, root / f"{kind}-plain.gguf")
            rng, entries = np.random.default_rng(7), {}
            for entry in read_header(plain).tensors:
                if len(entry.shape) > 1 and entry.type.name != "f32":
                    matrices = entry.shape[0] if len(entry.shape) > 2 else 1
                    sums = np.exp(rng.standard_normal((matrices, entry.shape[-1])) * 1.5).astype(np.float32)
                    entries[entry.name] = Statistics(sums, np.ones(matrices, np.int64))
            write_imatrix(ImportanceMatrix(entries=entries, chunks=1, chunk_size=1), out)
        return out

    return get


@pytest.fixture(scope="session")
def quantized(
    tmp_path_factory: pytest.TempPathFactory,
    sources: Callable[[str], Path],
    importance: Callable[[str], Path],
) -> Quantized:
    """(kind, type, by_way_of, with_importance) → a file that llama.cpp quantized."""
    root = tmp_path_factory.mktemp("verify-files")

    def get(kind: str, type_name: str, by_way_of: str = "bf16", with_importance: bool = False) -> Path:
        plain = root / f"{kind}-{by_way_of}.gguf"
        if not plain.exists():
            write_theirs(sources(kind), kind, plain, by_way_of)
        out = root / f"{kind}-{by_way_of}-{type_name}-{with_importance}.gguf"
        if not out.exists():
            given = {"imatrix": str(as_arrays(importance(kind), root))} if with_importance else {}
            llama().quantize(plain, out, recipe(type_name).file_type, **given)
        return out

    return get
