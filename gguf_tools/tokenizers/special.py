"""The special tokens (BOS, EOS, …), whether BOS and EOS are added to every prompt, and the chat templates.

Several files define them and may contradict each other. The tokenizer's files have priority for the roles, because chat
templates use their `bos_token` and `eos_token`. The end-of-generation (EOG) tokens are those of the tokenizer together with
those of generation_config.json.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.formats.text_file import Kind, read_text
from gguf_tools.tokenizers.files import (
    GENERATION,
    MORE_TEMPLATES,
    SPECIAL_MAP,
    TEMPLATE,
    TEMPLATE_JSON,
    TOKENIZER_CONFIG,
    TokenizerFiles,
    as_id,
    as_list,
    as_object,
    as_text,
    read_object,
    shown,
)

TURN_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "[EOT]",
    "<EOT>",
    "_<EOT>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
)
"""Texts that `llama_vocab::impl::load` uses as the end-of-turn (EOT) token if no id is given, in undefined order (it iterates
over a hash table). Here the order is fixed: ends of a turn before ends of a text."""

_ENDS = frozenset(
    (
        *TURN_ENDS,
        *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>", "<turn|>"),
        *("<|tool_response>", "[e~["),
    )
)
"""Texts of tokens that llama.cpp always treats as end-of-generation tokens, whatever the metadata says."""

_FILL_IN = frozenset(
    (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
        *("<|prefix|>", "<|suffix|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    )
)
FORCED_CONTROL = _ENDS | _FILL_IN
"""Texts of tokens that llama.cpp makes control tokens by name (same function), whatever their type in the file."""

FORCED_TEXT = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))
"""Texts of tokens that llama.cpp makes user-defined by name, so that they are always printed and always parsed."""


def forced_control(tokens: Mapping[str, int]) -> frozenset[str]:
    """`FORCED_CONTROL`, without "</s>" in vocabularies where llama.cpp makes it a normal token (Gemma 4)."""
    return FORCED_CONTROL - {"</s>"} if "<|tool_response>" in tokens else FORCED_CONTROL


def forced_text(tokens: Mapping[str, int]) -> frozenset[str]:
    """`FORCED_TEXT`, and "<|end|>" in vocabularies where it does not end a generation for llama.cpp (gpt-oss, Solar)."""
    calls = "<|call|>" in tokens or "<|calls|>" in tokens
    if calls and ("<|return|>" in tokens or ("<|flush|>" in tokens)):
        return FORCED_TEXT | {"<|end|>"}
    return FORCED_TEXT


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Token ids by role (None: not defined), whether llama.cpp adds BOS and EOS to every text, and notes for the user."""

    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    pad: int | None
    unk: int | None
    sep: int | None
    mask: int | None
    add_bos: bool
    add_eos: bool
    notes: tuple[str, ...]


def find_special_tokens(
    files: TokenizerFiles, vocab_size: int, config: Mapping[str, Any] | None, add_bos: bool | None
) -> SpecialTokens:
    """The special tokens, from a tokenizer folder and the model's config.json (`config`).

    `add_bos` overrides whether BOS is added. Raises CheckpointError for values of a wrong type, TokenizerError if BOS or EOS
    is to be added and no file defines it.
    """
    notes: list[str] = []
    reader = _Reader(files, vocab_size, config or {}, notes)
    bos = reader.role("bos")
    ends = reader.ends()
    found = {text: files.ids[text] for text in TURN_ENDS if text in files.ids}
    eos = ends[0] if ends else None
    # Further EOG tokens are stored as EOT and EOM; llama.cpp ends a generation at any of the three.
    eot = ends[1] if len(ends) > 1 else next(iter(found.values()), None)
    eom = ends[2] if len(ends) > 2 else files.ids.get("<|eom_id|>")
    names = {number: text for text, number in files.ids.items()}
    lost = [names.get(end, str(end)) for end in ends[3:] if names.get(end) not in _ENDS]
    if lost:
        notes.append(
            f"a GGUF can store three end-of-generation tokens; llama.cpp will not stop at {', '.join(map(shown, lost))}"
        )
    begin, end = _template_ends(files)
    asked = {role: _adds(files, role, reader.declared(role), notes) for role in ("bos", "eos")}
    adds_bos = _choose(files, "bos", begin, bos, asked["bos"], notes) if add_bos is None else add_bos
    adds_eos = _choose(files, "eos", end, eos, asked["eos"], notes)
    for adds, number, role in ((adds_bos, bos, "BOS"), (adds_eos, eos, "EOS")):
        if adds and number is None:
            raise TokenizerError(
                f"{files.path}: {role} is to be added to every text, but no file says which token it is"
            )
    return SpecialTokens(
        bos=bos,
        eos=eos,
        eot=eot,
        eom=eom,
        pad=reader.role("pad"),
        unk=reader.unknown(),
        sep=reader.role("sep"),
        mask=reader.role("mask"),
        add_bos=adds_bos,
        add_eos=adds_eos,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Reader:
    files: TokenizerFiles
    vocab_size: int
    config: Mapping[str, Any]
    notes: list[str]

    def declared(self, role: str) -> int | None:
        """The id of `<role>_token` in the tokenizer's own files."""
        folder = self.files.path.parent
        for name, content in ((TOKENIZER_CONFIG, self.files.config), (SPECIAL_MAP, self.files.special_map)):
            key = f"{role}_token"
            value = content.get(key)
            if isinstance(value, dict):
                value = value.get("content")
            if value is None:
                continue
            text = as_text(value, str(folder / name), key)
            if text in self.files.ids:
                return self.files.ids[text]
            self.notes.append(f"{name} says {key} is {shown(text)}, which is not in the vocabulary")
        return None

    def configured(self, role: str) -> list[tuple[str, list[int]]]:
        """`<role>_token_id` of generation_config.json and config.json: the file's name and the ids in the vocabulary."""
        nested = self.config.get("text_config")
        sources: list[tuple[str, Mapping[str, Any], Any]] = [
            (GENERATION, self.files.generation, None),
            ("config.json", self.config, nested if isinstance(nested, dict) else None),
        ]
        result = []
        for name, content, inner in sources:
            key = f"{role}_token_id"
            value = content.get(key)
            if value is None and inner is not None:
                value = inner.get(key)
            if value is None or value == -1:  # older configs use -1 for "none"
                continue
            values = value if isinstance(value, list) else [value]
            ids = [as_id(item, name, key) for item in values]
            out = [number for number in ids if number >= self.vocab_size]
            if out:
                self.notes.append(
                    f"{name} says {key} is {out[0]}, beyond the vocabulary of {self.vocab_size} tokens: ignored"
                )
            ids = [number for number in ids if number < self.vocab_size]
            if ids:
                result.append((name, ids))
        return result

    def role(self, role: str) -> int | None:
        """The id for a role: from the tokenizer's files, else the first one in a config."""
        declared = self.declared(role)
        configured = self.configured(role)
        for name, ids in configured:
            if declared is not None and declared not in ids:
                self.notes.append(
                    f"{name} says {role} is {ids[0]}, the tokenizer says {declared}: the tokenizer's is used"
                )
        return declared if declared is not None else (configured[0][1][0] if configured else None)

    def unknown(self) -> int | None:
        """The unknown token: `unk_token` of tokenizer.json's model (used by the tokenizers library), else the declared one."""
        number = self.files.model.get("unk_id")
        if type(number) is int and number in self.files.vocab.values():
            return number
        value = self.files.model.get("unk_token")
        if value is not None and as_text(value, str(self.files.path), "model.unk_token") in self.files.ids:
            return self.files.ids[value]
        return self.role("unk")

    def ends(self) -> list[int]:
        """The end-of-generation ids, the tokenizer's eos_token first, unless generation_config.json does not list it."""
        declared = self.declared("eos")
        configured = self.configured("eos")
        special = {token.id for token in self.files.added}
        ends: list[int] = [] if declared is None else [declared]
        for name, ids in configured:
            # A config that was never adapted to its tokenizer names an ordinary token (by default 2): the tokenizer decides.
            good = ids if declared is None else [number for number in ids if number in special or number == declared]
            if len(good) < len(ids):
                bad = next(number for number in ids if number not in good)
                self.notes.append(
                    f"{name} says eos is {bad}, an ordinary token; the tokenizer says {declared}: {bad} is ignored"
                )
            if good and declared is not None and declared not in good:
                self.notes.append(
                    f"{name} says eos is {good[0]}, the tokenizer says {declared}: generation ends at either"
                )
            ends += [number for number in good if number not in ends]
            if name == GENERATION and good:
                break
        return ends


def _template_ends(files: TokenizerFiles) -> tuple[int | None, int | None]:
    """The ids that the post-processor adds before and after a single text (None: it adds none)."""
    where = str(files.path)
    processor = files.document.get("post_processor")
    if processor is None:
        return None, None
    outer = as_object(processor, where, "post_processor")
    inner = (
        as_list(outer.get("processors"), where, "post_processor.processors")
        if outer.get("type") == "Sequence"
        else [outer]
    )
    first: int | None = None
    last: int | None = None
    for item in inner:
        step = as_object(item, where, "a step of post_processor")
        if step.get("type") == "TemplateProcessing":
            single = as_list(step.get("single"), where, "post_processor.single")
            names = [_piece(piece, where) for piece in single]
            first = files.ids.get(names[0]) if names and names[0] is not None else first
            last = files.ids.get(names[-1]) if names and names[-1] is not None else last
        elif step.get("type") in ("RobertaProcessing", "BertProcessing"):
            first, last = (_pair(step.get(key), where, f"post_processor.{key}") for key in ("cls", "sep"))
    return first, last


def _piece(value: object, where: str) -> str | None:
    special = as_object(value, where, "a piece of post_processor.single").get("SpecialToken")
    if special is None:
        return None
    return as_text(as_object(special, where, "SpecialToken").get("id"), where, "SpecialToken.id")


def _pair(value: object, where: str, key: str) -> int:
    pair = as_list(value, where, key)
    if len(pair) != 2:
        raise CheckpointError(f"{where}: {key} is {shown(value)}; expected a token and its id")
    return as_id(pair[1], where, key)


def _adds(files: TokenizerFiles, role: str, declared: int | None, notes: list[str]) -> bool | None:
    """Whether tokenizer_config.json says that `role` is added to every text; None if it does not say.

    False if the tokenizer's own files do not name the token: transformers adds none then (`update_post_processor`).
    """
    key = f"add_{role}_token"
    value = files.config.get(key)
    if value is None:
        return None
    if not isinstance(value, bool):
        raise CheckpointError(
            f"{files.path.parent / TOKENIZER_CONFIG}: {key} is {shown(value)}; expected true or false"
        )
    if value and declared is None:
        notes.append(
            f"{TOKENIZER_CONFIG} says {key} is true, but no tokenizer file names the token: none is added, as in transformers"
        )
        return False
    return value


def _choose(
    files: TokenizerFiles, role: str, put: int | None, number: int | None, asked: bool | None, notes: list[str]
) -> bool:
    """Whether `role` is added to every text: as tokenizer_config.json says (`asked`), else as the post-processor does."""
    by_template = put is not None and put == number
    if put is not None and not by_template:
        notes.append(
            f"the post-processor adds the token {put}, which is not the {role} token: llama.cpp will not add it"
        )
    if asked is None:
        return by_template
    if asked != by_template and files.document.get("post_processor") is not None and (put is not None or asked):
        does = "adds" if by_template else "does not add"
        notes.append(
            f"{TOKENIZER_CONFIG} says add_{role}_token is {str(asked).lower()}, the post-processor {does} it: "
            f"{TOKENIZER_CONFIG} is used"
        )
    return asked


def find_chat_templates(files: TokenizerFiles) -> tuple[str | None, dict[str, str], tuple[str, ...]]:
    """The default chat template, the other templates by name, and notes.

    As in transformers, a separate template file has priority over tokenizer_config.json. Raises CheckpointError for values of
    a wrong type.
    """
    folder = files.path.parent
    where = str(folder / TOKENIZER_CONFIG)
    inline = _templates(files.config.get("chat_template"), where)
    notes: tuple[str, ...] = ()
    templates = inline
    if (folder / TEMPLATE).exists():
        templates = {"default": read_text(folder / TEMPLATE, Kind.TEMPLATE)}
        if (folder / MORE_TEMPLATES).is_dir():
            more = sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
            templates |= {path.stem: read_text(path, Kind.TEMPLATE) for path in more}
    elif (folder / TEMPLATE_JSON).exists():
        path = folder / TEMPLATE_JSON
        templates = _templates(read_object(path).get("chat_template"), str(path))
    if inline and templates != inline:
        notes = (f"the chat template file differs from the template in {TOKENIZER_CONFIG}; the file is used",)
    default = templates.pop("default", None)
    return default, {_plain_name(name): text for name, text in templates.items()}, notes


def _templates(value: object, where: str) -> dict[str, str]:
    """The chat templates by name, from one text ("default") or a list of named ones. Raises CheckpointError otherwise."""
    if value is None:
        return {}
    if isinstance(value, list):
        entries = [as_object(item, where, "an entry of chat_template") for item in value]
        return {
            as_text(entry.get("name"), where, "chat_template.name"): as_text(
                entry.get("template"), where, "chat_template.template"
            )
            for entry in entries
        }
    return {"default": as_text(value, where, "chat_template")}


def _plain_name(name: str) -> str:
    """The template's name as part of a metadata key (gguf's `add_chat_template` does the same)."""
    return "".join(char if char in string.ascii_letters + string.digits else "_" for char in name)
