"""Converts a Hugging Face tokenizer folder to a GGUF vocabulary that tokenizes alike, or refuses it.

llama.cpp's converter recognises a byte-level BPE by a hash of a test string's ids, so it refuses every vocabulary that it
does not know. Here the regexes of tokenizer.json decide (`pretokenizers.py`), and `probe` then checks the result on a varied
text. Sources: `llama_vocab::impl::load` and `tokenize` of llama.cpp (src/llama-vocab.cpp) for the meaning of the keys, and
its `conversion/base.py` for the conventions ("[PADn]", the usual keys).

A GGUF cannot express the following, which become a note or an error: normalizers; added tokens that strip spaces (lstrip,
rstrip); added tokens that must be whole words (single_word); the priority of added tokens that overlap in a text (tokenizers
uses the leftmost, llama.cpp the longest).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.formats.gguf.header import Field, ValueType, array, boolean, string, u32
from gguf_tools.formats.links import refuse_links_out
from gguf_tools.sources.inputs import described_by
from gguf_tools.tokenizers import characters
from gguf_tools.tokenizers.added_tokens import found_differently, must_be_words, strip_spaces
from gguf_tools.tokenizers.backend import build_backend, guarded
from gguf_tools.tokenizers.byte_level_bpe import convert_byte_level
from gguf_tools.tokenizers.files import TokenizerFiles, read_files, shown, some, without_beyond
from gguf_tools.tokenizers.form import Form
from gguf_tools.tokenizers.pretokenizers import Limit
from gguf_tools.tokenizers.sentencepiece import convert_sentencepiece, is_sentencepiece
from gguf_tools.tokenizers.special import (
    SpecialTokens,
    find_chat_templates,
    find_special_tokens,
    forced_control,
    forced_text,
)
from gguf_tools.tokenizers.unigram import MODEL as UNIGRAM
from gguf_tools.tokenizers.unigram import convert_unigram, is_unigram, rounded, rounding

LOWEST = -10000.0
"""The score of rows without a token (the same as in llama.cpp's converter)."""
MOST_TOKENS = 1 << 23
"""Upper bound on the vocabulary (the largest have 250,000 tokens); a padding token is created for each unused row."""

NUL = Limit(
    "llama.cpp truncates tokens at a NUL character, so text with one is tokenized differently",
    lambda text: "\0" in text,
)


@dataclass(frozen=True, kw_only=True)
class Stripping:
    """Added tokens that strip the spaces before (`left`) or after (`right`) them, which a GGUF cannot express.

    `probes` are the ones to compare if llama.cpp strips the same spaces because of the model's name; `note` is the entry of
    `Tokenizer.notes`, and that of `Tokenizer.limits`, that says it does not.
    """

    left: frozenset[str]
    right: frozenset[str]
    probes: tuple[str, ...]
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A source's tokenizer, as it is written into a GGUF.

    `tokens` and `token_types` (gguf's TokenType) have one entry per row of the embeddings; `notes` are for the user.
    `limits` describe the texts on which the two sides are known to differ, and `bytes_known` are the bytes that the
    vocabulary has tokens for; `probe` leaves other text out. `nfc`: the source normalizes text to NFC. `approximation`: what of
    the tokenizer is approximated, if the user accepted that.
    """

    path: Path
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...] | None
    model: str
    pre: str
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    eom_id: int | None
    pad_id: int | None
    unk_id: int | None
    sep_id: int | None
    mask_id: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    remove_extra_whitespaces: bool | None
    charsmap: bytes = field(repr=False)
    chat_template: str | None
    named_templates: Mapping[str, str]
    notes: tuple[str, ...]
    limits: tuple[Limit, ...]
    nfc: bool
    probe_tokens: tuple[str, ...]
    stripping: Stripping
    bytes_known: frozenset[int] = field(repr=False)
    approximation: str | None
    _plain: HFTokenizer = field(repr=False, compare=False)
    _parsing: HFTokenizer = field(repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        """The number of rows, including padding."""
        return len(self.tokens)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text` by the tokenizers library, without BOS or EOS.

        With `special`, control tokens spelled out in the text are parsed, as by `llama_tokenize(parse_special=true)`.
        """
        backend = self._parsing if special else self._plain
        with guarded(self.path):
            return list(backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, with control tokens spelled out; padding rows give no text."""
        with guarded(self.path):
            return str(self._parsing.decode(list(ids), skip_special_tokens=False))

    def metadata(self) -> dict[str, Field]:
        """All `tokenizer.*` keys of the GGUF."""
        fields = {
            "tokenizer.ggml.model": string(self.model),
            "tokenizer.ggml.pre": string(self.pre),
            "tokenizer.ggml.tokens": array(ValueType.STRING, self.tokens),
            "tokenizer.ggml.token_type": array(ValueType.INT32, self.token_types),
        }
        if self.scores is not None:
            fields["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, self.scores)
        if self.model not in ("llama", UNIGRAM):
            fields["tokenizer.ggml.merges"] = array(ValueType.STRING, self.merges)
        # Without these keys llama.cpp uses ordinary tokens (11, or 1 and 2) as BOS and EOS, and ends a generation there.
        eos = self.eos_id if self.eos_id is not None else self._never_written()
        ids = {
            "bos": self.bos_id if self.bos_id is not None else eos,
            "eos": eos,
            "eot": self.eot_id,
            "eom": self.eom_id,
            "unknown": self.unk_id,
            "seperator": self.sep_id,
            "padding": self.pad_id,
            "mask": self.mask_id,
        }
        fields |= {f"tokenizer.ggml.{role}_token_id": u32(number) for role, number in ids.items() if number is not None}
        fields["tokenizer.ggml.add_bos_token"] = boolean(self.add_bos)
        fields["tokenizer.ggml.add_eos_token"] = boolean(self.add_eos)
        if self.add_space_prefix is not None:
            fields["tokenizer.ggml.add_space_prefix"] = boolean(self.add_space_prefix)
        if self.remove_extra_whitespaces is not None:
            fields["tokenizer.ggml.remove_extra_whitespaces"] = boolean(self.remove_extra_whitespaces)
        if self.charsmap:
            fields["tokenizer.ggml.precompiled_charsmap"] = array(ValueType.UINT8, tuple(self.charsmap))
        if self.named_templates:
            fields["tokenizer.chat_templates"] = array(ValueType.STRING, tuple(self.named_templates))
            fields |= {f"tokenizer.chat_template.{name}": string(text) for name, text in self.named_templates.items()}
        if self.chat_template is not None:
            fields["tokenizer.chat_template"] = string(self.chat_template)
        return fields

    def _never_written(self) -> int | None:
        """An unused token id, used as a stand-in for a missing EOS."""
        unused = (number for number, kind in enumerate(self.token_types) if kind == TokenType.UNUSED)
        return next(unused, self.pad_id)


def load_tokenizer(
    folder: Path,
    vocab_size: int,
    *,
    config: Mapping[str, Any] | None = None,
    add_bos: bool | None = None,
    drop_tokens: bool = False,
    approximate: bool = False,
) -> Tokenizer:
    """Read a tokenizer folder for a model whose embeddings have `vocab_size` rows.

    `config` is the model's config.json, for its token ids; `add_bos` overrides whether BOS is added. `drop_tokens` leaves
    out tokens with ids of `vocab_size` or more, which are an error otherwise. `approximate` accepts the nearest pre-tokenizer
    of llama.cpp where none is exact and the difference can be told by the text (`Tokenizer.approximation`).

    Raises CheckpointError for missing or broken files, TokenizerError for a tokenizer that llama.cpp cannot reproduce; both name
    the file and the key.
    """
    refuse_links_out(folder, described_by(folder))
    files = read_files(folder)
    where = str(files.path)
    if not 0 < vocab_size <= MOST_TOKENS:
        raise TokenizerError(
            f"{where}: the model has a vocabulary of {vocab_size} tokens; expected 1 to {MOST_TOKENS:,}"
        )
    _check_model(files.model, where)
    beyond = sorted((number, text) for text, number in files.ids.items() if number >= vocab_size)
    notes = list(files.notes)
    if beyond:
        names = some([f"{shown(text)} ({number})" for number, text in beyond])
        if not drop_tokens:
            raise TokenizerError(
                f"{where}: has {beyond[-1][0] + 1} tokens (ids up to {beyond[-1][0]}), but the embeddings have {vocab_size} "
                f"rows, none for {names}; leave these out with --drop-tokens if the model was not trained with them, or give "
                "the model's own tokenizer with --tokenizer"
            )
        files = without_beyond(files, vocab_size)
        notes.append(f"tokens beyond the {vocab_size} rows of the embeddings are left out: {names}")
    roles = find_special_tokens(files, vocab_size, config, add_bos)
    with guarded(files.path):
        return _converted(files, vocab_size, roles, notes, approximate=approximate)


def _converted(
    files: TokenizerFiles, vocab_size: int, roles: SpecialTokens, notes: list[str], *, approximate: bool
) -> Tokenizer:
    """The tokenizer of these files, whose special tokens are known."""
    chat_template, named_templates, template_notes = find_chat_templates(files)
    kinds = _added_kinds(files, notes)
    if is_unigram(files):
        form = convert_unigram(files, kinds)
        backends = build_backend(files, form.kinds)
        if narrow := rounded(files):
            form = replace(form, limits=(*form.limits, rounding(backends[0], build_backend(narrow, form.kinds)[0])))
    elif files.path.name == characters.NAME:
        form = characters.convert_characters(files.vocab, kinds)
        backends = build_backend(files, kinds)
    elif is_sentencepiece(files):
        form = convert_sentencepiece(files, kinds, roles.unk)
        backends = build_backend(files, form.kinds)
    else:
        form, backends = convert_byte_level(files, kinds, approximate=approximate)
    limits = form.limits
    notes += form.notes
    tokens, types = _rows(form.ids or files.ids, form.kinds, vocab_size, notes)
    if any("\0" in text for text in form.ids or files.ids):
        limits = (*limits, NUL)
    strips = strip_spaces(files.added)
    found = (strips, must_be_words(files.added), found_differently(files, form.kinds))
    limits = (*limits, *(limit for limit in found if limit is not None))
    if roles.eos is None:
        notes.append(_no_end(types, roles.pad))
    return Tokenizer(
        path=files.path,
        tokens=tokens,
        token_types=types,
        merges=form.merges,
        scores=None if form.scores is None else tuple(form.scores.get(i, LOWEST) for i in range(vocab_size)),
        model=form.model,
        pre=form.pre,
        bos_id=roles.bos,
        eos_id=roles.eos,
        eot_id=roles.eot,
        eom_id=roles.eom,
        pad_id=roles.pad,
        unk_id=roles.unk,
        sep_id=roles.sep,
        mask_id=roles.mask,
        add_bos=roles.add_bos,
        add_eos=roles.add_eos,
        add_space_prefix=form.add_space_prefix,
        remove_extra_whitespaces=form.remove_extra_whitespaces,
        charsmap=form.charsmap,
        chat_template=chat_template,
        named_templates=named_templates,
        notes=(*notes, *roles.notes, *template_notes, *(limit.note for limit in limits)),
        limits=limits,
        nfc=form.nfc,
        probe_tokens=_probe_tokens(files, form, stripping=False),
        stripping=_stripping(files, form, strips),
        bytes_known=form.bytes_known,
        approximation=form.approximation,
        _plain=backends[0],
        _parsing=backends[1],
    )


def _stripping(files: TokenizerFiles, form: Form, limit: Limit | None) -> Stripping:
    return Stripping(
        left=frozenset(token.content for token in files.added if token.lstrip),
        right=frozenset(token.content for token in files.added if token.rstrip),
        probes=_probe_tokens(files, form, stripping=True),
        note=None if limit is None else limit.note,
    )


def _probe_tokens(files: TokenizerFiles, form: Form, *, stripping: bool) -> tuple[str, ...]:
    """The added tokens to compare: with `stripping` those that strip spaces, else the others.

    Tokens that the two sides are known to match differently are left out; the notes name them.
    """
    if not form.sections:
        return ()
    return tuple(
        token.content
        for token in files.added
        if (token.lstrip or token.rstrip) == stripping and not (token.single_word or token.content in form.strays)
    )


def _check_model(model: Mapping[str, Any], where: str) -> None:
    """Raise TokenizerError, naming the key, for models other than plain BPE and Unigram."""
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        raise TokenizerError(f"{where}: model.type is {shown(kind)}; tinyq converts BPE and Unigram vocabularies only")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(
                f"{where}: model.{key} is {shown(model[key])}; llama.cpp's BPE has no such prefix or suffix"
            )
    for key in ("byte_fallback", "ignore_merges", "fuse_unk"):
        if not isinstance(model.get(key, False), bool):
            raise CheckpointError(f"{where}: model.{key} is {shown(model[key])}; expected true or false")


def _added_kinds(files: TokenizerFiles, notes: list[str]) -> dict[int, TokenType]:
    """The type of every added token, by id; llama.cpp decides some of them from the text alone."""
    always_shown, always_hidden = forced_text(files.ids), forced_control(files.ids)
    kinds: dict[int, TokenType] = {}
    for token in files.added:
        control = (token.special or token.content in always_hidden) and token.content not in always_shown
        kinds[token.id] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    turned = [token for token in files.added if token.special != (kinds[token.id] == TokenType.CONTROL)]
    for special, kind in ((False, "control"), (True, "ordinary")):
        names = [shown(token.content) for token in turned if token.special == special]
        if names:
            mark = "special" if special else "not special"
            notes.append(f"llama.cpp makes {some(names)} {kind} tokens by name; in the tokenizer they are {mark}")
    silent = sorted(set(files.vocab) & always_hidden - {token.content for token in files.added})
    if silent:
        notes.append(
            f"llama.cpp makes {some([shown(name) for name in silent])} control tokens by name;"
            " in the tokenizer they are plain text"
        )
    return kinds


def _rows(
    ids: Mapping[str, int], kinds: Mapping[int, TokenType], vocab_size: int, notes: list[str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The text and type of every row. Unused rows get padding texts, as llama.cpp needs distinct, non-empty texts."""
    names = {number: text for text, number in ids.items() if "\0" not in text}
    taken = set(names.values())
    tokens: list[str] = []
    types: list[int] = []
    for number in range(vocab_size):
        text = names.get(number, "")
        types.append(int(kinds.get(number, TokenType.NORMAL) if text else TokenType.UNUSED))
        if not text:
            text = f"[PAD{number}]"
            while text in taken:
                text += "_"
        tokens.append(text)
    empty = types.count(TokenType.UNUSED)
    last = max(names, default=-1) + 1
    if last < vocab_size:
        notes.append(f"vocabulary padded from {last} to {vocab_size}")
    if empty > vocab_size - last:
        notes.append(f"{empty - (vocab_size - last)} ids below {last} have no token: filled as unused")
    return tuple(tokens), tuple(types)


def _no_end(types: Sequence[int], pad: int | None) -> str:
    if TokenType.UNUSED in types or pad is not None:
        return "no file says which token is EOS: generation will run to its limit"
    return "no file says which token is EOS, and no unused token can stand in for it: llama.cpp will end at an ordinary token"
