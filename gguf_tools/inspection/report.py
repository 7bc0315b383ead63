"""Describes a checkpoint or a GGUF file from its headers and config, without reading large tensors."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.families.base import CheckType
from gguf_tools.families.registry import build_published
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader, is_gguf
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.formats.safetensors import WIDTHS
from gguf_tools.inspection.result import Inspection, StoredShare, Vocabulary
from gguf_tools.model.feed_forward import ACTIVATIONS
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import MLP, Attention, DeltaNet, GatedMLP, Mamba2, Model, ModelSpec, MoE, ShortConv
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.sources.restore import restore
from gguf_tools.targets.planner import plan
from gguf_tools.targets.registry import NoTargetError, lift
from gguf_tools.tokenizers.vocabulary import load_tokenizer


def inspect(path: Path, check_type: CheckType | None = None) -> Inspection:
    """Describe a checkpoint or a GGUF file.

    Errors in a readable source are listed under `problems`; raises CheckpointError only if nothing can be read. `check_type`
    is called for a model_type that no family declares.
    """
    return _inspect_gguf(path) if is_gguf(path) else _inspect_checkpoint(path, check_type)


def _inspect_checkpoint(path: Path, check_type: CheckType | None) -> Inspection:
    """A checkpoint's types, model, target and tokenizer, as far as they can be determined."""
    checkpoint = open_checkpoint(path)
    stored = ((t.dtype, t.size, t.size * WIDTHS.get(t.dtype, 1)) for t in checkpoint.tensors.values())
    types = _shares(stored)
    facts: dict[str, Any] = {"problems": (), "notes": checkpoint.notes}
    model = None
    try:
        restored = restore(checkpoint)
        facts["packings"] = restored.packings
        model = build_published(restored, check_type=check_type)
        facts |= _facts(model) | {"family": model.family}
        told = {packing.note for packing in restored.packings}
        facts["notes"] = tuple(note for note in model.notes if note not in told)
        facts["target"] = _target(model)
    except InputError as error:
        facts["problems"] += (str(error),)
    try:
        rows = model.spec.vocab_size if model else _embedding_rows(checkpoint)
        facts["vocabulary"] = _tokenizer(checkpoint, rows)
    except InputError as error:
        facts["problems"] += (str(error),)
    total = sum(share.weights for share in types)
    whole = {"family": None, "parameters": total} | facts
    return Inspection(path=str(path), kind="checkpoint", architecture=None, types=types, **whole)


def _target(model: Model) -> dict[str, Any]:
    made = plan(model)
    return {
        "name": made.target.name,
        "rewrites": [rewrite.name for rewrite in made.rewrites],
        "extra_parameters": made.extra_parameters,
        "extra_cache": made.extra_cache,
    }


def _tokenizer(checkpoint: Checkpoint, rows: int) -> Vocabulary:
    """The checkpoint's tokenizer in llama.cpp's terms, for an embedding of `rows` rows. Errors as `load_tokenizer`."""
    found = load_tokenizer(checkpoint.folder, rows, config=checkpoint.config)
    template = found.chat_template is not None
    return Vocabulary(
        size=rows,
        model=found.model,
        pre=found.pre,
        bos=found.bos_id,
        eos=found.eos_id,
        add_bos=found.add_bos,
        chat_template=template,
    )


def _embedding_rows(checkpoint: Checkpoint) -> int:
    """Number of rows of the embedding in a checkpoint that no family supports; 0 if it is unknown."""
    matrices = (
        tensor.shape[0] for name, tensor in checkpoint.tensors.items() if "embed" in name and len(tensor.shape) == 2
    )
    stated = checkpoint.config.get("vocab_size")
    return next(matrices, stated if type(stated) is int else 0)


def _inspect_gguf(path: Path) -> Inspection:
    """A GGUF file's types, model, vocabulary and provenance, as far as they can be determined."""
    source = open_gguf(path)
    header = source.header
    types = _shares((entry.type.name.upper(), prod(entry.shape), entry.nbytes) for entry in header.tensors)
    facts: dict[str, Any] = {"problems": ()}
    try:
        architecture: str | None = source.architecture
        facts |= {key: _number(source.header, f"{architecture}.{name}") for key, name in GGUF_SIZES.items()}
    except InputError as error:
        architecture = None
        facts["problems"] += (str(error),)
    if architecture:
        try:
            facts |= _facts(lift(source))
        except NoTargetError as error:
            # Nothing is wrong with the file: llama.cpp may run it.
            facts["notes"] = (str(error),)
        except InputError as error:
            facts["problems"] += (str(error),)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # Metadata of unexpected types or values, in a damaged file or one from another program.
            facts["problems"] += (f"{path}: metadata and tensors do not describe a {architecture} model ({error})",)
    facts["parameters"] = sum(share.weights for share in types)
    told = {key: field.value for key, field in header.metadata.items() if key.startswith(("tinyq.", "general.name"))}
    own = {key: value for key, value in told.items() if key != keys.RESERVE}
    return Inspection(
        path=str(path),
        kind="gguf",
        family=own.get(keys.FAMILY),
        architecture=architecture,
        types=types,
        vocabulary=_gguf_vocabulary(header),
        provenance=own,
        **facts,
    )


GGUF_SIZES = {"layers": "block_count", "hidden": "embedding_length", "context": "context_length"}


def _number(header: GGUFHeader, key: str) -> int | None:
    value = header.get(key)
    return value if isinstance(value, int) else None


def _gguf_vocabulary(header: GGUFHeader) -> Vocabulary | None:
    """The vocabulary by the `tokenizer.*` keys; None if tokens or model are missing or of another type."""
    tokens, model = header.get("tokenizer.ggml.tokens"), header.get("tokenizer.ggml.model")
    if not isinstance(tokens, tuple) or not isinstance(model, str):
        return None
    pre = header.get("tokenizer.ggml.pre")
    return Vocabulary(
        size=len(tokens),
        model=model,
        pre=pre if isinstance(pre, str) else None,
        bos=_number(header, "tokenizer.ggml.bos_token_id"),
        eos=_number(header, "tokenizer.ggml.eos_token_id"),
        add_bos=bool(header.get("tokenizer.ggml.add_bos_token")),
        chat_template=header.get("tokenizer.chat_template") is not None,
    )


def _shares(stored: Iterable[tuple[str, int, int]]) -> tuple[StoredShare, ...]:
    """Sums by type of (type, weights, bytes) for each tensor, the type with the most bytes first."""
    sums: dict[str, tuple[int, int, int]] = {}
    for kind, weights, size in stored:
        before = sums.get(kind, (0, 0, 0))
        sums[kind] = before[0] + 1, before[1] + weights, before[2] + size
    return tuple(sorted((StoredShare(kind, *counts) for kind, counts in sums.items()), key=lambda share: -share.bytes))


def _facts(model: Model) -> dict[str, Any]:
    """The fields of `Inspection` that follow from a model."""
    spec = model.spec
    return {
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "layers": len(spec.layers),
        "pattern": spec.pattern,
        "hidden": spec.hidden,
        "context": spec.context_length,
        "details": _details(spec),
        "notes": model.notes,
    }


def _details(spec: ModelSpec) -> dict[str, str]:
    """One line each for embedding, mixers, rope and feed-forwards; if layers differ, it describes the first of each kind."""
    found: dict[str, str] = {"embedding": "tied to the output" if spec.tied else "not tied to the output"}
    for layer in spec.layers:
        mixer, ffn = layer.mixer, layer.feed_forward
        if isinstance(mixer, Attention):
            found.setdefault("attention", _attention_line(mixer))
            if mixer.rope:
                found.setdefault("rope", _rope_line(mixer.rope, mixer.head_dim))
        elif isinstance(mixer, ShortConv):
            found.setdefault("convolution", f"gated short convolution, kernel {mixer.kernel}")
        elif isinstance(mixer, DeltaNet):
            found.setdefault("linear", _delta_line(mixer))
        if layer.state_space:
            where = ", beside the attention" if layer.beside else ""
            found.setdefault("state space", f"{_state_space_line(layer.state_space)}{where}")
        if isinstance(ffn, MoE):
            found.setdefault("experts", _experts_line(ffn))
        elif ffn:
            found.setdefault("dense", f"feed-forward width {ffn.width}{_manner(ffn)}")
    return found


def _manner(ffn: GatedMLP | MLP) -> str:
    """What a dense feed-forward has besides its width, unless it is SwiGLU."""
    gate = "" if isinstance(ffn, GatedMLP) else ", without a gate"
    return f", {ACTIVATIONS[ffn.activation]}{gate}" if gate or ffn.activation != "silu" else ""


def _attention_line(mixer: Attention) -> str:
    parts = [f"{mixer.heads} query and {mixer.kv_heads} key/value heads of size {mixer.head_dim}"]
    parts += ["q/k norm"] if mixer.qk_norm else []
    parts += ["gated"] if mixer.gated else []
    parts += [f"biases on {', '.join(name for name in 'qkvo' if name in mixer.bias)}"] if mixer.bias else []
    parts += [f"window of {mixer.window}"] if mixer.window else []
    return ", ".join(parts)


def _rope_line(rope: Rope, head_dim: int) -> str:
    line = f"theta {rope.theta:g}, {rope.dims} of {head_dim} dimensions, pairs {rope.pairs}"
    if rope.scaling is None:
        return line
    values = ", ".join(
        f"{key} {value:g}"
        for key, value in vars(rope.scaling).items()
        if isinstance(value, int | float) and value is not True
    )
    kind = type(rope.scaling).__name__.removesuffix("Scaling").lower()
    return f"{line}, {kind} ({values})" if values else f"{line}, {kind}"


def _delta_line(mixer: DeltaNet) -> str:
    return (
        f"Gated DeltaNet, {mixer.key_heads} key heads of size {mixer.key_dim}, {mixer.value_heads} value heads of size "
        f"{mixer.value_dim}, convolution kernel {mixer.kernel}"
    )


def _state_space_line(mixer: Mamba2) -> str:
    return (
        f"Mamba-2, {mixer.heads} heads of size {mixer.head_dim} in {mixer.groups} groups, state {mixer.state}, convolution "
        f"kernel {mixer.kernel}"
    )


def _experts_line(moe: MoE) -> str:
    line = f"{moe.experts} per layer, of width {moe.width} each; {moe.router.top_k} used per token, {moe.router.score} router"
    if moe.shared:
        line += f", a shared expert of width {moe.shared.width}{' (gated)' if moe.shared.gated else ''}"
    return line
