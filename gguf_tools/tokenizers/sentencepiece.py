"""SentencePiece-like BPE ("▁" for a space, bytes as <0xXX>), as in Llama 2, Mistral and Gemma.

Two algorithms of llama.cpp can implement it. The one for SentencePiece (`llm_tokenizer_spm`, model "llama") joins any two
adjacent pieces whose concatenation is a token, highest score first and leftmost first among equals. It equals the BPE of the
tokenizers library if every pair that forms a token is a merge, and merges are ranked by token, which holds for conversions
from SentencePiece. A vocabulary trained with the tokenizers library lists only one pair per token; for it, llama.cpp's BPE
without byte characters (pre-tokenizer "sarvam-moe") is exact, but that one cannot add a space before a text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gguf.constants import TokenType

from gguf_tools.errors import TokenizerError
from gguf_tools.tokenizers.files import TokenizerFiles, shown, some
from gguf_tools.tokenizers.form import Form
from gguf_tools.tokenizers.piece_model import NAME as MODEL_FILE
from gguf_tools.tokenizers.piece_model import OUTER_SPACES, SEVERAL_SPACES
from gguf_tools.tokenizers.pretokenizers import Limit, flatten

SPACE = "▁"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
RAW_BPE = "sarvam-moe"
"""llama.cpp's BPE without byte characters that replaces spaces by "▁" and does not force BOS (unlike "gemma4")."""

EXTRA_SPACES = Limit(
    "the tokenizer drops spaces at both ends of a text and all but one of several (remove_extra_whitespaces), llama.cpp keeps"
    " them: text with such spaces is tokenized differently",
    lambda text: "  " in text or text != text.strip(" "),
)


@dataclass(frozen=True, kw_only=True)
class _Spaces:
    """How the normalizer and the pre-tokenizer treat spaces."""

    replaced: bool = False
    prefix: bool = False
    always: bool = False
    first_only: bool = False
    split: bool = False
    collapsed: bool = False


def is_sentencepiece(files: TokenizerFiles) -> bool:
    """Whether the tokenizer replaces spaces by "▁" instead of mapping bytes to characters."""
    where = str(files.path)
    steps = [str(step["type"]) for step in flatten(files.document.get("pre_tokenizer"), where)]
    if "ByteLevel" in steps:
        return False
    normalizers = flatten(files.document.get("normalizer"), where, items="normalizers")
    return "Metaspace" in steps or any(_replaces_spaces(step) for step in normalizers)


def convert_sentencepiece(files: TokenizerFiles, kinds: Mapping[int, TokenType], unknown: int | None) -> Form:
    """The vocabulary data for the one of llama.cpp's two algorithms that is exact.

    Raises TokenizerError if neither is: other normalizers or pre-tokenizer steps, missing byte tokens, or a space added
    before the text together with merges that are not SentencePiece's.
    """
    where = str(files.path)
    spaces = _spaces(files, where)
    lacking = next((token for token in BYTE_TOKENS if token not in files.ids), None)
    if lacking is not None or files.model.get("byte_fallback") is not True:
        found = "model.byte_fallback is off" if lacking is None else f"the vocabulary has no token {lacking}"
        raise TokenizerError(
            f"{where}: {found}; llama.cpp encodes unknown characters as bytes and needs all 256 tokens <0x00> to <0xFF>"
        )
    if files.model.get("ignore_merges", False):
        raise TokenizerError(f"{where}: model.ignore_merges is true; llama.cpp does that for byte-level BPE only")
    if spaces.split:
        inner = next((left + right for left, right in files.merges if SPACE in (left + right)[1:]), None)
        if inner is not None:
            raise TokenizerError(
                f"{where}: Metaspace splits at every space, but a merge gives {shown(inner)}; llama.cpp does not split there"
            )
    all_kinds = {**kinds, **{files.ids[token]: TokenType.BYTE for token in BYTE_TOKENS}}
    if unknown is not None:
        all_kinds[unknown] = TokenType.UNKNOWN
    order = _token_order(files)
    known = set(files.merges)
    strays = [pair for pair in _joins(files) if pair not in known] if order is not None else []
    spelled = {token.content for token in files.added}
    grave = [pair for pair in strays if "".join(pair) not in spelled]
    # What the vocabulary itself does not have, llama.cpp takes for a character of the text all the same.
    letters = {text for text in spelled if len(text) == 1 and kinds[files.ids[text]] != TokenType.USER_DEFINED}
    letters -= files.vocab.keys()
    contents = tuple(token.content for token in files.added)
    limits = (EXTRA_SPACES,) if spaces.collapsed else ()
    if spaces.prefix and not (spaces.always or spaces.collapsed):
        limits = (*limits, leading_space(contents))
    if spaces.first_only:
        limits = (*limits, no_space_after(contents))
    own = tuple(token.content for token in files.added if not token.special and files.path.name == MODEL_FILE)
    if own and spaces.prefix:
        limits = (*limits, after_own(own))
    joins = order is not None and not grave
    spelled_out = frozenset(letters) | ({"".join(pair) for pair in strays} if joins else set())
    if spelled_out:
        limits = (*limits, merged(spelled_out, contents))
    if order is not None and not grave:
        lowest = -float(len(order))
        scores = {
            number: -float(order[text]) if text in order else 0.0 if number in all_kinds else lowest
            for text, number in files.ids.items()
        }
        return Form(
            model="llama",
            pre="default",
            kinds=all_kinds,
            scores=scores,
            add_space_prefix=spaces.prefix,
            limits=limits,
            sections=not spaces.first_only,
            strays=spelled_out,
        )
    if spaces.prefix:
        why = (
            f"{shown(''.join(grave[0]))} could also be merged from {grave[0]}"
            if grave
            else "they are not ordered by token"
        )
        raise TokenizerError(
            f"{where}: adds a space before a text, and its merges are not those of SentencePiece ({why}); llama.cpp supports"
            " only one of the two. Use a byte-level BPE, or prepend_scheme 'never'"
        )
    joined = (left + right for left, right in files.merges)
    crossing = next((token for token in joined if "\n" in token and token.strip("\n")), None)
    if crossing is not None:
        raise TokenizerError(
            f"{where}: a merge gives {shown(crossing)}; llama.cpp's {RAW_BPE!r} never merges line ends with text"
        )
    last = {pair: rank for rank, pair in enumerate(files.merges)}
    merges = tuple(f"{left} {right}" for rank, (left, right) in enumerate(files.merges) if last[left, right] == rank)
    return Form(
        model="gpt2",
        pre=RAW_BPE,
        kinds=all_kinds,
        merges=merges,
        add_space_prefix=False,
        limits=limits,
        strays=spelled_out,
    )


def after_own(pieces: Sequence[str]) -> Limit:
    """tokenizer.model alone: SentencePiece puts a space before the whole text, the other two before each part of it."""
    return Limit(
        f"SentencePiece puts no space after {shown(pieces[0])} and before it always, llama.cpp the other way about: text with "
        "pieces of the user's is tokenized differently",
        lambda text: any(piece in text for piece in pieces),
    )


def leading_space(added: Sequence[str]) -> Limit:
    """A space is put before a text, and before the text after an added token, unless there is one."""
    return Limit(
        "the tokenizer adds a space before a text only if there is none, llama.cpp always does: text that begins with a space, "
        "or has one after an added token, may be tokenized differently",
        lambda text: text.startswith((" ", SPACE)) or _followed(added, (" ", SPACE), text),
    )


def no_space_after(added: Sequence[str]) -> Limit:
    """A space is put before the whole text alone."""
    return Limit(
        "after an added token llama.cpp adds a space before the text, as at the start; the tokenizer does not",
        lambda text: any(token in text for token in added),
    )


def merged(tokens: Collection[str], added: Sequence[str]) -> Limit:
    """Added tokens that llama.cpp merges from the pieces of a text that spells them out, though it is to parse none."""
    names = some([shown(token) for token in sorted(tokens)])
    after_space = [token[1:] for token in tokens if token.startswith(SPACE)]

    def affects(text: str) -> bool:
        # A space, before the text and after an added token too, is the mark that the tokens have.
        spelled = SPACE + text.replace(" ", SPACE)
        return any(token in spelled for token in tokens) or _followed(added, after_space, text)

    return Limit(f"llama.cpp also matches {names} in plain text, the tokenizer does not", affects)


def _followed(added: Sequence[str], by: Sequence[str], text: str) -> bool:
    """Whether an added token has one of these texts after it."""
    return any(
        text.startswith(tuple(by), match.end()) for token in added for match in re.finditer(re.escape(token), text)
    )


def _replaces_spaces(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE


def _spaces(files: TokenizerFiles, where: str) -> _Spaces:
    """How the normalizer and pre-tokenizer of tokenizer.json treat spaces. Raises TokenizerError for any other step."""
    spaces = _Spaces()
    for step in flatten(files.document.get("normalizer"), where, items="normalizers"):
        if step["type"] == "Prepend" and step.get("prepend") == SPACE and not spaces.replaced:
            spaces = replace(spaces, prefix=True, always=True)
        elif step in (OUTER_SPACES, SEVERAL_SPACES) and not (spaces.replaced or spaces.prefix):
            spaces = replace(spaces, collapsed=True)
        elif _replaces_spaces(step):
            spaces = replace(spaces, replaced=True)
        else:
            raise TokenizerError(
                f"{where}: llama.cpp has no equivalent of the normalizer {shown(step['type'])}; it has Prepend '▁' and"
                " Replace ' ' by '▁'"
            )
    for step in flatten(files.document.get("pre_tokenizer"), where):
        scheme = step.get("prepend_scheme", "always")
        if step["type"] == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            spaces = replace(
                spaces,
                replaced=True,
                prefix=spaces.prefix or scheme != "never",
                first_only=scheme == "first" and not spaces.prefix,
                split=step.get("split", True) is not False,
            )
        elif step["type"] != "Split" or step.get("pattern") != {"String": " "} or not spaces.replaced:
            # (a split at spaces has no effect after spaces were replaced: Gemma has that)
            raise TokenizerError(
                f"{where}: the pre-tokenizer step {shown(step['type'])} splits where llama.cpp does not"
            )
    if not spaces.replaced:
        raise TokenizerError(
            f"{where}: no step replaces spaces by '▁'; llama.cpp always does that in a SentencePiece-like vocabulary"
        )
    return spaces


def _token_order(files: TokenizerFiles) -> dict[str, int] | None:
    """The merged tokens, numbered by the rank of their merges; None if merges of different tokens are interleaved.

    Merges of runs of one character may be interleaved (SentencePiece gives "▁▁", "▁▁▁", … one score), those with a longer left
    half first: then both sides extend the leftmost run as far as possible, llama.cpp because the scores are equal.
    """
    last = {left + right: rank for rank, (left, right) in enumerate(files.merges)}
    order: dict[str, int] = {}
    place, until = -1, -1
    group: set[str] = set()
    shortest, longer_later = 0, False
    for rank, (left, right) in enumerate(files.merges):
        token = left + right
        if rank > until:
            place, until, group, shortest, longer_later = place + 1, rank, set(), len(left), False
        until = max(until, last[token])
        group.add(token)
        longer_later = longer_later or len(left) > shortest
        shortest = min(shortest, len(left))
        if len(group) > 1 and (longer_later or any(len(set(member)) > 1 for member in group)):
            return None
        order[token] = place
    return order


def _joins(files: TokenizerFiles) -> Iterator[tuple[str, str]]:
    """All pairs that llama.cpp may merge: both halves are characters or merged tokens, and the concatenation is a token."""
    ids = files.ids
    joined: set[str] = set()
    for token in sorted(ids, key=len):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if (len(left) == 1 or left in joined) and (len(right) == 1 or right in joined):
                joined.add(token)
                yield left, right
