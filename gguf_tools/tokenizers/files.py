"""Reads the files of a Hugging Face tokenizer folder, and checks the type of every value before it is used.

The files may be broken or hostile, so every failure is a CheckpointError of one line that names the file and the key. What
the values mean to llama.cpp is decided in `vocabulary.py`, `pretokenizers.py` and `special.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.text_file import Kind, parse_json, read_bytes, read_text
from gguf_tools.text import shortened
from gguf_tools.tokenizers import characters, pickled_encoding, piece_model, rank_model, slow

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
GENERATION = "generation_config.json"
MODEL_CONFIG = "config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"
LARGEST_SCORE = 1e30
"""Of a Unigram piece: sums of scores stay finite in float32."""


def shown(value: object, limit: int = 60) -> str:
    """`value` for an error message: one line of at most about `limit` characters, printable in any terminal."""
    text = repr(value) if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__
    return shortened(text, limit)


def some(names: Sequence[str]) -> str:
    """The first names of a list, for a note."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_object(path: Path, kind: Kind = Kind.TOKENIZER) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError if the file holds anything else."""
    return as_object(parse_json(read_text(path, kind), path), str(path), "the file")


def read_optional(folder: Path, name: str) -> dict[str, Any]:
    """Like `read_object`, but an empty object if the folder has no such file."""
    path = folder / name
    return read_object(path) if path.exists() else {}


def as_object(value: object, where: str, key: str) -> dict[str, Any]:
    """`value`, checked to be a JSON object. Raises CheckpointError otherwise."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {key} is {shown(value)}; expected an object")
    return value


def as_list(value: object, where: str, key: str) -> list[Any]:
    """`value`, checked to be a JSON list. Raises CheckpointError otherwise."""
    if not isinstance(value, list):
        raise CheckpointError(f"{where}: {key} is {shown(value)}; expected a list")
    return value


def as_text(value: object, where: str, key: str) -> str:
    """`value`, checked to be a string that UTF-8 can encode (JSON allows lone surrogates). Raises CheckpointError otherwise."""
    if not isinstance(value, str):
        raise CheckpointError(f"{where}: {key} is {shown(value)}; expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{where}: {key} is {shown(value)}; expected valid Unicode, but it has a lone surrogate"
        ) from error
    return value


def as_id(value: object, where: str, key: str) -> int:
    """`value`, checked to be a possible token id. Raises CheckpointError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise CheckpointError(f"{where}: {key} is {shown(value)}; expected a token id (a whole number of at least 0)")
    return value


def as_flag(value: object, where: str, key: str) -> bool:
    """`value`, checked to be true or false. Raises CheckpointError otherwise."""
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} is {shown(value)}; expected true or false")
    return value


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is matched in the raw text, before normalization and pre-tokenization."""

    id: int
    content: str
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    single_word: bool


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The parsed files of one tokenizer folder; the objects of absent files are empty.

    `document` is tokenizer.json and `model` its `model`. `vocab` maps the model's own tokens to ids; `added` holds the added
    tokens of all files, sorted by id; `notes` are for the user.
    """

    path: Path
    document: Mapping[str, Any]
    model: Mapping[str, Any]
    vocab: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added: tuple[AddedToken, ...]
    config: Mapping[str, Any]
    special_map: Mapping[str, Any]
    generation: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def ids(self) -> dict[str, int]:
        """The ids of all tokens, by their text."""
        return {**self.vocab, **{token.content: token.id for token in self.added}}


def read_files(folder: Path) -> TokenizerFiles:
    """Read and check a tokenizer folder.

    It has tokenizer.json, or vocab.json and merges.txt (`slow`), or tokenizer.model of SentencePiece or Llama 3
    (`piece_model`, `rank_model`), or nanoGPT's meta.pkl (`characters`),
    or nanochat's tokenizer.pkl (`pickled_encoding`).

    Raises CheckpointError if none of these is there, for invalid JSON or wrong types, for an id that two tokens share, and for a
    merge of tokens that do not exist. Models other than BPE and Unigram are accepted if their vocabulary is an object; the caller
    refuses them.
    """
    path = folder / TOKENIZER
    config = read_optional(folder, TOKENIZER_CONFIG)
    special_map = read_optional(folder, SPECIAL_MAP)
    generation = read_optional(folder, GENERATION)
    notes: tuple[str, ...] = ()
    if path.exists():
        document = read_object(path)
    elif slow.is_slow(folder):
        path = folder / slow.VOCAB
        merges = read_text(folder / slow.MERGES, Kind.TOKENIZER)
        model_config = read_optional(folder, MODEL_CONFIG)
        document, config = slow.put_together(folder, read_object(path), merges, config, model_config)
        notes = (f"{folder.name} has no {TOKENIZER}: the tokenizer is built from {slow.VOCAB} and {slow.MERGES}",)
    elif (folder / piece_model.NAME).exists():
        path = folder / piece_model.NAME
        data = read_bytes(path, Kind.TOKENIZER)
        form = rank_model if rank_model.is_rank_model(data) else piece_model
        document, config = form.put_together(data, path, config)
        notes = (f"{folder.name} has no {TOKENIZER}: the tokenizer is built from {piece_model.NAME}",)
    elif (folder / characters.NAME).exists():
        path = folder / characters.NAME
        document = characters.put_together(read_bytes(path, Kind.TOKENIZER), path)
        notes = (f"{folder.name} has no {TOKENIZER}: the characters of {characters.NAME} are the tokens",)
    elif (folder / pickled_encoding.NAME).exists():
        path = folder / pickled_encoding.NAME
        document, config = pickled_encoding.put_together(read_bytes(path, Kind.TOKENIZER), path, config)
        generation = {**pickled_encoding.ends(document), **generation}
        notes = (
            f"{folder.name} has no {TOKENIZER}: the tokenizer is built from {pickled_encoding.NAME}, which is not run",
        )
    else:
        raise CheckpointError(
            f"{folder}: has no {TOKENIZER}; give the tokenizer's folder, or create the file with"
            " transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    model = as_object(document.get("model"), str(path), "model")
    bpe = model.get("type") == "BPE" or ("type" not in model and "merges" in model)
    vocab = (
        _vocab(model, str(path)) if bpe else _unigram_vocab(model, str(path)) if model.get("type") == "Unigram" else {}
    )
    special = slow.special_texts(config, special_map)
    added, more = _all_added(folder, document, config, special)
    if notes:  # vocab.json and merges.txt list no added tokens, so "tokenizer.json lacks …" notes do not apply
        known = {token.content for token in added}
        own = [_plain_added(text, vocab[text], special=True) for text in sorted(special & vocab.keys() - known)]
        added, more = tuple(sorted((*added, *own), key=lambda token: token.id)), ()
    _check_ids(vocab, added, path)
    return TokenizerFiles(
        path=path,
        document=document,
        model=model,
        vocab=vocab,
        merges=_merges(model, vocab, str(path)) if bpe else (),
        added=added,
        config=config,
        special_map=special_map,
        generation=generation,
        notes=(*notes, *more),
    )


def without_beyond(files: TokenizerFiles, rows: int) -> TokenizerFiles:
    """The files without the tokens whose ids are `rows` or more, and without the merges that need these tokens."""
    vocab = {token: number for token, number in files.vocab.items() if number < rows}
    merges = tuple(pair for pair in files.merges if {*pair, "".join(pair)} <= vocab.keys())
    return replace(
        files,
        vocab=vocab,
        merges=merges,
        model=_model_of(files, rows, vocab, merges),
        added=tuple(token for token in files.added if token.id < rows),
    )


def _model_of(
    files: TokenizerFiles, rows: int, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The model with this vocabulary and these merges; that of a Unigram model is the first `rows` pieces."""
    if files.model.get("type") == "Unigram":
        return {**files.model, "vocab": files.model["vocab"][:rows]}
    return {**files.model, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def _vocab(model: Mapping[str, Any], where: str) -> dict[str, int]:
    vocab = as_object(model.get("vocab"), where, "model.vocab")
    return {
        _token(token, where, "a token of model.vocab"): as_id(number, where, f"model.vocab[{shown(token)}]")
        for token, number in vocab.items()
    }


def _unigram_vocab(model: Mapping[str, Any], where: str) -> dict[str, int]:
    """The ids of a Unigram model's pieces, which are a list of texts with scores."""
    vocab: dict[str, int] = {}
    for number, entry in enumerate(as_list(model.get("vocab"), where, "model.vocab")):
        key = f"model.vocab[{number}]"
        text, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST_SCORE:
            raise CheckpointError(f"{where}: {key} is {shown(entry)}; expected a piece and its score")
        if vocab.setdefault(_token(text, where, key), number) != number:
            raise CheckpointError(f"{where}: model.vocab has {shown(text)} twice; llama.cpp needs distinct pieces")
    return vocab


def _token(value: object, where: str, key: str) -> str:
    """`value` if it is a text of at most LONGEST characters."""
    text = as_text(value, where, key)
    if len(text) > piece_model.LONGEST:
        raise CheckpointError(f"{where}: {key} has {len(text):,} characters; expected {piece_model.LONGEST:,} at most")
    return text


def _merges(model: Mapping[str, Any], vocab: Mapping[str, int], where: str) -> tuple[tuple[str, str], ...]:
    """The merges in order of rank, from either notation: ["a", "b"] or "a b"."""
    pairs: list[tuple[str, str]] = []
    for rank, merge in enumerate(as_list(model.get("merges"), where, "model.merges")):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(
                f'{where}: model.merges[{rank}] is {shown(merge)}; expected two tokens, ["a", "b"] or "a b"'
            )
        left, right = parts
        for token in (left, right, left + right):
            if token not in vocab:
                raise CheckpointError(
                    f"{where}: model.merges[{rank}] needs the token {shown(token)}, which is not in model.vocab"
                )
        pairs.append((left, right))
    return tuple(pairs)


def _added(value: object, where: str, key: str, number: object = None) -> AddedToken:
    """Parse an entry of added_tokens; `number` is its id if the file has ids as keys (added_tokens_decoder)."""
    entry = as_object(value, where, key)

    def flag(name: str) -> bool:
        return as_flag(entry.get(name, False), where, f"{key}.{name}")

    content = _token(entry.get("content"), where, f"{key}.content")
    if not content:
        raise CheckpointError(f"{where}: {key} has empty content; expected the token's text")
    return AddedToken(
        id=as_id(entry.get("id") if number is None else number, where, f"{key}.id"),
        content=content,
        special=flag("special"),
        normalized=flag("normalized"),
        lstrip=flag("lstrip"),
        rstrip=flag("rstrip"),
        single_word=flag("single_word"),
    )


def _plain_added(content: str, number: int, *, special: bool) -> AddedToken:
    return AddedToken(
        id=number, content=content, special=special, normalized=False, lstrip=False, rstrip=False, single_word=False
    )


def _all_added(
    folder: Path, document: Mapping[str, Any], config: Mapping[str, Any], special: frozenset[str]
) -> tuple[tuple[AddedToken, ...], tuple[str, ...]]:
    """The added tokens of tokenizer.json, then those listed only in other files (transformers adds these on loading).

    added_tokens.json lists texts and ids only; its tokens in `special` count as special. Also returns notes on differences.
    """
    where = str(folder / TOKENIZER)
    entries = document.get("added_tokens")
    main = [
        _added(e, where, f"added_tokens[{i}]")
        for i, e in enumerate(as_list([] if entries is None else entries, where, "added_tokens"))
    ]
    where = str(folder / TOKENIZER_CONFIG)
    more: list[AddedToken] = []
    for number, entry in as_object(config.get("added_tokens_decoder") or {}, where, "added_tokens_decoder").items():
        key = f"added_tokens_decoder[{shown(number)}]"
        if not (number.isascii() and number.isdigit() and len(number) < 11):
            raise CheckpointError(f"{where}: {key} is the key of an added token; expected a token id")
        more.append(_added(entry, where, key, int(number)))
    where = str(folder / ADDED)
    for content, number in read_optional(folder, ADDED).items():
        more.append(_added({"content": content, "special": content in special}, where, shown(content), number))
    known = {token.content: token for token in main}
    notes: list[str] = []
    for token in more:
        other = known.setdefault(token.content, token)
        if other is token:
            notes.append(
                f"{TOKENIZER} lacks the added token {shown(token.content)} (id {token.id}), which other files list"
            )
        elif other.id != token.id:
            notes.append(
                f"{shown(token.content)} is {other.id} in {TOKENIZER} and {token.id} in another file; {TOKENIZER} is used"
            )
    return tuple(sorted(known.values(), key=lambda token: token.id)), tuple(notes)


def _check_ids(vocab: Mapping[str, int], added: Sequence[AddedToken], path: Path) -> None:
    """Raise CheckpointError unless ids and token texts are unique, as llama.cpp's loader asserts."""
    names: dict[int, str] = {}
    for token, number in [*vocab.items(), *((token.content, token.id) for token in added)]:
        if names.setdefault(number, token) != token:
            raise CheckpointError(
                f"{path}: id {number} belongs to two tokens, {shown(names[number])} and {shown(token)}"
            )
    for entry in added:
        if vocab.get(entry.content, entry.id) != entry.id:
            raise CheckpointError(
                f"{path}: {shown(entry.content)} has two ids, {vocab[entry.content]} in model.vocab"
                f" and {entry.id} in added_tokens"
            )
