"""Names of tensors without what training wraps around modules.

torch.compile, DistributedDataParallel, FSDP, activation checkpointing, Lightning and PEFT put a module into another one, which
shows as a part of the names, anywhere in them. All tensors keep their numbers; only the names change.
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
"""Parts of names that a wrapper adds, wherever they stand."""

ROOT = re.compile(
    r"(?P<outer>(?:.+?\.)??)"
    r"(?:(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)?embed_tokens|tok_emb|tok_embeddings|embed)\.weight"
)
"""The token embedding: what stands before it is the attribute that holds the model (Lightning, PEFT's `base_model.model`)."""
OUTPUT_ROOT = re.compile(r"(?P<outer>(?:.+?\.)??)lm_head\.weight")
"""Where only the output projection is saved, which is tied to the embedding."""
BESIDE = re.compile(r"(v_head|value_head)\..*")
"""What TRL puts beside the wrapped model."""


def plain_names(path: Path, names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Each name → the name without wrappers, and notes on what was taken off.

    Raises CheckpointError where two tensors would have one name.
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
                f"{path}: tensors {seen[short]} and {name} are both {short} without the wrappers in their names; save the bare "
                "model's state dict"
            )
    taken_off = [*found, prefix.rstrip(".")] if prefix else found
    if not taken_off:
        return plain, ()
    example = next(name for name in names if plain[name] != name)
    return plain, (
        f"wrappers in the tensors' names ({', '.join(taken_off)}) are taken off: {example} is {plain[example]}",
    )


def _outer(names: Iterable[str]) -> str:
    """The prefix, with its dot, of all names before a model's own; "" where there is none."""
    own = [name for name in names if not BESIDE.fullmatch(name)]
    for root in (ROOT, OUTPUT_ROOT):
        found = {match["outer"] for name in own if (match := root.fullmatch(name))}
        if found:
            # Further prediction blocks have embeddings too, deeper down.
            shortest = min(found, key=len)
            return shortest if all(name.startswith(shortest) for name in own) else ""
    return ""
