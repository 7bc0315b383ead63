"""Texts in which llama.cpp finds other added tokens than the tokenizers library.

Both cut the added tokens out of a text before they tokenize what is between them. The library takes the leftmost, and of several
there the longest: first of those that are matched in the raw text, then of those that are matched in the normalized text
(`normalized`), which it normalizes too (`AddedVocabulary::extract_and_normalize`). llama.cpp takes the longest first, all from
the raw text (`tokenizer_st_partition` in src/llama-vocab.cpp).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel

from gguf_tools.tokenizers.backend import NOT_ADDED, build_finder
from gguf_tools.tokenizers.files import AddedToken, TokenizerFiles, shown, some
from gguf_tools.tokenizers.pretokenizers import Limit, flatten

SPACES = (" ", "▁")

Found = list[tuple[int, int, str]]
"""Start, end and content of the tokens found in a text."""


def found_differently(files: TokenizerFiles, kinds: Mapping[int, TokenType]) -> Limit | None:
    """The texts in which the two find other added tokens; None where no two tokens overlap and none depends on the normalizer.

    What tokens strip, and whether they must be whole words, is not considered.
    """
    tokens = [token for token in files.added if kinds[token.id] != TokenType.BYTE]
    contents = [token.content for token in tokens]
    users = [token.content for token in tokens if kinds[token.id] == TokenType.USER_DEFINED]
    control = [token.content for token in tokens if kinds[token.id] != TokenType.USER_DEFINED]
    first = [token.content for token in tokens if not token.normalized]
    later = [token.content for token in tokens if token.normalized]
    reasons = []
    if crossing := _crossing(contents) or _within(later, first):
        one, other = map(shown, crossing)
        reasons.append(
            f"where tokens such as {one} and {other} overlap, it takes the longest first, the tokenizer the leftmost"
        )
    if hidden := _within(control, users):
        one, other = map(shown, hidden)
        reasons.append(f"in plain text it finds {other} within {one}, the tokenizer does not")
    if rewritten := _rewritten(tokens, files):
        reasons.append(
            f"the tokenizer looks for {shown(rewritten)} in the normalized text, llama.cpp in the text as it is"
        )
    unlisted = [text for text, number in files.vocab.items() if kinds.get(number) == TokenType.UNKNOWN]
    unlisted = [text for text in unlisted if text not in contents]
    if unlisted:
        reasons.append(
            f"{shown(unlisted[0])} is plain text for the tokenizer and parsed as a control token by llama.cpp"
        )
    if not reasons:
        return None
    both = tuple(zip(build_finder(files, kinds), (users, contents + unlisted), strict=True))
    return Limit(
        f"llama.cpp may find other added tokens in a text: {'; '.join(reasons)}",
        lambda text: any(_differs(finder, contents, text) for finder, contents in both),
    )


def strip_spaces(added: Sequence[AddedToken]) -> Limit | None:
    """The texts with white space beside a token that strips it."""
    tokens = [token for token in added if token.lstrip or token.rstrip]
    if not tokens:
        return None
    beside = [rf"\s{re.escape(token.content)}" for token in tokens if token.lstrip]
    beside += [rf"{re.escape(token.content)}\s" for token in tokens if token.rstrip]
    pattern = re.compile("|".join(beside))
    names = some([shown(token.content) for token in tokens])
    return Limit(
        f"spaces beside {names} are stripped by the tokenizer (lstrip, rstrip) and kept by llama.cpp",
        lambda text: pattern.search(text) is not None,
    )


def must_be_words(added: Sequence[AddedToken]) -> Limit | None:
    """The texts with such a token within a word."""
    tokens = [token.content for token in added if token.single_word]
    if not tokens:
        return None
    pattern = re.compile("|".join(rf"\w{token}|{token}\w" for token in map(re.escape, tokens)))
    return Limit(
        f"{some([shown(token) for token in tokens])} must be whole words for the tokenizer; llama.cpp matches them within "
        "words too",
        lambda text: pattern.search(text) is not None,
    )


def _differs(finder: HFTokenizer, contents: Sequence[str], text: str) -> bool:
    """Whether the two find other tokens. llama.cpp leaves open which of two tokens with equal length comes first."""
    encoded = finder.encode(text, add_special_tokens=False)
    theirs = [
        (*span, token)
        for number, span, token in zip(encoded.ids, encoded.offsets, encoded.tokens, strict=True)
        if number != NOT_ADDED
    ]
    return any(longest_first(order, text) != theirs for order in (contents, contents[::-1]))


def longest_first(contents: Iterable[str], text: str) -> Found:
    """The tokens that llama.cpp finds in a text, in the order of the text; of equally long ones the first comes first."""
    found: Found = []
    gaps = [(0, len(text))]
    for token in sorted(contents, key=lambda token: -len(token.encode("utf-8"))):
        left = []
        for start, end in gaps:
            while (at := text.find(token, start, end)) >= 0:
                found.append((at, at + len(token), token))
                left.append((start, at))
                start = at + len(token)
            left.append((start, end))
        gaps = left
    return sorted(found)


def _crossing(contents: Sequence[str]) -> tuple[str, str] | None:
    """Two tokens of which the end of one is the beginning of the other. Runs of one character, such as spaces, cut alike."""
    ordered = sorted(contents)
    mixed_by_first = {content[0]: content for content in ordered if len(set(content)) > 1}
    for token in ordered:
        if len(set(token)) == 1:
            if len(token) > 1 and token[0] in mixed_by_first:
                return token, mixed_by_first[token[0]]
            continue
        for cut in range(1, len(token)):
            end = token[cut:]
            at = bisect_left(ordered, end)
            # Those that begin so follow each other; two of them may be `end` and the token itself.
            for other in ordered[at : at + 3]:
                if other.startswith(end) and other not in (end, token):
                    return token, other
    return None


def _within(outer: Sequence[str], inner: Sequence[str]) -> tuple[str, str] | None:
    """A text of `outer`, and one of `inner` that lies in it."""
    finder = HFTokenizer(WordLevel({"": NOT_ADDED}, unk_token=""))
    finder.add_tokens(list(inner))
    for text in outer if inner else ():
        found = finder.encode(text, add_special_tokens=False)
        if lies := next((token for number, token in zip(found.ids, found.tokens, strict=True) if number), None):
            return text, lies
    return None


def _rewritten(tokens: Sequence[AddedToken], files: TokenizerFiles) -> str | None:
    """The first token that the library looks for in a text that the normalizer has changed, so that it finds other places."""
    steps = flatten(files.document.get("normalizer"), str(files.path), items="normalizers")
    kinds = {step["type"] for step in steps}
    if not kinds:
        return None

    def changed(content: str) -> bool:
        """Prepend and a table of characters may change any token, NFC and Replace of spaces few."""
        if kinds == {"NFC"}:
            return unicodedata.normalize("NFC", content) != content
        return kinds != {"Replace"} or any(space in content for space in SPACES)

    return next((token.content for token in tokens if token.normalized and changed(token.content)), None)
