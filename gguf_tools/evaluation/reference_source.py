"""Finds the reference for a GGUF: a given checkpoint, the one it was converted from if that still exists, or the file itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gguf_tools.errors import CheckpointError, InputError, is_read_error
from gguf_tools.evaluation.oracle_check import transformers_name
from gguf_tools.evaluation.transformers_model import transformers_encoder, why_not
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.families.registry import build_model
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader, is_gguf, read_header
from gguf_tools.formats.gguf.source import gguf_digest, open_gguf
from gguf_tools.formats.gguf.surgery import RecordedSurgery, recorded_surgery
from gguf_tools.formats.state_dict import state_dict_files
from gguf_tools.model.spec import Model
from gguf_tools.sources.adapters.adapter import GivenAdapter
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint, open_checkpoint
from gguf_tools.sources.hub import HubName, kept_source, parse_name, shown_source
from gguf_tools.sources.recorded import are_recorded, as_recorded, has_description, with_recorded_adapters
from gguf_tools.targets.registry import lift
from gguf_tools.tokenizers.vocabulary import Tokenizer, load_tokenizer

Origin = Literal["given", "recorded", "beside", "rebuilt"]

Encode = Callable[[str, bool], Sequence[int]]

Operate = Callable[[Model, RecordedSurgery], Model]
"""(model, layer surgery as the file records it) → the model after the surgery."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSource:
    """The model to compare with, its origin, and a note on what is compared.

    `model` is None if no family supports the source and transformers' own code is the reference. `tokenizer` is the source's,
    or None if it is not available; `encoder` replaces it if only transformers can read it. `checkpoint` is the source, None
    for a GGUF. `recipe` is the layer surgery applied to the source, and `unchanged` the model before it, if there was any.
    `is_source`: whether it is the source that the file was converted from; None if the file does not record one.
    """

    model: Model | None
    origin: Origin
    path: Path
    tokenizer: Tokenizer | None
    note: str
    recipe: str = ""
    is_source: bool | None = None
    checkpoint: Checkpoint | None = None
    unchanged: Model | None = None
    encoder: Encode | None = None

    @property
    def encode(self) -> Encode | None:
        """The source's tokenizer as (text, whether to add BOS and EOS) → ids; special tokens in the text are recognised."""
        tokenizer = self.tokenizer
        return self.encoder if tokenizer is None else lambda text, add: encoded(tokenizer, text, add)


def encoded(tokenizer: Tokenizer, text: str, add_special: bool) -> list[int]:
    """Ids of `text`; with `add_special`, including BOS and EOS if the tokenizer adds them."""
    ids = tokenizer.encode(text, special=True)
    head = [tokenizer.bos_id] if add_special and tokenizer.add_bos and tokenizer.bos_id is not None else []
    tail = [tokenizer.eos_id] if add_special and tokenizer.add_eos and tokenizer.eos_id is not None else []
    return [*head, *ids, *tail]


class Checkpoints:
    """A cache of checkpoints: each is opened, and read for its digest, once."""

    def __init__(self) -> None:
        self._opened: dict[Path, Checkpoint] = {}
        self._compared: dict[tuple[Path, str], bool] = {}

    def open(self, place: Path, header: GGUFHeader | None = None) -> Checkpoint:
        """The checkpoint at `place`, without a config if `header` records a description; errors as `open_checkpoint`."""
        if place not in self._opened:
            self._opened[place] = open_checkpoint(place, described=header is not None and has_description(header))
        return self._opened[place]

    def has_digest(self, place: Path, recorded: str) -> bool:
        """Whether a recorded digest is that of the checkpoint at `place`; reads all its bytes."""
        if (place, recorded) not in self._compared:
            self._compared[place, recorded] = self.open(place).has_digest(recorded)
        return self._compared[place, recorded]


def find_reference(
    path: Path,
    given: Path | None = None,
    operate: Operate | None = None,
    checkpoints: Checkpoints | None = None,
    adapters: Sequence[GivenAdapter] = (),
) -> ReferenceSource:
    """The reference for the GGUF at `path`.

    In order of preference: the checkpoint (or GGUF) `given`; the source recorded in the file, or a checkpoint in the file's
    folder, if its digest matches the recorded one; the GGUF recorded in a file made by surgery with other models; else the
    file's own tensors, which tests only llama.cpp's computation. If the file records layer surgery, `operate` applies it to
    the recorded source, and to a given source with the same digest. The adapters that the file records are merged into
    these too; `adapters` are merged into the given source instead. `checkpoints` lets files that share a source read it once.

    Raises CheckpointError if the given source, an adapter or the GGUF is broken; UnsupportedError if no family supports it.
    """
    header = read_header(path)
    checkpoints = checkpoints or Checkpoints()
    if given is not None:
        return _given(header, given, operate, checkpoints, adapters)
    if adapters:
        raise InputError("--lora needs --reference, the checkpoint that the adapter is merged into; give both")
    digest = header.get(keys.SOURCE_DIGEST)
    reason = "the file records no source"
    if isinstance(digest, str):
        found, reason = _recorded(header, digest, operate, checkpoints)
        if found:
            return found
    elif operate is not None and (surgery := recorded_surgery(header)) and surgery.base:
        found, reason = _from_recorded_gguf(surgery, operate)
        if found:
            return found
    note = (
        f"only llama.cpp's computation is compared, on the file's own weights: {reason}; give --reference to compare the "
        "source"
    )
    return ReferenceSource(model=lift(open_gguf(path)), origin="rebuilt", path=path, tokenizer=None, note=note)


def _given(
    header: GGUFHeader,
    given: Path,
    operate: Operate | None,
    checkpoints: Checkpoints,
    adapters: Sequence[GivenAdapter],
) -> ReferenceSource:
    """The reference from a source that the user gave: a GGUF's own tensors, a checkpoint's model, or transformers' own code."""
    if given.is_file() and is_gguf(given):
        if adapters:
            raise InputError(f"{given}: is a GGUF, into which --lora cannot be merged; give the checkpoint")
        return ReferenceSource(
            model=lift(open_gguf(given)),
            origin="given",
            path=given,
            tokenizer=None,
            note=f"compared with the weights of {shown_source(given)}",
        )
    checkpoint = checkpoints.open(given, header)
    recorded = header.get(keys.SOURCE_DIGEST)
    is_source = checkpoints.has_digest(given, recorded) if isinstance(recorded, str) else None
    if adapters:
        checkpoint = checkpoint.adapted(adapters)
        is_source = is_source and are_recorded(checkpoint.adapters, header)
    elif is_source:
        checkpoint = with_recorded_adapters(checkpoint, header)
    try:
        model = unchanged = _built(header, checkpoint, is_source)
    except InputError as error:
        return _run_by_transformers(header, checkpoint, is_source, error)
    note, recipe = f"compared with {shown_source(given)}{_adapted(checkpoint)}", ""
    if is_source:
        model, recipe = _operated(header, model, operate)
        note += _after(recipe)
    elif is_source is False:
        note += ", which is not, or no longer, what the file was made from"
    return ReferenceSource(
        model=model,
        origin="given",
        path=given,
        tokenizer=_tokenizer(header, checkpoint, model.spec.vocab_size),
        note=note,
        recipe=recipe,
        is_source=is_source,
        checkpoint=checkpoint,
        unchanged=unchanged if recipe else None,
    )


def _run_by_transformers(
    header: GGUFHeader, checkpoint: Checkpoint, is_source: bool | None, refused: InputError
) -> ReferenceSource:
    """A reference run by transformers, for a source that no family supports. Raises `refused` if transformers cannot run it."""
    if reason := why_not(checkpoint):
        raise type(refused)(f"{refused}; transformers cannot be the reference either: {reason}") from refused
    kind = checkpoint.config["model_type"]
    place = shown_source(checkpoint.path)
    note = f"tinyq has no family for it ({kind}): compared with {transformers_name()}'s own code on {place}"
    if is_source is False:
        note += ", which is not, or no longer, what the file was made from"
    tokens, encoder = header.get("tokenizer.ggml.tokens"), None
    tokenizer = _tokenizer(header, checkpoint, len(tokens)) if isinstance(tokens, tuple) else None
    if tokenizer is None:
        try:
            encoder = transformers_encoder(checkpoint)
        except InputError as error:
            if is_read_error(error):
                raise
            note += f"; tokens are not compared ({error})"
    return ReferenceSource(
        model=None,
        origin="given",
        path=checkpoint.path,
        tokenizer=tokenizer,
        encoder=encoder,
        note=note,
        is_source=is_source,
        checkpoint=checkpoint,
    )


def _recorded(
    header: GGUFHeader, digest: str, operate: Operate | None, checkpoints: Checkpoints
) -> tuple[ReferenceSource | None, str]:
    """The reference from the recorded source, or from a checkpoint in the file's folder, with the same digest.

    Without one, the second result says why there is none.
    """
    folder = header.path.resolve().parent
    recorded = header.get(keys.SOURCE_PATH)
    places: list[tuple[Origin, Path]] = [("beside", folder), ("beside", folder / "hf")]
    if isinstance(recorded, str):
        places.insert(0, ("recorded", folder / recorded))
    reason = "its source is no longer at the recorded path"
    if on_hub := _on_hub(header):
        kept = kept_source(on_hub)
        places = [*([("recorded", kept)] if kept else []), *places]  # type: ignore[list-item]
        reason = f"its source is {on_hub} on the hub"
    for origin, place in places:
        if not _may_be_checkpoint(place, header):
            continue
        try:
            checkpoint = checkpoints.open(place, header)
        except CheckpointError as error:
            reason = f"its source cannot be read ({error})"
            continue
        if not checkpoints.has_digest(place, digest):
            reason = f"{place} is not, or no longer, what it was made from"
            continue
        try:
            checkpoint = with_recorded_adapters(checkpoint, header)
        except InputError as error:
            reason = f"its adapter cannot be merged ({error})"
            continue
        try:
            unchanged = _built(header, checkpoint)
            model, recipe = _operated(header, unchanged, operate)
        except InputError as error:
            reason = f"the surgery recorded in the file cannot be repeated ({error})"
            continue
        how = "the source recorded in the file" if origin == "recorded" else "the source in the file's folder"
        tokenizer = _tokenizer(header, checkpoint, model.spec.vocab_size)
        return ReferenceSource(
            model=model,
            origin=origin,
            path=place,
            tokenizer=tokenizer,
            note=f"compared with {how}{_adapted(checkpoint)}{_after(recipe)}",
            recipe=recipe,
            is_source=True,
            checkpoint=checkpoint,
            unchanged=unchanged if recipe else None,
        ), ""
    return None, reason


def _on_hub(header: GGUFHeader) -> HubName | None:
    """The name of the recorded source on the hub, if that is where it is."""
    repository, commit = header.get(keys.SOURCE_REPOSITORY), header.get(keys.SOURCE_COMMIT)
    return parse_name(f"{repository}@{commit}") if isinstance(repository, str) and isinstance(commit, str) else None


def _from_recorded_gguf(surgery: RecordedSurgery, operate: Operate) -> tuple[ReferenceSource | None, str]:
    """The reference from the GGUF that surgery was done on, where the file records no checkpoint; else the reason for none."""
    base = surgery.base
    if base is None or not base.path.is_file():
        return None, "the file that it was made from is no longer there"
    try:
        if gguf_digest(base.path) != base.digest:
            return None, f"{base.path} is not, or no longer, what it was made from"
        unchanged = lift(open_gguf(base.path))
        model = operate(unchanged, surgery)
    except InputError as error:
        return None, f"the surgery that it records cannot be done again ({error})"
    return ReferenceSource(
        model=model,
        origin="recorded",
        path=base.path,
        tokenizer=None,
        note=f"compared with the weights of the file that it was made from{_after(surgery.text)}",
        recipe=surgery.text,
        is_source=True,
        unchanged=unchanged,
    ), ""


def _built(header: GGUFHeader, checkpoint: Checkpoint, is_source: bool | None = True) -> Model:
    """The source's model, built with the family that the file records as requested by the user, or the description, if any.

    The description that the file records does not hold for another checkpoint (`is_source` false) that has its own.
    """
    accepted = header.get(keys.AS_FAMILY)
    if is_source is not False or checkpoint.description is None:
        checkpoint = as_recorded(checkpoint, header)
    return build_model(
        checkpoint, as_family=accepted if isinstance(accepted, str) else None, check_type=check_model_type
    )


def _may_be_checkpoint(place: Path, header: GGUFHeader) -> bool:
    if place.is_dir():
        described = has_description(header) and any(place.glob("*.safetensors"))
        return described or (place / CONFIG).exists() or bool(state_dict_files(place))
    return place.is_file()


def _operated(header: GGUFHeader, model: Model, operate: Operate | None) -> tuple[Model, str]:
    """The model after the surgery that the file records, and its recipe ("" if there is none)."""
    surgery = recorded_surgery(header)
    if surgery is None or operate is None:
        return model, ""
    return operate(model, surgery), surgery.text


def _adapted(checkpoint: Checkpoint) -> str:
    """The adapters in words for a note."""
    names = " and ".join(adapter.text for adapter in checkpoint.adapters)
    return f" with the adapter {names}" if names else ""


def _after(recipe: str) -> str:
    return f" after {recipe}" if recipe else ""


def _tokenizer(header: GGUFHeader, checkpoint: Checkpoint, vocab_size: int) -> Tokenizer | None:
    recorded = header.get(keys.TOKENIZER_PATH)
    folder = header.path.resolve().parent / recorded if isinstance(recorded, str) else checkpoint.folder
    try:
        # The conversion dropped tokens beyond the embedding too, or it would have failed.
        return load_tokenizer(folder, vocab_size, config=checkpoint.config, drop_tokens=True, approximate=True)
    except InputError as error:
        if is_read_error(error):
            raise
        # The tokenizer may have been in another folder (convert --tokenizer); logits can be compared without it.
        return None
