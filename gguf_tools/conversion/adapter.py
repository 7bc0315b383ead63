"""A LoRA adapter as a GGUF that llama.cpp applies to its base's GGUF (`--lora`), for the same architecture and rewrites.

The base with the adapter merged is planned like any conversion; what the adapter changed in each tensor of the result is then
written as a pair of factors. Source: `llama_adapter_lora_init_impl` (`src/llama-adapter.cpp`) for keys and shapes,
`build_lora_mm`, `build_lora_mm_id` and `build_inp_embd` (`src/llama-graph.cpp`) for what is computed: alpha / rank · B · A · x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from gguf_tools import __version__
from gguf_tools.conversion.auto_type import TypeDecision, smallest_exact
from gguf_tools.conversion.background import Background
from gguf_tools.conversion.plan import opened_source
from gguf_tools.conversion.request import AUTO, Request
from gguf_tools.conversion.write import source_metadata
from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.families.registry import build_published
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import Metadata, ValueType, array, f32, pack_header, string, u32
from gguf_tools.formats.gguf.writer import GGUFFile, Layout, layout, write_blocks
from gguf_tools.formats.output import Check, atomic_output, check_outputs
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.adapters.adapter import Adapter, adapter_files
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.inputs import source_files
from gguf_tools.sources.restore import restore
from gguf_tools.targets.base import OutputTensor
from gguf_tools.targets.planner import Plan, plan
from gguf_tools.tensors.base import Tensor, same_values
from gguf_tools.tensors.blocks import Tally, tensor_blocks
from gguf_tools.tensors.low_rank import is_merged
from gguf_tools.tensors.low_rank_change import NotLowRankError, changes, joined, rows_of
from quant.encode import Encoder, FloatArray
from quant.recipes import recipe
from quant.types import TensorType, tensor_type

TYPES = ("f32", "f16", "bf16")
"""The types that factors are stored in; rows of B are too short for blocks."""
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
NOT_MULTIPLIED = ("position_embd.weight", "ssm_conv1d.weight", "shortconv.conv.weight")
"""Ends of names of tensors that llama.cpp does not multiply with a vector, so that it applies no adapter to them."""
ONE_ROW = "ffn_gate_inp_shexp.weight"
"""The end of the names of matrices of one row that are stored as vectors."""
MERGE = "merge it with `tinyq convert BASE OUT.gguf --lora ADAPTER`"


@dataclass(frozen=True, eq=False)
class Factored:
    """The change of one tensor: `rank` is the largest of its matrices', to which the others are filled up with zeros."""

    name: str
    tensor: Tensor
    rank: int

    @property
    def embedding(self) -> bool:
        """Whether it is the token embedding, whose rows are looked up: A and B change places."""
        return self.name == EMBEDDING


@dataclass(frozen=True, eq=False)
class Factor(Tensor):
    """A (`which` 0) or B (1) of a change, times `scale`.

    Shapes: (rank, inputs) and (outputs, rank), with the axis of experts first; for the token embedding (vocabulary, rank) and
    (hidden, rank).
    """

    of: Factored
    which: int
    scale: float
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        *experts, outputs, inputs = _axes(self.of.tensor)
        if self.of.embedding:
            return (inputs if self.which else outputs, self.of.rank)
        return (*experts, outputs, self.of.rank) if self.which else (*experts, self.of.rank, inputs)

    @property
    def sources(self) -> tuple[str, ...]:
        return self.of.tensor.sources

    def flat(self, start: int, stop: int) -> FloatArray:
        return np.asarray(_arrays(self.of)[self.which].reshape(-1)[start:stop] * self.scale, np.float32)


def _axes(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a matrix, or of a matrix for each expert; a vector is a matrix of one row."""
    return (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape


@lru_cache(2)
def _arrays(factored: Factored) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], ...]:
    """A and B in float64, in the shapes of `Factor`."""
    tensor, rank = factored.tensor, factored.rank
    *experts, outputs, inputs = _axes(tensor)
    count = rows_of(tensor) // outputs
    first, second = np.zeros((count, rank, inputs)), np.zeros((count, outputs, rank))
    for n in range(count):
        if found := changes(tensor, n * outputs, (n + 1) * outputs):
            left, right = joined(found)
            first[n, : len(right)], second[n, :, : len(right)] = right, left
    if factored.embedding:
        return second[0], first[0].T
    return first.reshape(*experts, rank, inputs), second.reshape(*experts, outputs, rank)


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """The complete plan of an adapter's file; nothing has been written yet. `base` is the checkpoint without the adapter."""

    adapter: Adapter
    base: Checkpoint
    merged: Plan
    changed: tuple[Factored, ...]
    tensors: tuple[OutputTensor, ...]
    decision: TypeDecision
    metadata: Metadata
    layout: Layout
    notes: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """The llama.cpp architecture of the base's file, which the adapter's must be."""
        return self.merged.target.name

    @property
    def type(self) -> TensorType:
        """The type of all tensors."""
        return tensor_type(self.decision.recipe.upper())

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.layout.size(self.metadata)


def plan_adapter(request: Request) -> AdapterPlan:
    """Plan the file of the request's only adapter for its base, `request.source`. Reads the adapter, and headers of the base.

    Raises UnsupportedError, naming the tensor, for what llama.cpp cannot apply as an adapter; errors as `open_source`.
    """
    if request.type not in (AUTO, *TYPES):
        raise InputError(f"--type is {request.type}; an adapter is stored as {', '.join((AUTO, *TYPES))}")
    opened = opened_source(request)
    with_adapter = restore(opened, text_only=request.text_only)
    base = restore(replace(opened, adapters=()), text_only=request.text_only)
    (adapter,) = with_adapter.merged
    _refuse_whole(adapter, base)
    model = build_published(base, as_family=request.as_family, check_type=request.check_type)
    changed_model = build_published(with_adapter, as_family=request.as_family, check_type=lambda *_: "")
    planned = plan(model, request.target)
    merged = plan(changed_model, planned.target.name)
    before, after = planned.lower(), merged.lower()
    if planned.model.spec != merged.model.spec or [t.name for t in before.tensors] != [t.name for t in after.tensors]:
        raise UnsupportedError(
            f"{adapter.path}: changes embedding and output projection of {request.source} separately, which are one tensor in "
            f"its file; {MERGE}"
        )
    names = {output.name for output in after.tensors}
    changed = tuple(
        _factored(adapter, output, names, planned.target.name) for output in after.tensors if is_merged(output.tensor)
    )
    if not changed:
        raise UnsupportedError(f"{adapter.path}: changes no tensor of the converted base; {MERGE}")
    alpha = adapter.config.alpha or 1.0
    tensors = tuple(
        OutputTensor(f"{one.name}.lora_{'ab'[which]}", Factor(one, which, one.rank / alpha if which else 1.0))
        for one in changed
        for which in range(2)
    )
    if request.type == AUTO:
        decision = smallest_exact([output.tensor for output in tensors], request.workers, lambda _: None)
    else:
        decision = TypeDecision(request.type, "requested")
    dtype = tensor_type(decision.recipe.upper())
    added = [note for note in with_adapter.notes if note not in base.notes]
    notes = (*model.notes, *(note for note in added if " is merged into " not in note))
    return AdapterPlan(
        adapter=adapter,
        base=base,
        merged=merged,
        changed=changed,
        tensors=tensors,
        decision=decision,
        metadata=_metadata(adapter, merged, decision, alpha, notes),
        layout=layout((output.name, output.tensor.shape, dtype) for output in tensors),
        notes=notes,
    )


def _refuse_whole(adapter: Adapter, base: Checkpoint) -> None:
    """Raise UnsupportedError for parts of an adapter that are not products of factors."""
    found = [f"DoRA on {module}" for module, part in adapter.factors.items() if part.magnitude is not None]
    found += [f"a bias for {module}" for module, part in adapter.factors.items() if part.bias is not None]
    found += [f"trained rows of {module}" for module in adapter.rows]
    for name, tensor in adapter.replaced.items():
        there = base.tensors.get(name)
        if there is None or not same_values(there, tensor):
            found.append(f"a trained {name}")
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UnsupportedError(
            f"{adapter.path}: has {found[0]}{more}, which llama.cpp's adapters cannot express; {MERGE}"
        )


def _factored(adapter: Adapter, output: OutputTensor, names: set[str], architecture: str) -> Factored:
    """The change of one tensor of the file. Raises UnsupportedError if llama.cpp cannot apply it."""
    name, tensor = output.name, output.tensor
    reason = None
    if (len(tensor.shape) not in (2, 3) and not name.endswith(ONE_ROW)) or name.endswith(NOT_MULTIPLIED):
        reason = "llama.cpp applies adapters to matrices that are multiplied alone"
    elif name == EMBEDDING and OUTPUT not in names:
        reason = "the embedding is the output projection too, to which llama.cpp would apply the adapter with the wrong shape"
    outputs = _axes(tensor)[-2]
    rank = 0
    if reason is None:
        try:
            for n in range(rows_of(tensor) // outputs):
                rank = max(rank, sum(len(part.right) for part in changes(tensor, n * outputs, (n + 1) * outputs)))
        except NotLowRankError as error:
            reason = str(error)
    if reason is not None:
        raise UnsupportedError(
            f"{adapter.path}: its change of {', '.join(tensor.sources[:2])} cannot be applied to {name} of {architecture}: "
            f"{reason}; {MERGE}"
        )
    return Factored(name, tensor, rank)


def _metadata(adapter: Adapter, merged: Plan, decision: TypeDecision, alpha: float, notes: Sequence[str]) -> Metadata:
    """The file's metadata but for the paths and digests."""
    values: Metadata = {
        "general.architecture": string(merged.target.name),
        "general.type": string("adapter"),
        "general.name": string(adapter.path.resolve().name),
        "general.file_type": u32(recipe(decision.recipe).file_type),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(alpha),
        keys.VERSION: string(__version__),
        keys.FAMILY: string(merged.model.family),
        keys.TARGET: string(merged.target.name),
        keys.TYPE: string(decision.recipe),
    }
    if adapter.config.base:
        organization, _, name = adapter.config.base.rpartition("/")
        values |= {"general.base_model.count": u32(1), "general.base_model.0.name": string(name)}
        if organization and "/" not in organization and not Path(adapter.config.base).exists():
            values |= {
                "general.base_model.0.organization": string(organization),
                "general.base_model.0.repo_url": string(f"https://huggingface.co/{adapter.config.base}"),
            }
    if merged.rewrites:
        values[keys.REWRITES] = array(ValueType.STRING, [rewrite.name for rewrite in merged.rewrites])
    if notes:
        values[keys.NOTES] = array(ValueType.STRING, list(notes))
    return values


def adapter_inputs(request: Request) -> tuple[Path, ...]:
    """The files that `plan_adapter` and `write_adapter` may read."""
    adapters = [file for adapter in request.adapters for file in adapter_files(adapter.path)]
    return (*source_files(request.source), *adapters)


def write_adapter(
    planned: AdapterPlan,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    progress: ByteProgress = lambda _: None,
    check: Check | None = None,
) -> int:
    """Write the file atomically; returns its bytes. Raises InputError for weights that are not finite, OutputError."""
    adapter, base = planned.adapter, planned.base
    check_outputs({"OUT": out}, (*base.weight_files, *adapter.files, *source_files(base.path)), force=force)
    metadata = planned.metadata | source_metadata(base.path, [adapter], out)
    size = planned.layout.size(metadata)
    with atomic_output(out, force=force, size=size, check=check) as stream, Background(base.digest) as digest:
        file = GGUFFile(stream, metadata, planned.layout)
        blocks = (
            block for output in planned.tensors for block in tensor_blocks(output.name, planned.type, output.tensor)
        )
        with Encoder(threads) as encoder:
            write_blocks(file, encoder, blocks, Tally(), progress)
        file.finish()
        metadata[keys.SOURCE_DIGEST] = string(digest.result())
        stream.seek(0)
        stream.write(pack_header(metadata, planned.layout.entries, planned.layout.alignment))
    return size
