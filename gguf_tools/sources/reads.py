"""The order in which stored tensors are read, which lets remote files be fetched ahead and once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gguf_tools.formats.remote import remote_at
from gguf_tools.formats.safetensors import StoredTensor
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import human_bytes


def remote_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors of remote files by the names that they are stored under, in the order of the files and of each file."""
    files = {path: number for number, path in enumerate(checkpoint.weight_files)}
    found = [each for each in checkpoint.tensors.values() if isinstance(each, StoredTensor) and each.file.remote]
    found.sort(key=lambda tensor: (files.get(tensor.file.path, len(files)), tensor.offset))
    return {tensor.name: tensor for tensor in found}


def announce(stored: dict[str, StoredTensor], tensors: Iterable[Tensor]) -> None:
    """Let the remote files among `stored` know that these tensors are read next, one after the other, each from its sources."""
    reads = [
        (part.file.remote, part.offset, part.end)
        for tensor in tensors
        for name in tensor.sources
        if (part := stored.get(name)) and part.file.remote
    ]
    if reads:
        reads[0][0].plan(reads)


def by_place(stored: dict[str, StoredTensor], tensors: Sequence[Tensor]) -> list[int]:
    """The numbers of the tensors in the order of their first remote sources, so that each file is read from start to end.

    Tensors without any come first; without remote files the order is that of the tensors.
    """
    places = {name: number for number, name in enumerate(stored)}

    def first(number: int) -> int:
        return min((places[name] for name in tensors[number].sources if name in places), default=-1)

    return sorted(range(len(tensors)), key=first)


def read_twice(checkpoint: Checkpoint) -> str | None:
    """A note for the user if the weights are requested a second time when all are read again; None if they are kept meanwhile."""
    remote = [(path, file) for path in checkpoint.weight_files if (file := remote_at(path))]
    size = sum(file.size for _, file in remote)
    if not remote or size <= remote[0][1].kept:
        return None
    return (
        f"type auto reads the weights before they are written: {human_bytes(size)} are downloaded twice; give --type, or "
        "--download to keep them"
    )
