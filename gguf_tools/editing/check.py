"""Checks of changed metadata against what llama.cpp reads: types, lengths, ranges, and templates that parse."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gguf_tools.editing.known_keys import TEMPLATES, TOKEN_ID_KEYS, KnownKey, known_key, near_keys
from gguf_tools.editing.values import FieldType, type_of
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import ALIGNMENT_KEY, Field
from gguf_tools.formats.gguf.split import KEYS as SPLIT_KEYS
from gguf_tools.formats.text_file import Kind
from gguf_tools.text import shortened

ARCHITECTURE = "general.architecture"
TOKENS, TOKEN_TYPES, SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))
MOST_ALIGNMENT = 1 << 16
SCALINGS = ("none", "linear", "yarn", "longrope")
"""`LLAMA_ROPE_SCALING_TYPES` in src/llama-model.cpp; llama.cpp aborts for any other."""
_POSITIVE = ("block_count", "context_length", "embedding_length", "rope.freq_base", "rope.freq_base_swa")
_TOKEN_TYPES = range(7)
"""`llama_token_type` in llama.h, undefined (0) included."""
OWN = "tinyq."
MANAGED = (*SPLIT_KEYS, keys.RESERVE)
"""Keys that an edit neither shows nor changes: they are about the files, not about the model."""


def architecture_of(metadata: Mapping[str, Field]) -> str:
    """`general.architecture`, or "" if it is missing or not a string (as in an importance matrix)."""
    value = metadata[ARCHITECTURE].value if ARCHITECTURE in metadata else ""
    return value if isinstance(value, str) else ""


def refuse_key(key: str, *, removed: bool) -> None:
    """Raise InputError for a key that no edit may change."""
    if key in MANAGED:
        what = (
            "tinyq split and tinyq merge write it" if key in SPLIT_KEYS else "it is the header's room for later changes"
        )
        raise InputError(f"{key} cannot be changed: {what}; leave it out")
    if key == ARCHITECTURE:
        raise InputError(
            f"{key} cannot be changed: other architectures have other tensors and keys; convert the checkpoint again"
        )
    if key.startswith(OWN) and not removed:
        raise InputError(
            f"{key} cannot be set: keys with {OWN} record what made the file; give your own key another name"
        )


def check_type(key: str, kind: FieldType, architecture: str) -> None:
    """Raise InputError if llama.cpp reads the key with other types."""
    known = known_key(key, architecture)
    if known and str(kind) not in known.types:
        raise InputError(f"{key} has the type {kind}; llama.cpp reads it as {' or '.join(known.types)}; give that type")


def check_spelling(key: str, architecture: str, present: Collection[str], flag: str) -> None:
    """Raise InputError for a new key whose type is not given and that looks like a misspelt one."""
    near = [] if key in present or known_key(key, architecture) else near_keys(key, architecture, present)
    if near:
        raise InputError(
            f"{key} is not a key that llama.cpp reads, nor one of the file; did you mean {' or '.join(near)}? To set it as "
            f"it is, give its type, such as {flag} {key}:str=VALUE"
        )


def check_values(after: Mapping[str, Field], changed: Collection[str]) -> None:
    """Raise InputError if a changed value, or one whose length depends on one, is not what llama.cpp expects.

    `after` is all metadata after the edit; `changed` are the keys that were added, changed or removed.
    """
    architecture = architecture_of(after)
    for key in changed:
        if key in after:
            check_type(key, type_of(after[key]), architecture)
            _check_value(key, after[key], architecture)
    _check_lengths(after, changed, architecture)
    _check_vocabulary(after, changed)


def _check_value(key: str, field: Field, architecture: str) -> None:
    """Raise InputError if a changed value is out of its range."""
    known = known_key(key, architecture)
    name = key.removeprefix(f"{architecture}.")
    if known and known.loaded:
        numbers = field.value if isinstance(field.value, tuple) else (field.value,)
        wrong = next((number for number in numbers if isinstance(number, float) and not math.isfinite(number)), None)
        if wrong is not None:
            raise InputError(f"{key} is {wrong}; expected a finite number")
    if name in _POSITIVE and known and field.value <= 0:
        raise InputError(f"{key} is {field.value}; expected more than 0")
    if name == "rope.scaling.type" and known and field.value not in SCALINGS:
        raise InputError(f"{key} is {shortened(repr(field.value))}; expected one of {', '.join(SCALINGS)}")
    if key == ALIGNMENT_KEY and not _is_alignment(field.value):
        raise InputError(f"{key} is {field.value}; expected a power of two from 8 to {MOST_ALIGNMENT}")
    if TEMPLATES.fullmatch(key):
        check_template(key, field.value)


def _is_alignment(value: int) -> bool:
    return 8 <= value <= MOST_ALIGNMENT and not value & (value - 1)


def _check_lengths(after: Mapping[str, Field], changed: Collection[str], architecture: str) -> None:
    """Raise InputError for an array with another number of items than there are layers, or sections of rope."""
    count_key = f"{architecture}.block_count"
    count, ahead = (_integer(after, f"{architecture}.{name}") for name in ("block_count", "nextn_predict_layers"))
    for key, field in after.items():
        known = known_key(key, architecture)
        if not known or known.length not in ("layers", "sections") or not isinstance(field.value, tuple):
            continue
        if key not in changed and not (known.length == "layers" and count_key in changed):
            continue
        right, what = ({4}, "4 items") if known.length == "sections" else _layers(count, ahead, count_key)
        if right and len(field.value) not in right:
            raise InputError(
                f"{key} has {len(field.value)} items; expected {what}; give one value per layer, or change both"
            )


def _layers(count: int | None, ahead: int | None, key: str) -> tuple[set[int], str]:
    """The lengths that a per-layer array may have (some leave out the layers that predict further tokens), and that in words."""
    return (set(), "") if count is None else ({count, count - (ahead or 0)}, f"{count}, as {key} says")


def _integer(metadata: Mapping[str, Field], key: str) -> int | None:
    value: Any = metadata[key].value if key in metadata else None
    return value if type(value) is int else None


def _check_vocabulary(after: Mapping[str, Field], changed: Collection[str]) -> None:
    """Raise InputError for arrays of other lengths than the vocabulary, doubled tokens, and ids beyond it."""
    if not {TOKENS, TOKEN_TYPES, SCORES, *TOKEN_ID_KEYS} & set(changed) or TOKENS not in after:
        return
    tokens = after[TOKENS].value
    if TOKENS in changed and len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        double = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise InputError(f"{TOKENS} has {shortened(repr(double), 40)} twice, which llama.cpp does not load; rename one")
    for key in (TOKEN_TYPES, SCORES):
        if key in after and {key, TOKENS} & set(changed) and len(after[key].value) != len(tokens):
            raise InputError(
                f"{key} has {len(after[key].value)} items; expected {len(tokens)}, as many as {TOKENS}; change both"
            )
    if TOKEN_TYPES in changed and TOKEN_TYPES in after:
        wrong = next((n for n, kind in enumerate(after[TOKEN_TYPES].value) if kind not in _TOKEN_TYPES), None)
        if wrong is not None:
            raise InputError(f"{TOKEN_TYPES}, item {wrong} is {after[TOKEN_TYPES].value[wrong]}; expected 0 to 6")
    for key in TOKEN_ID_KEYS:
        if key in after and {key, TOKENS} & set(changed) and not 0 <= after[key].value < len(tokens):
            raise InputError(f"{key} is {after[key].value}; expected 0 to {len(tokens) - 1}, a token of the vocabulary")


class _Generation(Extension):
    """`{% generation %}`, by which transformers marks the assistant's tokens; llama.cpp knows it too."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_template(key: str, text: str) -> None:
    """Raise InputError, naming the line, if a chat template does not parse. It is not run."""
    if len(text) > Kind.TEMPLATE.most:
        raise InputError(
            f"{key} has {len(text):,} characters; expected {Kind.TEMPLATE.most:,} at most for {Kind.TEMPLATE.label}"
        )
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        environment.parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"{key} does not parse (line {error.lineno}: {error.message}); correct the template"
        ) from error
    except (RecursionError, UnicodeError) as error:
        raise InputError(f"{key} does not parse ({type(error).__name__}); correct the template") from error


def unread(key: str, architecture: str) -> bool:
    """Whether llama.cpp does not read a key when it loads the model, so that no value of it keeps the model from loading."""
    known: KnownKey | None = known_key(key, architecture)
    return known is None or not known.loaded
