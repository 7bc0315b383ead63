"""The nearest pre-tokenizer for runs of digits cut in twos (nanochat's `\\p{N}{1,2}`), which no pre-tokenizer of llama.cpp does.

The one that cuts them in threes agrees on runs of one and two digits. It is used only if the user accepts an approximation; how
often the two differ is measured with the source's tokenizer.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from gguf.constants import TokenType
from tokenizers import Tokenizer as HFTokenizer

from gguf_tools.errors import TokenizerError
from gguf_tools.tokenizers import pretokenizers
from gguf_tools.tokenizers.backend import build_backend
from gguf_tools.tokenizers.files import TokenizerFiles
from gguf_tools.tokenizers.pretokenizers import DIGITS3, Limit
from gguf_tools.tokenizers.probe import probe_pieces

TWOS = r"\p{N}{1,2}"
NUMBERS = 10_000
"""Numbers from 0 on that are compared."""


def has_long_number(text: str) -> bool:
    """Whether three characters of category N follow each other."""
    runs = groupby(text, key=lambda char: unicodedata.category(char).startswith("N"))
    return any(digits and sum(1 for _ in run) > 2 for digits, run in runs)


def in_threes(steps: Sequence[str], where: str) -> tuple[str, ...] | None:
    """The regexes with digits cut in threes, if they cut them in twos and llama.cpp has them so."""
    if not any(TWOS in step for step in steps):
        return None
    changed = tuple(step.replace(TWOS, DIGITS3) for step in steps)
    try:
        pretokenizers.find(changed, where)
    except TokenizerError:
        return None
    return changed


def measured(files: TokenizerFiles, kinds: Mapping[int, TokenType], plain: HFTokenizer, name: str) -> Limit:
    """The limit, with the numbers and the pieces of the probe text that the two tokenize differently."""
    node = json.dumps(files.document.get("pre_tokenizer"))
    threes = node.replace(json.dumps(TWOS)[1:-1], json.dumps(DIGITS3)[1:-1])
    other, _ = build_backend(replace(files, document={**files.document, "pre_tokenizer": json.loads(threes)}), kinds)

    def differing(texts: Sequence[str]) -> int:
        pairs = zip(plain.encode_batch(list(texts)), other.encode_batch(list(texts)), strict=True)
        return sum(a.ids != b.ids for a, b in pairs)

    pieces = probe_pieces()
    numbers = differing([str(n) for n in range(NUMBERS)])
    return Limit(
        f"llama.cpp has no pre-tokenizer that cuts digits in twos; {name!r}, which cuts them in threes, is used: text with three "
        f"digits or more in a row may be tokenized differently ({numbers:,} of the numbers from 0 to {NUMBERS - 1:,} are, and "
        f"{differing(pieces)} of {len(pieces)} pieces of the probe text)",
        has_long_number,
    )
