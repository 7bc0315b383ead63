"""Merging adapters into a checkpoint: the same tensor names, with other (lazy) tensors.

Everything that reads the checkpoint afterwards (families, reference, surgery, verification) sees the merged model. Sums are
computed in float64 and rounded once to float32; PEFT's `merge_and_unload` computes in the weight's own type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.sources.adapters.adapter import Adapter, Factors
from gguf_tools.sources.adapters.experts import merge_experts
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tower_names import tower_of
from gguf_tools.sources.tying import TIE
from gguf_tools.tensors.base import Tensor, same_values
from gguf_tools.tensors.low_rank import LowRank, Plus, Term, WithNorms, is_merged
from gguf_tools.tensors.views import concatenate, take
from gguf_tools.text import shortened

ROOTS = frozenset(
    {"model", "language_model", "transformer", "text_model", "backbone", "gpt_neox", "decoder", "base_model"}
)
"""First components of tensor names, which depend on how the model was saved and loaded."""
EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|word_embeddings|embed_in|embeddings|tok_embeddings)\.weight")
OUTPUT = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")
OUTPUT_NAME = "lm_head.weight"
CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc|q_attn)\.weight")
"""GPT-2's projections, which transformers stores as (inputs, outputs)."""
MOST_COMPARED = 20_000
"""Names among which the nearest is looked for."""
FLOATS = ("F64", "F32", "F16", "BF16")


def merge_adapters(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its `adapters` merged, in their order; they are `merged` then.

    Raises UnsupportedError or CheckpointError, naming the tensor, if an adapter has a tensor that the checkpoint has no place
    for, or of a shape that does not fit, or if a part cannot be scaled or combined as asked.
    """
    if not checkpoint.adapters:
        return checkpoint
    merging = _Merging(checkpoint)
    for adapter in checkpoint.adapters:
        merging.add(adapter)
    return merging.result()


class _Merging:
    """The checkpoint's tensors while adapters are merged into them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tensors = dict(checkpoint.tensors)
        self.names = _by_inner_name(self.tensors)
        self.notes: list[str] = []
        self.config: Mapping[str, Any] = checkpoint.config
        self.conv1d = any(
            name.endswith(".c_attn.weight") and len(tensor.shape) == 2 and tensor.shape[1] == 3 * tensor.shape[0]
            for name, tensor in self.tensors.items()
        )

    def add(self, adapter: Adapter) -> None:
        """Merge one adapter into what there is."""
        left_out: list[str] = []
        before = {id(tensor) for tensor in self.tensors.values()}
        self._untie(adapter)
        for name, tensor in adapter.replaced.items():
            if tower_of(name):
                left_out.append(name)
            else:
                self._replace(adapter, name, tensor)
        for module, rows in adapter.rows.items():
            self._replace_rows(adapter, module, rows)
        for module, factors in adapter.factors.items():
            if tower_of(module):
                left_out.append(module)
            else:
                self._merge(adapter, module, factors)
        for module, parts in adapter.experts.items():
            self._merge_experts(adapter, module, parts)
        if adapter.config.tied:
            self._tie(adapter)
        changed = sum(id(tensor) not in before for tensor in self.tensors.values())
        self.notes += _notes(adapter, self.checkpoint, changed, left_out)

    def result(self) -> Checkpoint:
        notes = (*self.checkpoint.notes, *self.notes)
        merged = (*self.checkpoint.merged, *self.checkpoint.adapters)
        return replace(
            self.checkpoint, tensors=self.tensors, config=self.config, notes=notes, adapters=(), merged=merged
        )

    def _find(self, adapter: Adapter, name: str) -> str:
        """The checkpoint's name of the tensor that the adapter calls `name`."""
        known = self._known(name) or self._known(name.replace(".mlp.", ".block_sparse_moe."))
        if known is not None:
            return known
        found = self.names.get(_inner(name), [])
        if found:
            raise UnsupportedError(
                f"{adapter.path}: has weights for {shortened(name)}, which may be {' or '.join(found[:3])} of "
                f"{self.checkpoint.path}; merge it with peft (merge_and_unload, then save_pretrained)"
            )
        near = get_close_matches(name[:200], list(self.tensors)[:MOST_COMPARED], n=1)
        raise UnsupportedError(
            f"{adapter.path}: has weights for {shortened(name)}, but {self.checkpoint.path} has no such tensor"
            f"{f' (the nearest is {near[0]})' if near else ''}; give the base that the adapter was trained on{_base(adapter)}, "
            "or merge it with peft (merge_and_unload, then save_pretrained)"
        )

    def _merge_experts(self, adapter: Adapter, module: str, parts: Sequence[Factors]) -> None:
        """Add the factors of fused experts to their tensors."""
        embedding = next((tensor for name, tensor in self.tensors.items() if EMBEDDING.fullmatch(name)), None)
        for name, tensor in merge_experts(
            adapter, module, parts, self.tensors, self._known, embedding.columns if embedding is not None else 0
        ).items():
            if is_merged(self.tensors[name]):
                raise UnsupportedError(
                    f"{adapter.path}: changes {name}, which another adapter changes too; merge them with peft"
                )
            self.tensors[name] = tensor

    def _known(self, name: str) -> str | None:
        """The checkpoint's name of a tensor; None if it has none, or several that may be meant."""
        if name in self.tensors:
            return name
        found = self.names.get(_inner(name), [])
        return found[0] if len(found) == 1 else None

    def _merge(self, adapter: Adapter, module: str, factors: Factors) -> None:
        """Add a module's product to its weight, and its bias to the bias."""
        name = self._find(adapter, f"{module}.weight")
        weight = self.tensors[name]
        config = adapter.config
        for key, part in (("A", factors.a), ("B", factors.b), ("weight", weight)):
            if part.dtype not in FLOATS:
                raise UnsupportedError(
                    f"{adapter.path}: {key} of {shortened(module)} is stored as {part.dtype}; expected {', '.join(FLOATS)}"
                )
        rank = config.rank_of(module)
        if factors.a.shape[0] != rank:
            raise CheckpointError(
                f"{adapter.path}: A of {shortened(module)} has {factors.a.shape[0]} rows, but adapter_config.json gives it the "
                f"rank {rank}; check r and rank_pattern"
            )
        shape = (factors.b.shape[0], factors.a.shape[1])
        transposed = factors.embedding or self._transposed(adapter, name, shape)
        if weight.shape != (shape[::-1] if transposed else shape):
            raise CheckpointError(
                f"{adapter.path}: its factors of {shortened(module)} make a matrix of shape {shape}, but {name} of "
                f"{self.checkpoint.path} has the shape {weight.shape}; give the base that the adapter was trained on"
                f"{_base(adapter)}"
            )
        term = Term(factors.b, factors.a, config.scale_of(module) * adapter.scale, transposed)
        merged: Tensor = self._with_term(adapter, name, weight, term)
        if factors.magnitude is not None:
            merged = self._with_norms(adapter, name, merged, factors.magnitude, transposed)
        elif config.dora:
            raise CheckpointError(
                f"{adapter.path}: {shortened(module)} has no lora_magnitude_vector; download the file again"
            )
        self.tensors[name] = merged
        if factors.bias is not None:
            self._add_bias(adapter, module, factors.bias)

    def _with_term(self, adapter: Adapter, name: str, weight: Tensor, term: Term) -> LowRank:
        if isinstance(weight, WithNorms):
            raise UnsupportedError(
                f"{adapter.path}: changes {name} after a DoRA adapter, which is not supported; merge them with peft"
            )
        if isinstance(weight, LowRank):
            return LowRank(weight.base, (*weight.terms, term))
        return LowRank(weight, (term,))

    def _with_norms(self, adapter: Adapter, name: str, merged: Tensor, magnitude: Tensor, transposed: bool) -> Tensor:
        """The matrix with DoRA's norms of its outputs: of its columns where it is stored as (inputs, outputs)."""
        _whole(adapter, f"DoRA's magnitudes of {name}")
        if isinstance(self.tensors[name], LowRank):
            raise UnsupportedError(
                f"{adapter.path}: DoRA on {name}, which another adapter changes too, is not supported; merge them with peft"
            )
        if magnitude.size != merged.shape[1 if transposed else 0]:
            raise CheckpointError(
                f"{adapter.path}: DoRA's magnitudes of {name} have the shape {magnitude.shape}; expected one for each of the "
                f"{merged.shape[1 if transposed else 0]} outputs; download the file again"
            )
        return WithNorms(merged, magnitude, transposed)

    def _transposed(self, adapter: Adapter, name: str, shape: tuple[int, int]) -> bool:
        """Whether the matrix is stored as (inputs, outputs). `shape` is (outputs, inputs); a square one does not tell."""
        if shape[0] != shape[1]:
            return self.tensors[name].shape == shape[::-1]
        if CONV1D.fullmatch(name):
            return self.conv1d
        return adapter.config.transposed and not self.conv1d

    def _add_bias(self, adapter: Adapter, module: str, bias: Tensor) -> None:
        name = self._find(adapter, f"{module}.bias")
        there = self.tensors[name]
        if there.shape != bias.shape:
            raise CheckpointError(
                f"{adapter.path}: its bias of {shortened(module)} has the shape {bias.shape}, but {name} has {there.shape}; give "
                f"the base that the adapter was trained on{_base(adapter)}"
            )
        self.tensors[name] = Plus(there, bias, adapter.config.scale_of(module) * adapter.scale)

    def _replace(self, adapter: Adapter, name: str, tensor: Tensor) -> None:
        """Put a tensor that was saved whole in place of the base's; embeddings may have other rows."""
        found = self._find(adapter, name)
        there = self.tensors[found]
        if adapter.scale != 1.0 and same_values(there, tensor):  # saved beside trained factors, and not trained
            return
        _whole(adapter, name)
        resized = bool(EMBEDDING.fullmatch(found) or OUTPUT.fullmatch(found)) and there.shape[1:] == tensor.shape[1:]
        if there.shape != tensor.shape and not resized:
            raise CheckpointError(
                f"{adapter.path}: its {shortened(name)} has the shape {tensor.shape}, but {found} of {self.checkpoint.path} has "
                f"{there.shape}; give the base that the adapter was trained on{_base(adapter)}"
            )
        if there.shape != tensor.shape:
            self._resized(adapter, found, tensor.shape[0])
        if isinstance(there, LowRank | Plus | WithNorms):
            raise UnsupportedError(
                f"{adapter.path}: replaces {found}, which another adapter changes too; give them in the other order, or merge "
                "them with peft"
            )
        self.tensors[found] = tensor

    def _resized(self, adapter: Adapter, name: str, rows: int) -> None:
        self.notes.append(
            f"the adapter's {name} has {rows} rows, the base's {self.tensors[name].shape[0]}: tokens were added or removed; "
            f"--tokenizer {adapter.path} uses the tokenizer saved with the adapter"
        )
        config = dict(self.config)
        if "vocab_size" in config:
            config["vocab_size"] = rows
        if isinstance(text := config.get("text_config"), dict) and "vocab_size" in text:
            config["text_config"] = {**text, "vocab_size": rows}
        self.config = config

    def _replace_rows(self, adapter: Adapter, module: str, rows: Tensor) -> None:
        """Put trained rows in place of an embedding's."""
        _whole(adapter, f"rows of {module}")
        lists = adapter.config.tokens
        ids = next(
            (ids for key, ids in lists.items() if key and re.fullmatch(rf"(.*\.)?{re.escape(key)}", module)), None
        )
        ids = lists.get("") if ids is None else ids
        name = self._find(adapter, f"{module}.weight")
        there = self.tensors[name]
        if ids is None or rows.shape != (len(ids), *there.shape[1:]) or (ids and max(ids) >= there.shape[0]):
            raise CheckpointError(
                f"{adapter.path}: has {rows.shape} trained rows of {name}, whose shape is {there.shape}, for "
                f"{0 if ids is None else len(ids)} trainable_token_indices in adapter_config.json; download it again"
            )
        index = np.arange(there.shape[0])
        index[list(ids)] = there.shape[0] + np.arange(len(ids))
        self.tensors[name] = take(concatenate([there, rows]), index)

    def _untie(self, adapter: Adapter) -> None:
        """Give the output projection a tensor of its own where it was the embedding and the adapter changes them separately.

        As in PEFT's forward pass: a changed embedding does not change the output (its merge would change both). Trained rows
        do, and with ensure_weight_tying everything does.
        """
        if any(OUTPUT.fullmatch(name) for name in self.tensors):
            return
        output, embedding = (_changes(adapter, pattern) for pattern in (OUTPUT, EMBEDDING))
        found = [name for name in self.tensors if EMBEDDING.fullmatch(name)]
        if len(found) != 1 or not (output or (embedding and not adapter.config.tied)):
            return
        self.tensors[OUTPUT_NAME] = self.tensors[found[0]]
        self.names[_inner(OUTPUT_NAME)] = [OUTPUT_NAME]
        if adapter.config.tied:
            return
        config = dict(self.config)
        if TIE in config or not isinstance(config.get("text_config"), dict):
            config[TIE] = False
        if isinstance(text := config.get("text_config"), dict):
            config["text_config"] = {**text, TIE: False}
        self.config = config
        what = "each of them" if output and embedding else "the output projection" if output else "the embedding"
        self.notes.append(
            f"embedding and output projection were tied, and the adapter changes {what} alone: they are stored separately"
        )

    def _tie(self, adapter: Adapter) -> None:
        """Give an output projection that repeats the embedding what the adapter did to that (ensure_weight_tying)."""
        outputs, embeddings = (
            [name for name in self.tensors if pattern.fullmatch(name)] for pattern in (OUTPUT, EMBEDDING)
        )
        if len(outputs) == len(embeddings) == 1 and not _changes(adapter, OUTPUT):
            self.tensors[outputs[0]] = self.tensors[embeddings[0]]


def _changes(adapter: Adapter, pattern: re.Pattern[str]) -> bool:
    """Whether the adapter has factors for, or replaces, a tensor of such a name."""
    names = [*adapter.replaced, *(f"{module}.weight" for module in adapter.factors)]
    return any(map(pattern.fullmatch, names))


def _whole(adapter: Adapter, what: str) -> None:
    if adapter.scale != 1.0:
        raise InputError(
            f"--lora {adapter.text}: the adapter replaces {shortened(what)}, which cannot be scaled; leave out @{adapter.scale:g}"
        )


def _by_inner_name(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_inner(name), []).append(name)
    return found


def _inner(name: str) -> str:
    """The name without the components that depend on how the model was saved."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in ROOTS:
        parts = parts[1:]
    return ".".join(parts)


def _base(adapter: Adapter) -> str:
    return f" ({shortened(adapter.config.base)})" if adapter.config.base else ""


def _notes(adapter: Adapter, checkpoint: Checkpoint, changed: int, left_out: Sequence[str]) -> list[str]:
    """What the user should know of a merge that changed so many tensors."""
    notes = [f"the adapter {adapter.text} is merged into {changed} tensors"]
    base = adapter.config.base.replace("\\", "/").rstrip("/")
    if base and base.rpartition("/")[2].lower() != checkpoint.folder.resolve().name.lower():
        notes.append(f"the adapter says that it was trained on {shortened(base)}; it is merged into {checkpoint.path}")
    if left_out:
        notes.append(
            f"the adapter's weights for the vision or audio tower ({len(left_out)}, such as {left_out[0]}) are left out"
        )
    return notes
