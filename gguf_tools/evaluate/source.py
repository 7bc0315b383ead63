"""What a GGUF is compared with: the checkpoint given, the one it was made from if that is still there, or itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gguf_tools.checkpoint import CONFIG, open_checkpoint
from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.families import build_model
from gguf_tools.gguf_file import GGUFHeader, is_gguf, read_header
from gguf_tools.gguf_source import open_gguf
from gguf_tools.spec import Model
from gguf_tools.targets import lift
from gguf_tools.tokenizer import Tokenizer, load_tokenizer

Origin = Literal["given", "recorded", "beside", "rebuilt"]


@dataclass(frozen=True)
class ReferenceSource:
    """The model to compare with, where it came from, and a sentence on what the comparison therefore says.

    `tokenizer` is the source's own, None where there is none at hand.
    """

    model: Model
    origin: Origin
    path: Path
    tokenizer: Tokenizer | None
    note: str

    @property
    def encode(self) -> Callable[[str, bool], Sequence[int]] | None:
        """The source's tokenizer as (text, add BOS and EOS) → ids; special tokens in the text count as such."""
        tokenizer = self.tokenizer
        return None if tokenizer is None else lambda text, add: encoded(tokenizer, text, add)


def encoded(tokenizer: Tokenizer, text: str, add_special: bool) -> list[int]:
    """Ids of `text` with BOS and EOS where the tokenizer adds them and `add_special` asks for it."""
    ids = tokenizer.encode(text, special=True)
    head = [tokenizer.bos_id] if add_special and tokenizer.add_bos and tokenizer.bos_id is not None else []
    tail = [tokenizer.eos_id] if add_special and tokenizer.add_eos and tokenizer.eos_id is not None else []
    return [*head, *ids, *tail]


def find_reference(path: Path, given: Path | None = None) -> ReferenceSource:
    """The reference for the GGUF at `path`.

    In order: the checkpoint (or GGUF) `given`; the source recorded in the file, then a checkpoint lying beside it, if
    the digest recorded still matches; else the file's own tensors, so that only the engine is compared.

    Raises CheckpointError where the source given, or the GGUF, is broken; UnsupportedError where no family knows it.
    """
    header = read_header(path)
    if given is not None:
        return _given(header, given)
    digest = header.get("tinyq.source.digest")
    reason = "the file records no source"
    if isinstance(digest, str):
        found, reason = _recorded(header, digest)
        if found:
            return found
    note = f"only the engine was compared, on the file's own weights: {reason}; give --reference to compare the source"
    return ReferenceSource(lift(open_gguf(path)), "rebuilt", path, None, note)


def _given(header: GGUFHeader, given: Path) -> ReferenceSource:
    if given.is_file() and is_gguf(given):
        return ReferenceSource(lift(open_gguf(given)), "given", given, None, f"compared with the weights of {given}")
    checkpoint = open_checkpoint(given)
    model = build_model(checkpoint)
    note = f"compared with {given}"
    recorded = header.get("tinyq.source.digest")
    if isinstance(recorded, str) and recorded != checkpoint.digest():
        note += ", which is not, or no longer, what the file was made from"
    return ReferenceSource(model, "given", given, _tokenizer(given, model), note)


def _recorded(header: GGUFHeader, digest: str) -> tuple[ReferenceSource | None, str]:
    folder = header.path.resolve().parent
    recorded = header.get("tinyq.source.path")
    places: list[tuple[Origin, Path]] = [("beside", folder), ("beside", folder / "hf")]
    if isinstance(recorded, str):
        places.insert(0, ("recorded", folder / recorded))
    reason = "its source is not where it was"
    for origin, place in places:
        if not (place / CONFIG).exists():
            continue
        try:
            checkpoint = open_checkpoint(place)
        except CheckpointError as error:
            reason = f"its source cannot be read ({error})"
            continue
        if checkpoint.digest() != digest:
            reason = f"{place} is not, or no longer, what it was made from"
            continue
        model = build_model(checkpoint)
        how = "the source recorded in the file" if origin == "recorded" else "the source beside the file"
        return ReferenceSource(model, origin, place, _tokenizer(place, model), f"compared with {how}"), ""
    return None, reason


def _tokenizer(folder: Path, model: Model) -> Tokenizer | None:
    try:
        return load_tokenizer(folder, model.spec.vocab_size)
    except InputError:
        # A checkpoint may have its tokenizer elsewhere (convert --tokenizer); the logits can be compared without it.
        return None
