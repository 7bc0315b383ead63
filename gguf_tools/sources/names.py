"""Removing the components that training wrappers add to tensor names.

torch.compile, DistributedDataParallel, FSDP, activation checkpointing, Lightning and PEFT wrap modules in other modules, whose
attribute names appear anywhere in tensor names. Only names change; tensor values do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gguf_tools.errors import CheckpointError

WRAPPERS = frozenset(
    (
        "module",  # torch.nn.DataParallel, DistributedDataParallel
        "_orig_mod",  # torch.compile
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_fsdp_wrapped_module",  # FullyShardedDataParallel
        "_fpw_module",  # its earlier name
        "_forward_module",  # Lightning Fabric
    )
)
"""Name components that wrappers add, at any position."""

ROOT = re.compile(
    r"(?P<outer>(?:.+?\.)??)"
    r"(?:(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)?embed_tokens|tok_emb|tok_embeddings|embed)\.weight"
)
"""Names of the token embedding; `outer` is the attribute that holds the model (Lightning, PEFT's `base_model.model`)."""
OUTPUT_ROOT = re.compile(r"(?P<outer>(?:.+?\.)??)lm_head\.weight")
"""Names of the output projection, for checkpoints that save a tied embedding only under this name."""
BESIDE = re.compile(r"(v_head|value_head)\..*")
"""Heads that TRL adds outside the wrapped model."""


def plain_names(path: Path, names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A map from each name to the name without wrapper components, and a note on the components removed.

    Raises CheckpointError if two tensors would get the same name.
    """
    names = tuple(names)
    inner = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    found = sorted({part for name in names for part in name.split(".") if part in WRAPPERS})
    prefix = _outer(inner.values())
    plain = {name: short.removeprefix(prefix) for name, short in inner.items()}
    seen: dict[str, str] = {}
    for name, short in plain.items():
        if seen.setdefault(short, name) != name:
            raise CheckpointError(
                f"{path}: tensors {seen[short]} and {name} both become {short} when wrapper prefixes are removed; save the "
                "unwrapped model's state dict"
            )
    taken_off = [*found, prefix.rstrip(".")] if prefix else found
    if not taken_off:
        return plain, ()
    example = next(name for name in names if plain[name] != name)
    return plain, (
        f"wrapper prefixes in tensor names ({', '.join(taken_off)}) are removed: {example} is read as {plain[example]}",
    )


def _outer(names: Iterable[str]) -> str:
    """The prefix, including its dot, that all names of the model share because an attribute holds it; "" if there is none."""
    own = [name for name in names if not BESIDE.fullmatch(name)]
    for root in (ROOT, OUTPUT_ROOT):
        found = {match["outer"] for name in own if (match := root.fullmatch(name))}
        if found:
            # Multi-token prediction blocks have embeddings of their own, under longer prefixes.
            shortest = min(found, key=len)
            return shortest if all(name.startswith(shortest) for name in own) else ""
    return ""
