"""Meta's checkpoints: `consolidated.NN.pth` with `params.json`, several files where tensor parallelism cut the matrices.

Source: meta-llama/llama-models, `models/llama3/model.py` (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding) and
Llama 2's `model.py` (ParallelEmbedding). Of each matrix file NN holds an equal share: of rows, where the matrix makes the
larger space (wq, wk, wv, w1, w3, output), of columns, where it leads back (wo, w2). Norms are repeated in every file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.tensors.base import Tensor, same_values
from gguf_tools.tensors.views import Columns, concatenate

FILE = re.compile(r"consolidated\.(\d{2,5})\.pth")
COLUMNS = re.compile(r"(.*\.)?(wo|w2)\.weight")
REPEATED = re.compile(r"(.*\.)?(attention_norm|ffn_norm|norm)\.weight|rope\.freqs|(.*\.)?gate\.weight")
EMBEDDING = "tok_embeddings.weight"
NORM = "norm.weight"


def consolidated_files(folder: Path) -> list[Path]:
    """The folder's `consolidated.NN.pth` in order; CheckpointError where a number is missing."""
    numbered = {int(match[1]): path for path in folder.iterdir() if (match := FILE.fullmatch(path.name))}
    lacking = next((n for n in range(len(numbered)) if n not in numbered), None)
    if lacking is not None:
        raise CheckpointError(
            f"{folder / f'consolidated.{lacking:02}.pth'}: missing, though {len(numbered)} other shards exist; "
            "download it again"
        )
    return [numbered[n] for n in range(len(numbered))]


def is_one_of_several(path: Path) -> bool:
    """Whether a file is `consolidated.NN.pth` with others beside it, so that it holds a share of every matrix."""
    return (
        bool(FILE.fullmatch(path.name)) and sum(bool(FILE.fullmatch(other.name)) for other in path.parent.iterdir()) > 1
    )


def join_shards(files: Sequence[Path], shards: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The whole tensors by name, lazy.

    Raises CheckpointError where a shard lacks a tensor, or the shares of one do not fit each other.
    """
    if len(shards) == 1:
        return dict(shards[0])
    names = dict.fromkeys(name for shard in shards for name in shard)
    return {name: _joined(name, files, shards) for name in names}


def _joined(name: str, files: Sequence[Path], shards: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """One tensor of all shards: repeated, joined along the columns, or along the first axis."""
    without = next((path for path, shard in zip(files, shards, strict=True) if name not in shard), None)
    if without is not None:
        raise CheckpointError(f"{without}: tensor {name} is missing, which other shards hold; download it again")
    parts = [shard[name] for shard in shards]
    if len({part.shape for part in parts}) != 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise CheckpointError(f"{files[0]}: tensor {name} has shapes {shapes} in the shards; expected equal ones")
    if REPEATED.fullmatch(name):
        if not all(same_values(parts[0], part) for part in parts[1:]):
            raise CheckpointError(f"{files[0]}: tensor {name} differs between the shards; expected equal ones")
        return parts[0]
    if len(parts[0].shape) == 2 and (COLUMNS.fullmatch(name) or (name == EMBEDDING and _wide(shards))):
        return Columns(tuple(parts), np.arange(len(parts) * parts[0].shape[1]))
    return concatenate(parts)


def _wide(shards: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether the embedding is cut into columns, as Llama 2's is, and not into rows: its rows are shorter than the norm."""
    norm = shards[0].get(NORM)
    return norm is not None and shards[0][EMBEDDING].shape[1] * len(shards) == norm.size
